"""What is measured on a case, against shapes and arrays of which it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_moe_hgd.phantoms.statistics import (
    brain_range,
    hull_levels,
    hull_of,
    noise_level,
    parts_of,
    region_levels,
    region_spreads,
    rim_border,
    roundness,
    thickness_mm,
)


def nested_regions() -> torch.Tensor:
    """WT, TC and ET in a box of `(16, 20, 24)` voxels."""
    regions = torch.zeros(3, 16, 20, 24, dtype=torch.bool)
    for region, edge in zip(regions, (8, 6, 4), strict=True):
        region[3 : 3 + edge, 4 : 4 + edge, 5 : 5 + edge] = True
    return regions


def bright_volume() -> torch.Tensor:
    """Positive noise, of another level and width in each part, in a layer of air."""
    volume = 100 + 10 * torch.randn(16, 20, 24, generator=torch.Generator().manual_seed(0))
    for part, level, width in zip(parts_of(nested_regions()), (-150, 60, 200), (2, 1, 0.5), strict=True):
        volume[part] = level + width * volume[part]
    volume[:1] = 0
    return volume


def lower_median(values: np.ndarray) -> float:
    """As torch has it: of two in the middle, the lower."""
    return np.sort(values, axis=None)[(values.size - 1) // 2]


def spread(values: np.ndarray) -> float:
    return lower_median(np.abs(values - lower_median(values)))


@pytest.mark.parametrize("spacing_mm", [1.0, 2.5])
@pytest.mark.parametrize("voxels", [1, 2, 3, 4, 6])
def test_the_thickness_of_a_plate_is_its_own(voxels: int, spacing_mm: float) -> None:
    plate = torch.zeros(voxels + 4, 120, 140, dtype=torch.bool)
    plate[2:-2, 5:-5, 5:-5] = True
    # Short of it by what lies nearer to the plate's rim than to its faces.
    assert thickness_mm(plate, spacing_mm) == pytest.approx(voxels * spacing_mm, rel=0.04)


def test_where_the_array_ends_a_plate_ends() -> None:
    plate = torch.zeros(8, 40, 50, dtype=torch.bool)
    plate[2:-2] = True
    assert thickness_mm(plate[2:-2], 1.0) == thickness_mm(plate, 1.0)


def test_a_ball_is_round_and_a_slice_of_it_is_not() -> None:
    axes = torch.meshgrid(*(torch.arange(edge) - edge / 2 for edge in (40, 44, 48)), indexing="ij")
    ball = axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2 < 15**2
    # Its steps differ from those of the limit by a few faces.
    assert roundness(ball) == pytest.approx(1, abs=0.03)
    assert roundness(ball & (axes[0] == 0)) < 0.5


def test_levels_and_spreads_are_those_of_the_parts_against_the_brain_outside_the_tumour() -> None:
    volume, regions = bright_volume(), nested_regions()
    array, (whole, core, enhancing) = volume.numpy(), regions.numpy()
    brain = array[(array != 0) & ~whole]
    parts = [array[mask] for mask in (core & ~enhancing, whole & ~core, enhancing)]
    levels = [(lower_median(part) - lower_median(brain)) / spread(brain) for part in parts]
    np.testing.assert_allclose(region_levels(volume, regions), levels, rtol=1e-5)
    np.testing.assert_allclose(
        region_spreads(volume, regions), [spread(part) / spread(brain) for part in parts], rtol=1e-5
    )


def test_the_border_of_a_rim_is_one_layer_on_either_side_of_where_it_meets_the_oedema() -> None:
    volume = bright_volume()
    place = np.indices(volume.shape)[2]
    regions = torch.zeros(3, *volume.shape, dtype=torch.bool)
    # Along the third axis: oedema, rim, necrosis, oedema.
    regions[0, 4:12, 4:12, 3:20] = True
    regions[1, 4:12, 4:12, 7:16] = True
    regions[2, 4:12, 4:12, 7:11] = True
    array, (whole, core, rim) = volume.numpy(), regions.numpy()
    brain = array[(array != 0) & ~whole]
    layers = (rim & (place == 7), whole & ~core & (place == 6))
    wanted = [(lower_median(array[layer]) - lower_median(brain)) / spread(brain) for layer in layers]
    np.testing.assert_allclose(rim_border(volume, regions), wanted, rtol=1e-5)
    few = regions.clone()
    few[0, :, :, 3:7] = False
    few[0, (5, 9, 5), (5, 9, 9), 6] = True
    assert np.isnan(rim_border(volume, few)).all()


def test_the_range_of_a_brain_is_that_outside_the_tumour() -> None:
    volume, regions = bright_volume(), nested_regions()
    brain = volume.numpy()[(volume.numpy() != 0) & ~regions[0].numpy()]
    wanted = [(value - lower_median(brain)) / spread(brain) for value in np.percentile(brain, (1, 99))]
    np.testing.assert_allclose(brain_range(volume, regions), wanted, rtol=1e-4)


def test_the_hull_is_what_lies_near_the_air_whether_in_the_array_or_beyond_it() -> None:
    volume, regions = bright_volume(), nested_regions()
    volume[1:6, 14:] += 1000
    brain_mask = volume != 0
    # Inside the brain zero is a value as others, and a hole is no outside.
    volume[8, 12, 12] = 0
    brain_mask[8, 12, 13] = False
    array, whole = volume.numpy(), regions[0].numpy()
    brain = array[(array != 0) & ~whole]
    # At 2 mm two layers lie within 5 mm: the first of the array is air.
    deep = np.zeros(array.shape, dtype=bool)
    deep[3:-2, 2:-2, 2:-2] = True
    hull = array[(array != 0) & ~deep & ~whole]
    wanted = [(value - lower_median(brain)) / spread(brain) for value in np.percentile(hull, (50, 97))]
    np.testing.assert_allclose(hull_levels(volume, hull_of(brain_mask, 2.0), regions), wanted, rtol=1e-4)
    assert hull_levels(volume, hull_of(brain_mask, 2.0), regions)[1] > 50


def test_a_part_of_fewer_than_ten_voxels_has_no_level_or_spread() -> None:
    regions = nested_regions()
    regions[2] = False
    regions[2, 5, 6, 5:9] = True
    for measure in (region_levels, region_spreads):
        assert np.isnan(measure(bright_volume(), regions)).tolist() == [False, False, True]


def test_noise_is_the_laplacian_two_voxels_inside_the_healthy_brain_over_its_spread() -> None:
    volume, regions = bright_volume(), nested_regions()
    whole, array = regions[0].numpy(), volume.numpy()
    healthy = np.pad((array != 0) & ~whole, 2, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(healthy, (5, 5, 5))
    padded = np.pad(array, 1)
    around = sum(np.roll(padded, side, axis) for axis in range(3) for side in (-1, 1))
    laplacian = (around - 6 * padded)[1:-1, 1:-1, 1:-1][windows.all(axis=(3, 4, 5))]
    expected = lower_median(np.abs(laplacian)) / spread(array[(array != 0) & ~whole])
    assert noise_level(volume, regions) == pytest.approx(expected, rel=1e-4)


def test_noise_does_not_depend_on_the_scale_of_the_image() -> None:
    volume, regions = bright_volume(), nested_regions()
    assert noise_level(7 * volume, regions) == pytest.approx(noise_level(volume, regions), rel=1e-4)


def test_noise_grows_with_the_grain_on_the_same_contrast() -> None:
    regions = torch.zeros(3, 32, 36, 40, dtype=torch.bool)
    ramp = torch.linspace(100, 300, 40).expand(32, 36, 40)
    grain = torch.randn(32, 36, 40, generator=torch.Generator().manual_seed(0))
    low, high = (noise_level(ramp + amount * grain, regions) for amount in (2, 4))
    # The brain's spread is that of the ramp, which the grain widens by less than a percent. The array's outermost
    # layer, where zeros are beyond, is as far from both and a small part.
    assert high / low == pytest.approx(2, rel=0.1)

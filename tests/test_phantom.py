"""Phantoms: exact, nested, repeatable, and as bright and as grainy as real cases."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.phantoms.anatomy import random_anatomy
from lora_moe_hgd.phantoms.contrast import lesion_shares
from lora_moe_hgd.phantoms.phantom import Phantom, make_phantom, write_phantom_case
from lora_moe_hgd.phantoms.statistics import PARTS, case_statistics, noise_level, region_levels
from lora_moe_hgd.phantoms.style import NARROW, WIDE
from lora_moe_hgd.phantoms.tumour import Tumour, random_tumour
from lora_moe_hgd_cli import run

# 10th and 90th percentile over the nine real cases (BraTS-Africa) that phantoms are matched to, at 2 mm, of the median
# robust z in necrosis, oedema and enhancing rim (lab/phantoms.md).
MEASURED = {
    "t1": ((-2.75, -0.53), (-0.32, 0.62), (-1.22, -0.30)),
    "t1c": ((-4.17, 0.18), (-0.78, 0.44), (1.27, 2.53)),
    "t2": ((4.32, 16.74), (2.87, 6.73), (3.88, 8.32)),
    "flair": ((1.97, 8.68), (3.90, 7.23), (4.09, 6.78)),
}
# Median over the same nine, halved by averaging: absolute Laplacian in healthy brain over the brain's MAD.
MEASURED_NOISE = {"t1": 0.60, "t1c": 0.56, "t2": 0.96, "flair": 1.02}

# Over the same nine, 10th and 90th percentile of the robust z of the brain's outermost 5 mm: median, and brightest.
MEASURED_HULL = {
    "t1": ((-3.67, -2.11), (0.79, 6.75)),
    "t1c": ((-4.74, -1.85), (1.69, 9.17)),
    "t2": ((-1.73, -0.16), (4.20, 7.96)),
    "flair": ((-4.73, -3.00), (0.80, 3.26)),
}

# Over the same nine, the same percentiles of the brain's darkest and brightest hundredth outside the tumour.
MEASURED_DARKEST = {"t1": (-9.21, -7.41), "t1c": (-11.87, -9.27), "t2": (-6.25, -5.04), "flair": (-10.64, -8.33)}
MEASURED_BRIGHTEST = {"t1": (2.02, 5.89), "t1c": (2.50, 8.24), "t2": (7.71, 12.78), "flair": (2.45, 4.08)}

# Over the same nine: the step at the border of the oedema over its level, medians; roundness of WT, 10th and 90th
# percentile.
MEASURED_EDGE = {"t2": 0.44, "flair": 0.45}
MEASURED_ROUNDNESS = (0.58, 0.82)

BRATS_AFRICA = Path(__file__).parents[2] / "shared/data/brats-africa"


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(3, spacing_mm=4.0, style=NARROW)


@pytest.fixture(scope="module")
def wide_phantoms() -> list[Phantom]:
    return [make_phantom(seed, spacing_mm=4.0) for seed in range(12)]


def test_the_same_seed_gives_the_same_phantom(phantom) -> None:
    again, other = (make_phantom(seed, spacing_mm=4.0, style=NARROW) for seed in (3, 4))
    for name in MODALITIES:
        assert_close(again.volumes[name], phantom.volumes[name], rtol=0, atol=0)
        assert not torch.equal(other.volumes[name], phantom.volumes[name])
    assert_close(again.regions, phantom.regions, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_phantom_made_on_a_gpu_is_the_one_made_on_the_cpu(phantom) -> None:
    on_gpu = make_phantom(3, spacing_mm=4.0, style=NARROW, device="cuda")
    # A rounding error can move a voxel over the level that bounds a region.
    assert (on_gpu.regions.cpu() != phantom.regions).float().mean() < 1e-4
    for name in MODALITIES:
        difference = (on_gpu.volumes[name].cpu() - phantom.volumes[name]).abs()
        assert difference.median() < 1e-2 * phantom.volumes[name].std()


def test_the_outside_is_zero_in_all_sequences_alike_and_the_brain_is_positive(phantom) -> None:
    brain = phantom.volumes["t1"] != 0
    assert 0.1 < brain.float().mean() < 0.7
    for volume in phantom.volumes.values():
        assert_close(volume != 0, brain, rtol=0, atol=0)
        assert (volume[brain] > 0).all()


def test_regions_are_nested_and_inside_the_brain(phantom) -> None:
    whole, core, enhancing = phantom.regions
    assert whole.any()
    assert (core <= whole).all()
    assert (enhancing <= core).all()
    assert (whole <= (phantom.volumes["t1"] != 0)).all()


def test_wide_phantoms_are_as_exact_as_narrow_ones(wide_phantoms) -> None:
    for phantom in wide_phantoms:
        brain = phantom.volumes["t1"] != 0
        whole, core, enhancing = phantom.regions
        assert (enhancing <= core).all()
        assert (core <= whole).all()
        assert (whole <= brain).all()
        for volume in phantom.volumes.values():
            assert volume.isfinite().all()
            assert_close(volume != 0, brain, rtol=0, atol=0)


def test_some_wide_tumours_are_missing_some_are_small_and_some_lack_core_or_enhancement() -> None:
    anatomy = random_anatomy(spacing_mm=4.0, generator=torch.Generator().manual_seed(0), style=NARROW)
    tumours = [
        random_tumour(anatomy, generator=torch.Generator().manual_seed(seed), style=WIDE).regions for seed in range(60)
    ]
    whole, core, enhancing = anatomy.voxel_ml * torch.stack(tumours).sum(dim=(2, 3, 4)).T
    # A fifth of sixty, and three standard deviations.
    assert 3 <= (whole == 0).sum() <= 21
    present = whole > 0
    assert 0.1 < (whole[present] < 30).float().mean() < 0.5
    assert 0.1 < (whole[present] > 100).float().mean() < 0.6
    assert (core[present] == 0).any()
    assert ((core > 0) & (enhancing == 0)).any()


def test_a_phantom_without_a_tumour_is_a_brain_of_its_own() -> None:
    style = dataclasses.replace(NARROW, no_tumour_share=1.0)
    phantom = make_phantom(3, spacing_mm=4.0, style=style)
    assert not phantom.regions.any()
    assert all(volume.std() > 0 for volume in phantom.volumes.values())


@pytest.mark.parametrize(
    ("changes", "whole", "core", "enhancing"),
    [
        ({"no_core_share": 1.0}, True, False, False),
        ({"solid_silent_share": 1.0}, True, True, False),
        ({"cystic_share": 1.0, "cyst_share": (0.8, 0.8)}, True, True, True),
    ],
)
def test_cores_are_of_the_kind_that_is_drawn(changes: dict, whole: bool, core: bool, enhancing: bool) -> None:
    phantom = make_phantom(5, spacing_mm=4.0, style=dataclasses.replace(NARROW, not_enhancing_share=0.0, **changes))
    assert phantom.regions.flatten(1).any(dim=1).tolist() == [whole, core, enhancing]
    if "cyst_share" in changes:
        assert phantom.regions[2].sum() < 0.4 * phantom.regions[1].sum()


def test_small_tumours_have_the_volume_that_is_drawn() -> None:
    style = dataclasses.replace(NARROW, whole_tumour_ml=(6.0, 0.0), low_share=0.0)
    for seed in range(3):
        assert 3 < make_phantom(seed, spacing_mm=4.0, style=style).regions[0].sum() * 0.064 < 12


def test_the_narrow_style_is_drawn_in_its_share_of_wide_phantoms() -> None:
    style = dataclasses.replace(WIDE, narrow_share=1.0)
    wide, narrow = (make_phantom(3, spacing_mm=4.0, style=style) for style in (style, NARROW))
    assert_close(wide.volumes["t2"], narrow.volumes["t2"], rtol=0, atol=0)


def ball_of_shells(*, whole: float, core: float, hole: float) -> tuple[torch.Tensor, Tumour]:
    """Distance of each voxel from the middle, and a tumour of these radii, in voxels."""
    axes = torch.meshgrid(*(torch.arange(64.0) - 32,) * 3, indexing="ij")
    distance = sum(axis**2 for axis in axes).sqrt()
    regions = torch.stack([distance < whole, distance < core, (distance < core) & (distance >= hole)])
    return distance, Tumour(regions, torch.ones(64, 64, 64), torch.zeros(64, 64, 64, 3))


def test_the_label_of_the_oedema_ends_at_a_half_of_its_blurred_mask() -> None:
    distance, tumour = ball_of_shells(whole=24, core=12, hole=6)
    for seed in range(4):
        oedema = lesion_shares(tumour, 1.0, torch.Generator().manual_seed(seed), NARROW)[1]
        inside, outside = (oedema[(distance > low) & (distance < low + 1)].mean() for low in (23, 24))
        # Half a voxel inside and outside, at the narrowest border: .69 and .31, and the ball's curvature.
        assert 0.5 < inside < 0.70
        assert 0.29 < outside < 0.45


def test_no_oedema_shows_beyond_a_label_that_ends_with_the_core() -> None:
    distance, tumour = ball_of_shells(whole=12, core=12, hole=6)
    for seed in range(4):
        shares = lesion_shares(tumour, 1.0, torch.Generator().manual_seed(seed), NARROW)
        assert shares.min() >= 0
        assert shares[1][distance >= 12].max() < 0.05


def test_the_bright_part_of_a_rim_ends_inside_its_label_and_its_neighbours_show_the_rest() -> None:
    distance, tumour = ball_of_shells(whole=24, core=12, hole=6)
    shares = lesion_shares(tumour, 1.0, torch.Generator().manual_seed(0), NARROW)
    bright, rim = shares[2] > 0.5, tumour.regions[2]
    assert (bright <= rim).all()
    assert (rim & ~bright).sum() > 0.1 * rim.sum()
    # Deep inside the rim, and where it passes into what lies beside it, all of a voxel is accounted for.
    assert_close(shares.sum(dim=0)[distance < 14], torch.ones(()).expand((distance < 14).sum()), rtol=0, atol=1e-2)
    inner, outer = rim & (distance < 7), rim & (distance >= 11)
    assert shares[0][inner].mean() > 0.3 > 0.05 > shares[1][inner].max()
    assert shares[1][outer].mean() > 0.3 > 0.05 > shares[0][outer].max()


def test_a_rim_of_one_voxel_is_bright_whoever_drew_it() -> None:
    _, tumour = ball_of_shells(whole=24, core=12, hole=11)
    rim = tumour.regions[2]
    # The most generous label: with .68 in its middle the whole blurred rim lies below this share.
    style = dataclasses.replace(NARROW, generosity=(0.75, 0.75))
    bright = lesion_shares(tumour, 2.0, torch.Generator().manual_seed(0), style)[2]
    assert bright[rim].mean() > 0.6
    assert bright[~rim].max() < 0.3


def test_low_tumours_lie_lower_and_are_smaller() -> None:
    anatomy = random_anatomy(spacing_mm=4.0, generator=torch.Generator().manual_seed(0), style=NARROW)
    drawn = {}
    for share in (0.0, 1.0):
        style = dataclasses.replace(NARROW, low_share=share)
        drawn[share] = [
            random_tumour(anatomy, generator=torch.Generator().manual_seed(seed), style=style) for seed in range(4)
        ]
    for high, low in zip(drawn[0.0], drawn[1.0], strict=True):
        heights = [torch.nonzero(tumour.regions[0])[:, 2].float().mean() / anatomy.shape[2] for tumour in (low, high)]
        assert heights[0] < 0.4 < heights[1]
        assert low.regions[0].sum() < 0.6 * high.regions[0].sum()


@pytest.mark.parametrize("spacing_mm", [0.5, 5.0])
def test_a_spacing_that_the_template_cannot_give_is_refused(spacing_mm: float) -> None:
    with pytest.raises(ValueError, match=f"`spacing_mm` must be between 1 and 4, got {spacing_mm}"):
        make_phantom(0, spacing_mm=spacing_mm)


@pytest.mark.parametrize("file_format", ["nii.gz", "npy"])
def test_written_cases_hold_the_phantom(tmp_path: Path, file_format: str) -> None:
    phantom = make_phantom(3, spacing_mm=4.0, style=NARROW)
    write_phantom_case(phantom, tmp_path / "case_000", file_format=file_format)
    names = [f"{stem}.{file_format}" for stem in ("FLAIR", "T1", "T1c", "T2", "seg")]
    assert sorted(path.name for path in (tmp_path / "case_000").iterdir()) == names
    case = find_case(tmp_path / "case_000")
    for name, path in case.images.items():
        np.testing.assert_array_equal(np.asarray(read_image(path).image.dataobj), phantom.volumes[name])
    labels = np.asarray(read_image(case.labelled()).image.dataobj)
    np.testing.assert_array_equal(LABEL_SCHEMES["msd"].decode(labels), phantom.regions)


def test_numpy_files_cannot_hold_a_voxel_size_other_than_the_one_they_are_read_with(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run("phantom", ["--root", str(tmp_path), "--format", "npy", "--spacing-mm", "2"])
    assert "--spacing-mm must be 1 for --format npy" in capsys.readouterr().err


def test_written_cases_have_voxel_size_and_orientation(dummy_root: Path) -> None:
    image = nib.load(dummy_root / "case_000/T1.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), (4, 4, 4))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")


def test_nothing_is_overwritten(tmp_path: Path, capsys) -> None:
    (tmp_path / "case_001").mkdir()
    with pytest.raises(SystemExit):
        run("phantom", ["--root", str(tmp_path), "--n", "2", "--spacing-mm", "4"])
    assert "case_001 exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["case_001"]


def test_levels_and_noise_of_a_made_up_image_are_those_put_in() -> None:
    # Planes of 90, 100 and 110: median 100, MAD 10, and a Laplacian of 30, 0 and -30.
    volume = torch.tensor([90.0, 100.0, 110.0]).repeat(12)[:, None, None].repeat(1, 30, 30)
    regions = torch.zeros(3, 36, 30, 30, dtype=torch.bool)
    regions[0, 10:20, 10:20, 10:20] = True
    regions[1:, 12:18, 12:18, 12:18] = True
    volume[regions[0]] = 95.0
    volume[regions[2]] = 120.0
    necrosis, oedema, enhancing = region_levels(volume, regions)
    assert np.isnan(necrosis)
    assert (oedema, enhancing) == (-0.5, 2.0)
    assert noise_level(volume, regions) == 3.0


@pytest.fixture(scope="module")
def forty() -> dict[str, float]:
    """Median of each statistic over forty phantoms of the narrow style, which is the one matched to real cases."""
    found: dict[str, list[float]] = {}
    for seed in range(40):
        phantom = make_phantom(seed, spacing_mm=2.0, style=NARROW)
        for name, value in case_statistics(phantom.volumes, phantom.regions, 2.0).items():
            found.setdefault(name, []).append(value)
    return {name: float(np.nanmedian(values)) for name, values in found.items()}


@pytest.mark.slow
def test_forty_phantoms_are_as_bright_as_dark_and_as_grainy_as_real_cases_and_so_are_their_hulls(forty) -> None:
    for name in MODALITIES:
        for statistic, (low, high) in (
            (f"{name}, hull", MEASURED_HULL[name][0]),
            (f"{name}, hull, brightest", MEASURED_HULL[name][1]),
            (f"{name}, brain, darkest", MEASURED_DARKEST[name]),
        ):
            # As wide again: what is measured lies on nine cases.
            assert low - (high - low) / 2 <= forty[statistic] <= high + (high - low) / 2, (statistic, forty[statistic])
        for statistic, (low, high) in (
            (f"{name}, brain, brightest", MEASURED_BRIGHTEST[name]),
            *((f"{name}, {part}", bounds) for part, bounds in zip(PARTS, MEASURED[name], strict=True)),
        ):
            assert low <= forty[statistic] <= high, (statistic, forty[statistic])
        assert 1 / 1.5 < forty[f"{name}, noise"] / MEASURED_NOISE[name] < 1.5, name


@pytest.mark.slow
def test_forty_tumours_fade_at_their_borders_and_are_as_ragged_as_real_ones(forty) -> None:
    for name, edge in MEASURED_EDGE.items():
        # What was measured while the border was sharp is half as much again.
        assert 1 / 1.3 < forty[f"{name}, edge over oedema"] / edge < 1.3, (name, forty[f"{name}, edge over oedema"])
    assert MEASURED_ROUNDNESS[0] <= forty["WT, roundness"] <= MEASURED_ROUNDNESS[1]


@pytest.mark.slow
@pytest.mark.skipif(not BRATS_AFRICA.is_dir(), reason="needs BraTS-Africa beside the repository")
def test_the_noise_of_real_cases_is_what_phantoms_are_compared_with() -> None:
    noise = {name: [] for name in MODALITIES}
    for number in ("00002", "00007", "00010", "00011", "00012", "00014", "00026", "00028", "00037"):
        case = find_case(BRATS_AFRICA / f"BraTS-SSA-{number}-000")
        regions = LABEL_SCHEMES["brats2023"].decode(np.asarray(read_image(case.labelled()).image.dataobj))
        halved = torch.nn.functional.avg_pool3d(torch.from_numpy(regions).float()[None], 2)[0] >= 0.5
        for name, path in case.images.items():
            volume = torch.from_numpy(np.asarray(read_image(path).image.dataobj))[None, None]
            brain = torch.nn.functional.avg_pool3d((volume != 0).float(), 2)[0, 0] >= 0.5
            noise[name].append(noise_level(torch.nn.functional.avg_pool3d(volume, 2)[0, 0] * brain, halved))
    for name, values in noise.items():
        assert np.median(values) == pytest.approx(MEASURED_NOISE[name], abs=0.01)


@pytest.mark.slow
def test_the_first_four_cases_are_ordinary_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the README: a newcomer's first command and the check of the data give no warning."""
    run("phantom", ["--root", str(tmp_path / "data"), "--n", "4"])
    run("check", [str(tmp_path / "data")])
    assert "4 cases, 0 errors, 0 warnings" in capsys.readouterr().out
    for folder in (tmp_path / "data").iterdir():
        image = nib.load(folder / "seg.nii.gz")
        tumour_ml = np.count_nonzero(np.asarray(image.dataobj)) * np.prod(image.header.get_zooms()) / 1000
        assert 40 < tumour_ml < 160

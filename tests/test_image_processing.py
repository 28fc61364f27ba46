"""Preprocessing and the way back: orientation, spacing, normalisation, what is refused."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close
from transformers import AutoImageProcessor

from lora_moe_hgd.model.geometry import close_gaps, resample
from lora_moe_hgd.model.image_processing_lora_moe_hgd import (
    LoraMoeHgdImageProcessor,
    resample_brain,
    robust_z_score,
)
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES

# (axes, flips): every way to store one volume with the same axes.
ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product([1, -1], repeat=3)
]


def brain(shape=(20, 26, 30), seed: int = 0) -> np.ndarray:
    """Random intensities inside an ellipsoid, zero outside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij"))
    values = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    return np.where((grid**2).sum(axis=0) < 0.8, values, 0).astype(np.float32)


def prepare(processor: LoraMoeHgdImageProcessor, images, segmentation_maps=None, **options) -> dict:
    """The processor's input for cases that are far smaller than a brain."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*too little for a brain")
        return processor(images, segmentation_maps, allow_partial=True, **options)


def image(array: np.ndarray, spacing_mm=(1.0, 1.0, 1.0)) -> nib.Nifti1Image:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-10, -20, 5)
    return nib.Nifti1Image(array, affine)


def reoriented(source: nib.Nifti1Image, axes: tuple[int, ...], flips: tuple[int, ...]) -> nib.Nifti1Image:
    """The same volume, stored another way; nibabel keeps the affine true."""
    return source.as_reoriented(np.array(list(zip(axes, flips, strict=True))))


def blob_logits(shape: tuple[int, ...]) -> torch.Tensor:
    """Smooth logits of three nested balls off the centre, `(1, 3, ...)`."""
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, edge) for edge in shape), indexing="ij"))
    distance = ((grid - torch.tensor([0.2, -0.1, 0.3]).reshape(3, 1, 1, 1)) ** 2).sum(dim=0).sqrt()
    return torch.stack([20 * (radius - distance) for radius in (0.6, 0.4, 0.2)])[None]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS, ids=str)
def test_a_reoriented_case_gives_the_same_input_and_its_result_is_moved(axes, flips) -> None:
    processor = LoraMoeHgdImageProcessor()
    plain = image(brain(), spacing_mm=(1.0, 1.2, 0.9))
    moved = reoriented(plain, axes, flips)
    expected = prepare(processor, {"t1c": plain})
    actual = prepare(processor, {"t1c": moved})
    assert_close(actual["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    logits = blob_logits(tuple(expected["pixel_values"].shape[2:]))
    (there,) = processor.post_process_semantic_segmentation(logits, expected["geometry"])
    (here,) = processor.post_process_semantic_segmentation(logits, actual["geometry"])
    as_moved = reoriented(nib.Nifti1Image(there, plain.affine), axes, flips)
    np.testing.assert_array_equal(here, np.asarray(as_moved.dataobj))


def test_a_label_map_survives_the_way_there_and_back() -> None:
    processor = LoraMoeHgdImageProcessor()
    volume = brain()
    labels = np.where(volume > 110, np.random.default_rng(1).integers(0, 4, volume.shape), 0).astype(np.uint8)
    inputs = prepare(processor, {"flair": volume}, segmentation_maps=labels)
    (back,) = processor.post_process_semantic_segmentation(20.0 * inputs["labels"] - 10, inputs["geometry"])
    np.testing.assert_array_equal(back, labels)


def test_a_resampled_case_gives_the_same_segmentation() -> None:
    """The same head on voxels of 1 mm and of 2 mm; the network's grid has 2 mm."""
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(2.0, 2.0, 2.0))
    inside = torch.from_numpy(brain((40, 48, 56))) != 0
    # A gradient has the same spread on every grid, unlike noise.
    gradient = torch.linspace(90, 110, 40)[:, None, None]
    fine = torch.where(inside, gradient + 75 * (blob_logits((40, 48, 56))[0, 0] > 0), 0.0)
    coarse = resample_brain(fine, (20, 24, 28))
    found = []
    for volume, spacing in ((fine, 1.0), (coarse, 2.0)):
        inputs = prepare(processor, {"t2": image(volume.numpy(), (spacing,) * 3)})
        # A stand-in for the network that sees what a network would see: a tumour is what is bright.
        logits = (inputs["pixel_values"][:, 2:3] - 5).expand(-1, 3, -1, -1, -1)
        found.append(processor.post_process_semantic_segmentation(logits, inputs["geometry"])[0] > 0)
    on_fine, on_coarse = found
    assert on_fine.sum() > 5000
    repeated = on_coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    centres_mm = [np.argwhere(mask).mean(axis=0) for mask in (repeated, on_fine)]
    np.testing.assert_allclose(*centres_mm, atol=0.2)
    np.testing.assert_allclose(repeated.sum(), on_fine.sum(), rtol=0.02)
    # Not 1: a ball of 27 mm drawn with cubes of 2 mm instead of 1 mm.
    assert 2 * (repeated & on_fine).sum() / (repeated.sum() + on_fine.sum()) > 0.92


@pytest.mark.parametrize(("old", "new"), [(30, 15), (31, 17), (12, 20), (7, 7)])
def test_resampling_keeps_a_linear_ramp_where_it_is(old: int, new: int) -> None:
    ramp = (torch.arange(old) + 0.5) / old
    expected = (torch.arange(new) + 0.5) / new
    actual = resample(ramp.expand(3, 4, old), (3, 4, new))[0, 0]
    # Each old voxel counts as a constant cell; half a voxel off would be 0.016.
    assert_close(actual[1:-1], expected[1:-1], rtol=0, atol=2e-3)


def test_a_case_prepared_beside_a_network_in_bf16_is_as_exact_as_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = 1000 + 100 * torch.randn(32, 30, 28, generator=generator)
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(2.0, 2.0, 2.0))
    expected = prepare(processor, {"t1": volume})["pixel_values"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prepare(processor, {"t1": volume})["pixel_values"]
    assert_close(found, expected, rtol=0, atol=0)


def test_the_processor_gives_nested_regions_and_probabilities() -> None:
    processor = LoraMoeHgdImageProcessor()
    inputs = prepare(processor, {"t1": brain()})
    logits = torch.randn(1, 3, *inputs["pixel_values"].shape[2:], generator=torch.Generator().manual_seed(0))
    outputs = SimpleNamespace(logits=logits)
    ((regions, probabilities),) = processor.post_process_regions(outputs, inputs["geometry"])
    (labels,) = processor.post_process_semantic_segmentation(outputs, inputs["geometry"], label_scheme="brats2018")
    np.testing.assert_array_equal(regions, LABEL_SCHEMES["brats2018"].decode(labels))
    assert probabilities.shape == (3, *labels.shape)
    assert (np.diff(probabilities, axis=0) <= 0).all()
    np.testing.assert_array_equal(labels == 4, probabilities[2] > 0.5)
    np.testing.assert_array_equal(labels > 0, probabilities[0] > 0.5)


def parts_of(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Voxels of each part, found by walking over neighbours."""
    left = {tuple(place) for place in np.argwhere(mask).tolist()}
    parts = []
    while left:
        part, front = set(), [left.pop()]
        while front:
            place = front.pop()
            part.add(place)
            steps = itertools.product((-1, 0, 1), repeat=3)
            near = {tuple(a + b for a, b in zip(place, step, strict=True)) for step in steps} & left
            left -= near
            front += near
        parts.append(part)
    return parts


def test_parts_of_a_region_below_a_share_of_its_largest_part_are_left_out_and_regions_stay_nested() -> None:
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(24, 20, 22)), 1.5)
    probabilities = np.stack([0.5 + field, 0.45 + field, 0.4 + field])
    found = LoraMoeHgdImageProcessor(least_part=0.2).regions_of(probabilities)
    above = np.ones_like(found[0])
    for region, kept in zip(probabilities > 0.5, found, strict=True):
        # A large part of TC does not count where it lies in a part of WT that was left out.
        parts = parts_of(region & above)
        largest = max(map(len, parts))
        assert sum(len(part) < 0.2 * largest for part in parts) > 0
        wanted = np.zeros_like(region)
        for part in parts:
            if len(part) >= 0.2 * largest:
                wanted[tuple(np.array(sorted(part)).T)] = True
        np.testing.assert_array_equal(kept, wanted)
        above = wanted


def test_all_parts_are_kept_unless_a_checkpoint_says_otherwise(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).random((1, 8, 8, 8)).repeat(3, axis=0)
    np.testing.assert_array_equal(LoraMoeHgdImageProcessor().regions_of(probabilities), probabilities > 0.5)
    nothing = np.zeros((3, 8, 8, 8))
    assert not LoraMoeHgdImageProcessor(least_part=0.5).regions_of(nothing).any()
    LoraMoeHgdImageProcessor(least_part=0.25).save_pretrained(tmp_path)
    assert LoraMoeHgdImageProcessor.from_pretrained(tmp_path).least_part == 0.25
    with pytest.raises(ValueError, match=r"`least_part` must be between 0 and 1, got 10\."):
        LoraMoeHgdImageProcessor(least_part=10)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 2.0, 5.0)])
def test_gaps_are_closed_as_by_scipy(spacing_mm: tuple[float, float, float]) -> None:
    mask = np.random.default_rng(0).random((24, 20, 16)) > 0.97
    box = np.ones([2 * round(3 / spacing) + 1 for spacing in spacing_mm], dtype=bool)
    # In a larger array, as what lies beyond the border is background.
    expected = ndimage.binary_closing(np.pad(mask, 8), box)[8:-8, 8:-8, 8:-8]
    np.testing.assert_array_equal(close_gaps(mask, spacing_mm), expected)


def test_no_tumour_lies_outside_the_brain_and_dark_spots_inside_are_brain() -> None:
    volume = brain()
    inside = volume != 0
    volume[9:12, 12:15, 14:17] = 0
    processor = LoraMoeHgdImageProcessor()
    inputs = prepare(processor, {"t2": image(volume)})
    everywhere = torch.full((1, 3, *inputs["pixel_values"].shape[2:]), 9.0)
    (((labels, _, _), probabilities),) = processor.post_process_regions(everywhere, inputs["geometry"])
    assert labels[inside].all()
    near = ndimage.binary_dilation(inside, np.ones((7, 7, 7)))
    assert not near.all()
    assert not labels[~near].any()
    assert not probabilities[:, ~near].any()


def test_robust_z_score_is_median_and_mad_of_the_brain() -> None:
    volume = torch.from_numpy(brain())
    z = robust_z_score(volume, clip=10.0)
    values = volume[volume != 0].numpy()
    spread = 1.4826 * np.median(np.abs(values - np.median(values)))
    expected = np.where(volume != 0, (volume.numpy() - np.median(values)) / spread, 0)
    assert_close(z.numpy(), expected, rtol=1e-3, atol=1e-2)
    assert (z[volume == 0] == 0).all()
    assert robust_z_score(volume * 1000, clip=1.0).abs().max() == 1.0


def test_scale_and_offset_of_a_scanner_do_not_matter() -> None:
    processor = LoraMoeHgdImageProcessor()
    volume = brain()
    shifted = np.where(volume != 0, 3 * volume - 500, 0).astype(np.float32)
    assert (shifted < 0).any()
    expected = prepare(processor, {"t1": volume})["pixel_values"]
    assert_close(prepare(processor, {"t1": shifted})["pixel_values"], expected, rtol=1e-4, atol=1e-4)


def test_absent_none_and_left_out_are_the_same() -> None:
    processor = LoraMoeHgdImageProcessor()
    volume = brain()
    with_none = prepare(processor, {"t1": volume, "t1c": None, "t2": None, "flair": volume})
    left_out = prepare(processor, {"flair": volume, "t1": volume})
    assert_close(with_none["pixel_values"], left_out["pixel_values"], rtol=0, atol=0)
    assert with_none["modality_mask"].tolist() == left_out["modality_mask"].tolist() == [[True, False, False, True]]


def test_paths_images_and_arrays_are_the_same(tmp_path) -> None:
    processor = LoraMoeHgdImageProcessor()
    volume = brain()
    nib.save(image(volume), tmp_path / "t1.nii.gz")
    np.save(tmp_path / "t1.npy", volume)
    sources = [tmp_path / "t1.nii.gz", str(tmp_path / "t1.npy"), image(volume), volume, volume[..., None]]
    first, *others = (prepare(processor, {"t1": source})["pixel_values"] for source in sources)
    for other in others:
        assert_close(other, first, rtol=0, atol=0)


def test_a_batch_pads_each_case_as_if_alone() -> None:
    processor = LoraMoeHgdImageProcessor()
    small, large = (np.random.default_rng(0).normal(size=shape) for shape in ((20, 20, 20), (36, 20, 40)))
    batch = prepare(processor, [{"t1": small}, {"t2": large}])
    assert batch["pixel_values"].shape == (2, 4, 48, 32, 48)
    alone = prepare(processor, {"t1": small})["pixel_values"][0]
    depth, height, width = alone.shape[1:]
    assert_close(batch["pixel_values"][0, :, :depth, :height, :width], alone, rtol=0, atol=0)
    assert not batch["pixel_values"][0, :, depth:].any()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"t1": None}, "No sequence was given. Give at least one of t1, t1c, t2, flair"),
        ({}, "No sequence was given"),
        ({"T1C": brain()}, "Unknown sequence T1C. The names are t1, t1c, t2, flair, in lower case."),
        (
            {"t1": brain(), "t2": brain((20, 26, 31))},
            r"t2: The shape differs from the shape of t1 .*without an affine the volumes cannot be aligned",
        ),
        ({"t1": np.zeros((8, 8, 8))}, "t1: All voxels are zero"),
        ({"t1": np.ones((8, 8, 8, 4))}, r"t1: A volume must have three axes, but the shape is \(8, 8, 8, 4\)"),
        ({"t1": 3}, "t1: A volume must be a path, a nibabel image, an array or a tensor, got int"),
        ({"t1": brain().astype(np.complex64)}, "t1: The voxels must be real numbers, got complex64"),
        ({"t1": brain() > 0}, "t1: This is a label map with the values 0, 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_case_that_cannot_be_used_is_refused_with_place_and_remedy(case: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(LoraMoeHgdImageProcessor(), case)


def test_the_case_of_a_list_is_named() -> None:
    with pytest.raises(ValueError, match="case 1: t2: All voxels are zero"):
        prepare(LoraMoeHgdImageProcessor(), [{"t2": brain()}, {"t2": np.zeros((8, 8, 8))}])


def test_label_maps_are_given_for_all_cases_or_for_none() -> None:
    labels = np.zeros((20, 26, 30), np.uint8)
    with pytest.raises(ValueError, match="Give a label map for each case, or for none"):
        prepare(LoraMoeHgdImageProcessor(), [{"t1": brain()}, {"t1": brain()}], [labels, None])


def test_voxels_that_are_not_finite_are_counted_and_reported() -> None:
    volume = brain()
    volume[10, 13, 15] = np.nan
    with pytest.warns(UserWarning, match="t1: 1 voxel is not finite"):
        inputs = prepare(LoraMoeHgdImageProcessor(), {"t1": volume})
    assert inputs["pixel_values"].isfinite().all()


def test_settings_are_saved_with_a_checkpoint(tmp_path) -> None:
    settings = {"target_spacing_mm": [2.0, 2.0, 2.0], "intensity_clip": 5.0, "label_scheme": "msd"}
    LoraMoeHgdImageProcessor(**settings).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings


@pytest.mark.parametrize(
    "settings", [{"target_spacing_mm": (1.0, 0.0, 1.0)}, {"intensity_clip": -1.0}, {"label_scheme": "brats"}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"`target_spacing_mm`|`intensity_clip`|Unknown label scheme 'brats'"):
        LoraMoeHgdImageProcessor(**settings)

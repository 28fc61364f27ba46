"""The rules for a case: one grid, what is brain, what is refused."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import MetaTensor
from nibabel.processing import resample_from_to
from scipy import ndimage
from torch import Tensor

from lora_moe_hgd.model.brain import flood
from lora_moe_hgd.model.case_rules import LABEL_MAP, SettledCase, settle
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume, on_grid_of
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.model.sources import volume_of

OPEN_MS = Path(__file__).parents[2] / "shared/data/open-ms"
SHAPE = (36, 44, 40)
AFFINE = np.array([[-4.0, 0, 0, 70], [0, 4, 0, -86], [0, 0, 4, -70], [0, 0, 0, 1]])


def grid() -> np.ndarray:
    return np.stack(np.meshgrid(*(np.linspace(-1, 1, edge) for edge in SHAPE), indexing="ij"))


def brain(seed: int = 0, *, shift: float = 0.0) -> np.ndarray:
    """A brain of 1.4 litres: random intensities inside an ellipsoid, zero outside."""
    inside = ((grid() - shift) ** 2).sum(axis=0) < 0.75
    values = np.random.default_rng(seed).normal(100, 15, SHAPE)
    return np.where(inside, values, 0).astype(np.float32)


def ball(radius: float) -> np.ndarray:
    return ((grid() - 0.2) ** 2).sum(axis=0) < radius**2


def labels() -> np.ndarray:
    """Labels of BraTS 2023."""
    return np.select([ball(0.1), ball(0.2), ball(0.35)], [1, 3, 2], 0).astype(np.uint8)


def settled(arrays: dict[str, np.ndarray], **options) -> SettledCase:
    return settle({name: Volume(array, AFFINE) for name, array in arrays.items()}, **options)


def messages(case: SettledCase) -> list[str]:
    return [f"{finding.level}: {finding}" for finding in case.findings]


def corner(array: np.ndarray, value: float) -> np.ndarray:
    filled = array.copy()
    filled[:6, :10, :] = value
    return filled


def rim_of_noise(array: np.ndarray, *, mm: float, level: float) -> np.ndarray:
    distance = ndimage.distance_transform_edt(array == 0) * 4
    noise = np.abs(np.random.default_rng(1).normal(0, level, SHAPE)) + 1e-3
    return np.where((array == 0) & (distance <= mm), noise, array).astype(np.float32)


def test_a_case_that_keeps_the_rules_is_unchanged_and_has_no_finding() -> None:
    arrays = {"t1": brain(0), "flair": brain(1)}
    case = settled(arrays, label_map=Volume(labels(), AFFINE), label_schemes=("brats2023",))
    assert case.findings == ()
    for name, array in arrays.items():
        np.testing.assert_array_equal(case.arrays[name], array)
    np.testing.assert_array_equal(case.labels, labels())
    assert (case.reference, case.interpolated) == ("t1", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: np.where(array == 0, -0.8, (array - 100) / 15), "background has the value -0.8 instead"),
        (lambda array: corner(array, array[array != 0].mean()), "background has the value"),
        (lambda array: corner(array, 1.0), "background has the value 1 instead"),
        (lambda array: corner(array, -1000.0), "background has the value -1000 instead"),
        (lambda array: rim_of_noise(array, mm=8, level=5), "dark noise around the brain"),
        (lambda array: rim_of_noise(array, mm=1000, level=2), "dark noise around the brain"),
    ],
    ids=["z-scored", "mean in a corner", "1 in a corner", "-1000 in a corner", "rim of 8 mm", "noise everywhere"],
)
def test_background_that_is_not_zero_is_found_and_set_to_zero(change, message: str) -> None:
    changed = change(brain()).astype(np.float32)
    case = settled({"flair": changed})
    assert message in messages(case)[0]
    assert len(case.findings) == 1
    np.testing.assert_array_equal(case.arrays["flair"] != 0, brain() != 0)
    inside = brain() != 0
    np.testing.assert_array_equal(case.arrays["flair"][inside], changed[inside])


def test_a_sequence_with_one_value_in_more_than_half_of_the_brain_is_refused() -> None:
    flat = np.where(np.random.default_rng(0).random(SHAPE) < 0.6, 50, brain())
    case = settled({"t1": brain(), "flair": np.where(brain() != 0, flat, 0).astype(np.float32)})
    assert "error: flair: More than half of the brain has the value 50" in messages(case)[0]
    with pytest.raises(BadInputError, match="flair: More than half"):
        case.raise_errors()


def test_a_head_with_its_skull_is_refused_unless_allowed() -> None:
    # An oval cylinder as the field of view cuts heads, 3.5 litres.
    head = np.where((grid()[:2] ** 2).sum(axis=0) < 1, np.random.default_rng(0).normal(100, 15, SHAPE), 0)
    arrays = {"t2": head.astype(np.float32)}
    assert "error: t2: " in messages(settled(arrays))[0]
    assert "look like a head with its skull" in messages(settled(arrays))[0]
    assert messages(settled(arrays, allow_skull=True))[0].startswith("warning: t2: ")


def slab(*radii_mm: float, bone: bool) -> dict[str, np.ndarray]:
    """An ellipsoid, with a dark shell of bone or without, of which the field of view shows the middle 112 mm."""
    places = np.meshgrid(*(4.0 * np.arange(edge) - 2 * (edge - 1) for edge in (44, 52, 28)), indexing="ij")
    distance = sum((place / radius) ** 2 for place, radius in zip(places, radii_mm, strict=True)) ** 0.5
    values = np.random.default_rng(0).normal(100, 15, distance.shape)
    inside = (distance < 1) & ~(bone & (distance > 0.85) & (distance < 0.92))
    return {"t2": np.where(inside, values, 0).astype(np.float32)}


def test_a_head_of_which_the_field_of_view_shows_11_cm_is_refused_and_a_large_brain_is_not() -> None:
    assert messages(settled(slab(72, 93, 100, bone=True)))[0].startswith("error: t2: 2.1 litres of tissue look like")
    assert messages(settled(slab(72, 93, 100, bone=False))) == [
        "warning: t2: The field of view cuts off a part of the brain, or the skull was not removed. Check that the "
        "image shows the complete brain and no skull."
    ]


def test_a_part_of_a_brain_is_refused_unless_allowed() -> None:
    part = {"t2": Volume(brain(), AFFINE @ np.diag([0.6, 0.6, 0.6, 1]))}
    assert "litres of tissue are too little for a brain" in messages(settle(part))[0]
    assert messages(settle(part))[0].startswith("error")
    assert messages(settle(part, allow_partial=True))[0].startswith("warning")


def test_a_brain_that_the_field_of_view_cuts_is_warned_of() -> None:
    cut = settle({"t2": Volume(brain()[:, :, 12:].copy(), AFFINE)})
    assert messages(cut) == [
        "warning: t2: The field of view cuts off a part of the brain, or the skull was not removed. Check that the "
        "image shows the complete brain and no skull."
    ]


def test_brains_at_different_places_and_copies_are_warned_of() -> None:
    moved = settled({"t1": brain(), "t2": brain(1, shift=0.25)})
    assert "The brains in t1 and t2 share only" in messages(moved)[0]
    assert "t2: The volume has exactly the same voxels as t1" in messages(settled({"t1": brain(), "t2": brain()}))[0]


@pytest.mark.parametrize("stored", ["LPS", "PIR", "SRA"])
def test_sequences_and_labels_follow_one_grid_rule_exactly_where_voxels_only_move(stored: str) -> None:
    """Label maps stored LPS over images stored RAS must not train mirrored."""

    def as_stored(array: np.ndarray) -> Volume:
        image = nib.Nifti1Image(array, AFFINE)
        target = nib.orientations.axcodes2ornt(stored)
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target)
        )
        return Volume(np.asarray(turned.dataobj), turned.affine)

    case = settle(
        {"t1": Volume(brain(), AFFINE), "flair": as_stored(brain(1))},
        label_map=as_stored(labels()),
        label_schemes=("brats2023",),
    )
    assert case.findings == ()
    np.testing.assert_array_equal(case.arrays["flair"], brain(1))
    np.testing.assert_array_equal(case.labels, labels())


def test_a_label_map_of_the_images_shape_that_lies_elsewhere_is_not_taken_as_it_is() -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 8
    case = settled({"t1": brain()}, label_map=Volume(labels(), moved), label_schemes=("brats2023",))
    assert case.interpolated == (LABEL_MAP,)
    moved = (
        "label map: The grid differs from the grid of t1 (centres 8 mm apart). The volume was resampled to the grid "
        "of t1 by nearest-neighbour interpolation."
    )
    assert moved in messages(case)[0]
    # Two voxels of 4 mm along the first axis, which runs to the left.
    np.testing.assert_array_equal(case.labels[:-2], labels()[2:])


def test_a_label_map_beside_the_brain_or_of_another_scheme_is_found() -> None:
    away = np.roll(labels(), 14, axis=2)
    case = settled({"t1": brain()}, label_map=Volume(away, AFFINE), label_schemes=("brats2023",))
    assert "is outside the brain" in messages(case)[0]
    bright = brain(1) + 60 * (labels() == 3)
    swapped = LABEL_SCHEMES["msd"].encode(LABEL_SCHEMES["brats2023"].decode(labels()))
    arrays = {"t1": brain(), "t1c": bright.astype(np.float32)}
    assert not settled(arrays, label_map=Volume(labels(), AFFINE), label_schemes=("brats2023",)).findings
    # As Decathlon numbers them, label 3 is ET in both, but 1 and 2 are swapped; in ped2024 label 1 is ET.
    wrong = settled(arrays, label_map=Volume(swapped, AFFINE), label_schemes=("ped2024",))
    assert "is not clearly brighter on t1c than on t1" in messages(wrong)[0]


def test_volumes_that_do_not_overlap_are_refused_and_their_distance_is_that_of_their_centres() -> None:
    far = AFFINE.copy()
    far[0, 3] += 500
    case = settle({"t1": Volume(brain(), AFFINE), "t2": Volume(brain(1), far)})
    assert messages(case) == [
        "error: t2: The volume does not overlap with t1: the centres of the two volumes are 500 mm apart. Register "
        "the volumes to each other first."
    ]
    # Twice the voxels of half the size over the same field: nothing is apart.
    fine = np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] = -0.25
    same = settle(
        {"t1": Volume(brain(), AFFINE), "t2": Volume(brain(1).repeat(2, 0).repeat(2, 1).repeat(2, 2), AFFINE @ fine)}
    )
    assert messages(same) == [
        "warning: t2: The grid differs from the grid of t1 (voxels of 2 x 2 x 2 mm instead of 4 x 4 x 4 mm). "
        "The volume was resampled to the grid of t1 by linear interpolation."
    ]


@pytest.mark.parametrize("is_label_map", [False, True])
def test_resampling_agrees_with_nibabel(is_label_map: bool) -> None:
    angle = np.deg2rad(12)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0, 3], [np.sin(angle), np.cos(angle), 0, -2], [0, 0, 1, 1.5], [0, 0, 0, 1]]
    )
    array = labels() if is_label_map else ndimage.gaussian_filter(np.random.default_rng(0).normal(10, 1, SHAPE), 2)
    reference = Volume(np.zeros((40, 42, 44), np.float32), turn @ AFFINE)
    found = on_grid_of(Volume(array.astype(np.float32), AFFINE), reference, labels=is_label_map)[0].array
    image = nib.Nifti1Image(array.astype(np.float32), AFFINE)
    order = 0 if is_label_map else 1
    expected = resample_from_to(image, (reference.array.shape, reference.affine), order=order).get_fdata()
    # A voxel from the border of the field nibabel fades to zero, which here counts as background.
    inside = ndimage.binary_erosion(expected != 0, iterations=2) if not is_label_map else np.s_[:]
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


def test_a_flood_is_what_scipy_labels() -> None:
    allowed = np.random.default_rng(0).random((20, 22, 24)) > 0.62
    start = np.zeros_like(allowed)
    start[0] = True
    parts, _ = ndimage.label(allowed)
    expected = np.isin(parts, np.unique(parts[0][allowed[0]])) & allowed
    assert 0 < expected.sum() < allowed.sum()
    np.testing.assert_array_equal(flood(start, allowed), expected)


def test_a_meta_tensor_keeps_its_affine() -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    volume = volume_of(MetaTensor(brain()[None], affine=affine), where="t1")
    np.testing.assert_array_equal(volume.affine, affine)
    assert volume.has_geometry
    assert volume.voxel_litres == pytest.approx(12e-6)
    assert volume.array.shape == SHAPE
    assert not isinstance(volume.array, Tensor)


@pytest.mark.skipif(not OPEN_MS.is_dir(), reason="needs the scans of open-ms")
@pytest.mark.parametrize(
    ("patient", "name"),
    [
        ("patient01_study1", "t1"),
        *(
            pytest.param(patient, name, marks=pytest.mark.slow)
            for patient, name in itertools.product(("patient01_study1", "patient12_study1"), ("t1", "t2", "flair"))
        ),
    ],
)
def test_raw_scans_are_refused_as_heads(patient: str, name: str) -> None:
    case = settle({name: volume_of(OPEN_MS / "skull-on" / patient / f"{name}.nii.gz", where=name)})
    with pytest.raises(BadInputError, match="look like a head with its skull"):
        case.raise_errors()


def test_a_volume_of_constant_fills_alone_is_refused() -> None:
    halves = np.where(np.arange(SHAPE[0])[:, None, None] < 18, -0.5, 0.0) * np.ones(SHAPE)
    case = settled({"t1": halves.astype(np.float32)})
    assert messages(case)[-1] == "error: t1: The image shows only constant background. Leave the sequence out."
    assert not case.arrays


def test_a_stated_affine_counts_more_than_an_assumed_one() -> None:
    case = settle({"t1": Volume(brain(), np.eye(4), has_geometry=False), "t1c": Volume(brain(1), AFFINE)})
    assert case.reference == "t1c"
    np.testing.assert_array_equal(case.affine, AFFINE)


def test_what_another_sequence_shows_as_tissue_is_no_rim_of_noise() -> None:
    """Fluid on FLAIR is as dark as noise, and fills the wide sulci of old brains."""
    shell = (brain() != 0) & ~ndimage.binary_erosion(brain() != 0, iterations=3)
    flair = np.where(shell, brain() / 20, brain()).astype(np.float32)
    assert messages(settled({"flair": flair}))[0].endswith("The noise was set to 0.")
    case = settled({"t1": brain(1), "flair": flair})
    assert case.findings == ()
    np.testing.assert_array_equal(case.arrays["flair"], flair)


def test_a_saturated_corner_is_no_background() -> None:
    bright = corner(brain(), 255.0)
    assert not any("background" in message for message in messages(settled({"t1": bright})))


def test_a_case_with_errors_is_not_prepared() -> None:
    bad = settled({"t1": np.zeros(SHAPE, np.float32)})
    with pytest.raises(ValueError, match="All voxels are zero"):
        LoraMoeHgdImageProcessor()(bad)


@pytest.mark.parametrize("content", [b"", b"text", bytes(400)], ids=["empty", "text", "zeros"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy"])
def test_a_damaged_file_is_one_named_error_in_python_too(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=name):
        volume_of(tmp_path / name, where="t1")


def test_an_error_of_a_worker_process_arrives_complete() -> None:
    error = BadInputError("folder", "The names are unclear.", names_unclear=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.finding, str(copy)) == (error.finding, str(error))

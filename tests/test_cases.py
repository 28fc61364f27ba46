"""Reading a case: one grid for all its files, whatever grids they came on, and what is odd is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from small_runs import shipping

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import CaseReading, read_case
from lora_moe_hgd.inference.segment import find_regions as regions_and_probabilities
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume, on_grid_of
from lora_moe_hgd_cli import run

NAMES = ("T1", "T1c", "T2", "FLAIR", "seg")
Change = Callable[[nib.Nifti1Image], nib.Nifti1Image]


def changed(source: Path, target: Path, changes: dict[str, Change]) -> Path:
    """A copy of a case with some of its files changed."""
    shutil.copytree(source, target)
    for name, change in changes.items():
        image = nib.load(source / f"{name}.nii.gz")
        nib.save(
            change(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)), target / f"{name}.nii.gz"
        )
    return target


def stored_as(codes: str) -> Change:
    """The same volume, stored in another orientation."""

    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))

    return change


def turned(degrees: float, axis: int = 2) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn, (first, second) = np.eye(4), [other for other in range(3) if other != axis]
    turn[[first, first, second, second], [first, second, first, second]] = (
        *(np.cos(angle), -np.sin(angle)),
        *(np.sin(angle), np.cos(angle)),
    )
    return turn


def header_turned(degrees: float) -> Change:
    return lambda image: nib.Nifti1Image(np.asarray(image.dataobj), turned(degrees) @ image.affine)


def resampled(spacing_mm: tuple[float, float, float], *, degrees: float = 0) -> Change:
    """The same head on a grid of other voxels about the same centre, its axes turned."""

    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        field_mm = np.array(image.shape) * image.header.get_zooms() + 8
        shape = np.ceil(field_mm / spacing_mm).astype(int)
        affine = turned(degrees) @ np.diag([*spacing_mm, 1.0])
        centre = image.affine @ [*(np.array(image.shape) - 1) / 2, 1]
        affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((shape - 1) / 2)
        labels = image.get_data_dtype() == np.uint8
        nearest, linear = (resample_from_to(image, (shape, affine), order=order) for order in (0, 1))
        values = np.asarray(nearest.dataobj)
        # The brain must not grow by what interpolation adds around it.
        return nearest if labels else nib.Nifti1Image(np.where(values != 0, linear.dataobj, 0), affine)

    return change


def nudged(mm: float) -> Change:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        affine = image.affine.copy()
        affine[0, 3] += mm
        return nib.Nifti1Image(np.asarray(image.dataobj), affine)

    return change


@pytest.fixture(scope="module")
def find_regions():
    network, processor = load_checkpoint("tiny")
    # As coarse as the phantoms: what is promised of grids does not depend on it, and it is faster by far.
    processor.target_spacing_mm = (4.0, 4.0, 4.0)
    return lambda reading: regions_and_probabilities(network, processor, processor(reading.settled))[0]


@pytest.fixture(scope="module")
def source(dummy_root: Path) -> Path:
    return dummy_root / "case_000"


@pytest.fixture(scope="module")
def expected(source: Path, find_regions) -> tuple[CaseReading, np.ndarray]:
    reading = read_case(find_case(source), labels=True).checked(strict=True)
    regions = find_regions(reading)
    assert regions[0].sum() > 100
    return reading, regions


def placed(regions: np.ndarray, like: nib.Nifti1Image, target: nib.Nifti1Image) -> np.ndarray:
    """Regions on another grid."""
    images = [nib.Nifti1Image(region.astype(np.uint8), like.affine) for region in regions]
    return np.stack([np.asarray(resample_from_to(image, target, order=0).dataobj) > 0 for image in images])


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PIR"])
def test_a_case_stored_in_another_orientation_is_segmented_alike(
    tmp_path, source, expected, find_regions, codes
) -> None:
    moved = changed(source, tmp_path / "case", dict.fromkeys(NAMES, stored_as(codes)))
    reading = read_case(find_case(moved), labels=True).checked(strict=True)
    like, regions = expected
    target = reading.images["t1"]
    assert "".join(nib.aff2axcodes(target.affine)) == codes
    np.testing.assert_array_equal(find_regions(reading), placed(regions, like.images["t1"], target))
    np.testing.assert_array_equal(reading.regions, placed(like.regions, like.images["t1"], target))


def test_sequences_in_different_orientations_are_moved_to_the_reference_exactly(tmp_path, source, expected) -> None:
    """As in BraTS-Africa, where some segmentations are LPS and the sequences RAS."""
    codes = dict(zip(("T1c", "T2", "FLAIR", "seg"), ("LPS", "PIR", "ASR", "LPS"), strict=True))
    moved = changed(source, tmp_path / "case", {name: stored_as(code) for name, code in codes.items()})
    reading = read_case(find_case(moved), labels=True).checked(strict=True)
    for name, image in expected[0].images.items():
        np.testing.assert_array_equal(reading.images[name].dataobj, image.dataobj)
        np.testing.assert_array_equal(reading.images[name].affine, image.affine)
    np.testing.assert_array_equal(reading.labels, expected[0].labels)


def test_a_head_that_leans_in_the_scanner_is_segmented_alike(tmp_path, source, expected, find_regions) -> None:
    moved = changed(source, tmp_path / "case", dict.fromkeys(NAMES, header_turned(15)))
    np.testing.assert_array_equal(find_regions(read_case(find_case(moved)).checked(strict=True)), expected[1])


def test_trailing_axes_of_length_one_change_nothing(tmp_path, source, expected) -> None:
    def longer(image):
        return nib.Nifti1Image(np.asarray(image.dataobj)[..., None, None], image.affine)

    reading = read_case(find_case(changed(source, tmp_path / "case", dict.fromkeys(NAMES, longer))), labels=True)
    for name, image in expected[0].images.items():
        np.testing.assert_array_equal(reading.checked(strict=True).images[name].dataobj, image.dataobj)


def test_a_case_on_other_voxels_gives_the_same_segmentation_there(tmp_path, source, expected, find_regions) -> None:
    moved = changed(source, tmp_path / "case", dict.fromkeys(NAMES, resampled((3.0, 3.5, 5.0))))
    reading = read_case(find_case(moved), labels=True).checked(strict=True)
    like, regions = expected
    found = find_regions(reading)
    assert found.shape[1:] == reading.images["t1"].shape != like.images["t1"].shape
    # Voxels of 4 mm, interpolated twice.
    assert dice(found[0], placed(regions, like.images["t1"], reading.images["t1"])[0]) > 0.85


@pytest.mark.parametrize("degrees", [0, 20])
def test_a_sequence_on_another_grid_is_brought_to_the_reference_and_named(
    tmp_path, source, expected, find_regions, degrees: float
) -> None:
    changes = {"FLAIR": resampled((3.0, 3.5, 5.0), degrees=degrees)}
    reading = read_case(find_case(changed(source, tmp_path / "case", changes)))
    assert (reading.reference, reading.interpolated) == ("t1", ["flair"])
    (finding,) = reading.findings
    assert finding.where.name == "FLAIR.nii.gz"
    assert "The grid differs from the grid of t1 (voxels of 3 x 3.5 x 5 mm instead of 4 x 4 x 4 mm)" in str(finding)
    like, regions = expected
    np.testing.assert_array_equal(reading.images["flair"].affine, like.images["t1"].affine)
    flair, original = (np.asarray(images["flair"].dataobj) for images in (reading.images, like.images))
    assert np.corrcoef(flair.ravel(), original.ravel())[0, 1] > 0.97
    assert dice(find_regions(reading)[0], regions[0]) > 0.85
    with pytest.raises(BadInputError, match="The grid differs from the grid of t1"):
        reading.checked(strict=True)


@pytest.mark.parametrize("spacing_mm", [0.7, 2.5])
def test_interpolation_keeps_the_border_of_the_brain_as_bright_as_it_is(spacing_mm: float) -> None:
    brain = np.zeros((20, 24, 28), np.float32)
    brain[4:16, 5:19, 6:22] = 100
    target = Volume(np.zeros((30, 34, 38), np.float32), np.diag([*[spacing_mm] * 3, 1.0]))
    placed = on_grid_of(Volume(brain, np.eye(4)), target)[0].array
    np.testing.assert_allclose(placed[placed != 0], 100, rtol=1e-5)
    assert np.count_nonzero(placed) * spacing_mm**3 == pytest.approx(np.count_nonzero(brain), rel=0.15)


def test_the_reference_can_be_chosen(tmp_path, source) -> None:
    case = find_case(changed(source, tmp_path / "case", {"FLAIR": resampled((3.0, 3.5, 5.0))}))
    reading = read_case(case, reference="flair")
    assert reading.interpolated == ["t1", "t1c", "t2"]
    assert {image.shape for image in reading.images.values()} == {nib.load(case.images["flair"]).shape}
    with pytest.raises(BadInputError, match="The reference sequence t2 is missing"):
        read_case(case.only(["t1"]), reference="t2").checked()


def test_headers_that_differ_by_rounding_are_one_grid_and_what_differs_is_said(tmp_path, source, expected) -> None:
    reading = read_case(find_case(changed(source, tmp_path / "case", {"T2": nudged(0.02)}))).checked()
    (finding,) = reading.findings
    assert "The affine places the voxels up to 0.02 mm away from the voxels of t1" in finding.message
    np.testing.assert_array_equal(reading.images["t2"].dataobj, expected[0].images["t2"].dataobj)
    assert read_case(find_case(changed(source, tmp_path / "far", {"T2": nudged(2)}))).interpolated == ["t2"]


def test_the_result_has_the_references_grid_and_the_report_names_what_was_interpolated(
    tmp_path, source, small_weights, capsys
) -> None:
    case = changed(source, tmp_path / "case", {"FLAIR": resampled((3.0, 3.5, 5.0)), "T1c": stored_as("LPS")})
    files = [f"--{name}={case / file}" for name, file in (("flair", "FLAIR.nii.gz"), ("t1c", "T1c.nii.gz"))]
    with shipping(small_weights):
        run("segment", [*files, "--out-path", str(tmp_path / "out"), "--label-scheme", "ped2024"])
    result, like = nib.load(tmp_path / "out/seg.nii.gz"), nib.load(case / "T1c.nii.gz")
    assert result.shape == like.shape
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(result.header[field], like.header[field])
    assert set(np.unique(result.dataobj)) <= {0, 1, 2, 4}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["reference"], report["interpolated"]) == ("t1c", ["flair"])
    assert report["warnings"][0].startswith("flair: The grid differs from the grid of t1c")
    assert "warning: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("segment", [*files, "--out-path", str(tmp_path / "strict"), "--strict"])
    assert not (tmp_path / "strict").exists()

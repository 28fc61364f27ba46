"""DICOM segmentations lie where the label map does, read with highdicom, and with pydicom by the standard alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicoms import PLANES, ball, in_plane, study, turned, write_enhanced, write_series
from highdicom.seg import segread

from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.scans.convert import convert
from lora_moe_hgd.scans.dicom_seg import write_dicom_seg
from lora_moe_hgd.scans.studies import read_studies

LABELS = ("NCR", "ED", "ET")


# Centre in millimetres (RAS) and volume in millilitres by the name of a segment.
Found = dict[str, tuple[np.ndarray, float]]


def by_pydicom(path: Path) -> Found:
    """What the segments are, frame by frame."""
    found = pydicom.dcmread(path)
    frames = found.pixel_array.reshape(-1, found.Rows, found.Columns)
    names = {int(segment.SegmentNumber): segment.SegmentLabel.split(":")[0] for segment in found.SegmentSequence}
    shared = found.SharedFunctionalGroupsSequence[0]
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    between = float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices)
    along, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    places: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    for frame, groups in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        name = names[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        places[name].append(position + columns[:, None] * spacing[1] * along + rows[:, None] * spacing[0] * down)
    voxel_ml = spacing[0] * spacing[1] * between / 1000
    return {
        name: (np.concatenate(found).mean(axis=0) * [-1, -1, 1], sum(map(len, found)) * voxel_ml)
        for name, found in places.items()
    }


def by_highdicom(path: Path) -> Found:
    """What the segments are, as a volume."""
    segmentation = segread(path)
    volume = segmentation.get_volume()
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    found = {}
    for number in segmentation.segment_numbers:
        index = np.argwhere(volume.array[..., number - 1])
        centre = (volume.affine @ [*index.mean(axis=0), 1])[:3] * [-1, -1, 1]
        found[segmentation.get_segment_description(number).segment_label.split(":")[0]] = (
            centre,
            len(index) * voxel_ml,
        )
    return found


def by_nibabel(path: Path) -> Found:
    """What the labels are."""
    image = nib.load(path)
    labels = np.asarray(image.dataobj)
    return {
        name: (
            (image.affine @ [*np.argwhere(labels == number).mean(axis=0), 1])[:3],
            np.count_nonzero(labels == number) * abs(np.linalg.det(image.affine[:3, :3])) / 1000,
        )
        for number, name in enumerate(LABELS, start=1)
    }


def tumour(array: np.ndarray) -> np.ndarray:
    """WT, TC and ET about the bright spot of a ball."""
    whole = array > 0.6 * array.max()
    index = np.argwhere(whole)
    core = whole.copy()
    core[: int(index[:, 0].mean())] = False
    enhancing = core.copy()
    enhancing[:, : int(index[:, 1].mean())] = False
    return np.stack([whole, core, enhancing])


def written(folder: Path) -> tuple[Path, Path]:
    """Label map and DICOM segmentation of the only series in a folder, both on its slices."""
    (row,), _ = read_studies(folder)
    volume, _ = convert(row, "t2", folder)
    regions = tumour(volume.array)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in row.files]
    paths = folder / "seg.nii.gz", folder / "seg.dcm"
    nib.save(nib.Nifti1Image(LABEL_SCHEMES["brats2023"].encode(regions), volume.affine), paths[0])
    # Headers come in any order.
    headers = [headers[index] for index in np.random.default_rng(0).permutation(len(headers))]
    write_dicom_seg(paths[1], regions, volume.affine, headers, algorithm="test")
    return paths


def agree(folder: Path, *, within_mm: float = 0.01, within: float = 1e-4) -> None:
    """Check that both files say the same about each segment, for every reader."""
    label_map, segmentation = written(folder)
    expected = by_nibabel(label_map)
    for reader in (by_highdicom, by_pydicom):
        found = reader(segmentation)
        assert set(found) == set(LABELS), reader
        for name, (centre, volume_ml) in expected.items():
            assert np.abs(found[name][0] - centre).max() < within_mm, (reader, name)
            assert found[name][1] == pytest.approx(volume_ml, rel=within), (reader, name)


@pytest.mark.parametrize(("oblique", "descending"), itertools.product((False, True), repeat=2))
@pytest.mark.parametrize("plane", PLANES)
def test_a_segmentation_lies_where_the_label_map_does(
    plane: str, oblique: bool, descending: bool, tmp_path: Path
) -> None:
    image = ball((18, 20, 16), (6.0, 5.5, 7.0))
    image = in_plane(turned(image) if oblique else image, PLANES[plane])
    write_series(tmp_path, image, "t2", number=1, shared=study(), descending=descending)
    agree(tmp_path)


@pytest.mark.parametrize("plane", ["transverse", "sagittal", "coronal"])
def test_a_segmentation_of_an_enhanced_file_lies_where_the_label_map_does(plane: str, tmp_path: Path) -> None:
    image = in_plane(turned(ball((18, 20, 16), (6.0, 5.5, 7.0))), PLANES[plane])
    write_enhanced(tmp_path, image, "t2", number=1, shared=study())
    agree(tmp_path)


def test_a_segmentation_over_a_series_that_lacks_slices_lies_where_the_label_map_does(tmp_path: Path) -> None:
    image = in_plane(turned(ball((24, 26, 22), (5.0, 4.0, 5.0))), PLANES["sagittal"])
    # Slices beside the tumour: those that hold it could not be compared.
    write_series(tmp_path, image, "t2", number=1, shared=study(), leave_out=(2, 3))
    agree(tmp_path, within_mm=0.5, within=0.02)


def test_a_segmentation_says_what_it_is_and_belongs_to_its_study(tmp_path: Path) -> None:
    shared = study()
    write_series(tmp_path, in_plane(ball(), "LPS"), "t2", number=1, shared=shared)
    found = pydicom.dcmread(written(tmp_path)[1])
    assert found.StudyInstanceUID == shared["StudyInstanceUID"]
    assert found.Modality == "SEG"
    assert [segment.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for segment in found.SegmentSequence]
    assert found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "lora-moe-hgd test"
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 16
    # Private tags of the source may name anything.
    assert not [element for element in found if element.tag.is_private]


@pytest.mark.parametrize("value", [None, "", "as the scanner likes"], ids=["missing", "empty", "invalid"])
def test_a_study_without_names_and_dates_gets_a_segmentation(value: str | None, tmp_path: Path) -> None:
    dates = ("PatientBirthDate", "StudyDate", "StudyTime", "PatientSex")
    names = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
    paths = write_series(tmp_path, in_plane(ball(), "LPS"), "t2", number=1, shared=study())
    for path in paths:
        header = pydicom.dcmread(path)
        for name in (*dates, *names) if not value else dates:
            header.pop(name)
            if value is not None:
                header.add(pydicom.DataElement(name, "SH", value))
        header.save_as(path)
    found = pydicom.dcmread(written(tmp_path)[1])
    assert not any(found[name].value for name in dates)
    assert found.StudyInstanceUID == pydicom.dcmread(paths[0]).StudyInstanceUID


def test_a_segmentation_without_tumour_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in", in_plane(ball(), "LPS"), "t2", number=1, shared=study())
    (row,), _ = read_studies(tmp_path / "in")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in row.files]
    with pytest.raises(ValueError, match="No slice of the series contains a voxel of the tumour"):
        write_dicom_seg(tmp_path / "a", np.zeros((3, 4, 4, 4), bool), np.eye(4), headers, algorithm="test")

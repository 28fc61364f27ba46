"""DICOM segmentations, read back with pydicom alone, lie where the label map does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import PLANES, ball, in_plane, study, turned, write_enhanced, write_series

from lora_moe_hgd.scans.convert import convert
from lora_moe_hgd.scans.dicom_seg import write_dicom_seg
from lora_moe_hgd.scans.studies import read_studies

LABELS = ("NCR", "ED", "ET")


def read_back(path: Path) -> dict[str, tuple[np.ndarray, float]]:
    """Centroid in RAS and volume in millilitres of each segment, by the standard's words alone."""
    found = pydicom.dcmread(path)
    frames = np.atleast_3d(found.pixel_array)
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


def tumour(array: np.ndarray) -> np.ndarray:
    """WT, TC and ET about the bright spot of a ball."""
    whole = array > 0.6 * array.max()
    index = np.argwhere(whole)
    core = whole.copy()
    core[: int(index[:, 0].mean())] = False
    enhancing = core.copy()
    enhancing[:, : int(index[:, 1].mean())] = False
    return np.stack([whole, core, enhancing])


def check(folder: Path, path: Path) -> None:
    (row,), _ = read_studies(folder)
    volume, _ = convert(row, "t2", folder)
    regions = tumour(volume.array)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in row.files]
    write_dicom_seg(path, regions, volume.affine, headers[::-1], algorithm="test")
    found = read_back(path)
    classes = dict(zip(LABELS, (regions[1] & ~regions[2], regions[0] & ~regions[1], regions[2]), strict=True))
    assert set(found) == set(LABELS)
    for name, mask in classes.items():
        centre = (volume.affine @ [*np.argwhere(mask).mean(axis=0), 1])[:3]
        assert np.abs(found[name][0] - centre).max() < 0.01
        assert found[name][1] == pytest.approx(mask.sum() * volume.voxel_litres * 1000, rel=1e-4)


@pytest.mark.parametrize(("plane", "oblique"), [*((plane, True) for plane in PLANES), ("transverse", False)])
def test_a_segmentation_lies_where_the_label_map_does(plane: str, oblique: bool, tmp_path: Path) -> None:
    image = ball((18, 20, 16), (6.0, 5.5, 7.0))
    image = in_plane(turned(image) if oblique else image, PLANES[plane])
    write_series(tmp_path / "in", image, "t2", number=1, shared=study(), descending=oblique)
    check(tmp_path / "in", tmp_path / "seg.dcm")


def test_a_segmentation_of_an_enhanced_file_lies_where_the_label_map_does(tmp_path: Path) -> None:
    image = in_plane(turned(ball((18, 20, 16), (6.0, 5.5, 7.0))), "PIL")
    write_enhanced(tmp_path / "in", image, "t2", number=1, shared=study())
    check(tmp_path / "in", tmp_path / "seg.dcm")


def test_a_segmentation_says_what_it_is_and_belongs_to_its_study(tmp_path: Path) -> None:
    shared = study()
    write_series(tmp_path / "in", in_plane(ball(), "LPS"), "t2", number=1, shared=shared)
    check(tmp_path / "in", tmp_path / "seg.dcm")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert found.StudyInstanceUID == shared["StudyInstanceUID"]
    assert found.Modality == "SEG"
    assert [segment.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for segment in found.SegmentSequence]
    assert found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "lora-moe-hgd test"
    assert len(found.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 16
    # Private tags of the source may name anything.
    assert not [element for element in found if element.tag.is_private]


def test_a_segmentation_without_tumour_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in", in_plane(ball(), "LPS"), "t2", number=1, shared=study())
    (row,), _ = read_studies(tmp_path / "in")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in row.files]
    with pytest.raises(ValueError, match="No tumour"):
        write_dicom_seg(tmp_path / "a", np.zeros((3, 4, 4, 4), bool), np.eye(4), headers, algorithm="test")

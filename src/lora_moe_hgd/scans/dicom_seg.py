"""Write the label map as a DICOM segmentation that has the slices of the reference series.

The header of each slice gives the position of each pixel. The label map is sampled at these positions. The order and
direction of the slices therefore need no special treatment.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, PatientSexValues
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from ..files import replacing

# Label and SNOMED CT code of each segment. Segments do not overlap: NCR is the part of the core without enhancement.
SEGMENTS: tuple[tuple[str, Code], ...] = (
    ("NCR: core without enhancement", codes.SCT.Necrosis),
    ("ED: oedema", codes.SCT.Edema),
    ("ET: enhancing tumour", codes.SCT.Neoplasm),
)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Series number of the segmentation, which is higher than those of scanners.
SERIES_NUMBER = 9000
MAKER = "lora-moe-hgd"
# Elements that highdicom copies from the source, and that may be empty by the standard (type 2), with a check of the
# value. Anonymised files often lack some of these elements, and some scanners write values that the standard forbids.
MAY_BE_EMPTY: dict[str, Callable[[Any], object]] = {
    "PatientName": str,
    "PatientID": str,
    "PatientBirthDate": DA,
    "PatientSex": PatientSexValues,
    "StudyID": str,
    "StudyDate": DA,
    "StudyTime": TM,
    "AccessionNumber": str,
    "SliceThickness": float,
}


def write_dicom_seg(
    path: Path, regions: np.ndarray, affine: np.ndarray, headers: Sequence[Dataset], *, algorithm: str
) -> None:
    """Write a segmentation with the segments NCR, ED and ET.

    Args:
        path: Path of the DICOM file, which is written atomically.
        regions: Masks of the nested regions WT, TC and ET, `(3, D, H, W)` bool.
        affine: Affine of the regions' grid, voxel to millimetre in RAS, `(4, 4)`.
        headers: Headers of the source series without pixels: one for each slice, or the single header of an enhanced
            file.
        algorithm: Name of the checkpoint, which the DICOM file names as the algorithm.

    Raises:
        ValueError: If no slice contains a voxel of the tumour. The segmentation would be empty.
    """
    whole, core, enhancing = regions
    classes = np.stack([core & ~enhancing, whole & ~core, enhancing], axis=-1)
    # Sorted here, because highdicom matches frames to headers by their order.
    sources = sorted(map(_completed, headers), key=_height) if len(headers) > 1 else [_completed(headers[0])]
    frames = np.stack([_sampled(classes, affine, matrix, shape) for matrix, shape in _slices(sources)])
    present = [number for number in range(len(SEGMENTS)) if frames[..., number].any()]
    if not present:
        raise ValueError("No slice of the series contains a voxel of the tumour.")
    identification = AlgorithmIdentificationSequence(
        name=f"{MAKER} {algorithm}", version=version("lora-moe-hgd"), family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label=SEGMENTS[index][0],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=SEGMENTS[index][1],
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=identification,
            tracking_uid=generate_uid(),
            tracking_id=SEGMENTS[index][0].split(":")[0],
            anatomic_regions=[codes.SCT.Brain],
        )
        for number, index in enumerate(present, start=1)
    ]
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=frames[..., present].astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=version("lora-moe-hgd"),
        device_serial_number="0",
        series_description="Brain tumour segmentation, research use only",
        content_label="BRAIN_TUMOUR",
        omit_empty_frames=True,
    )
    with replacing(path) as scratch:
        segmentation.save_as(scratch)


def _completed(header: Dataset) -> Dataset:
    """Copy of a header in which the elements of `MAY_BE_EMPTY` are empty if their values are missing or invalid."""
    # A shallow copy would share the elements with the header.
    completed = copy.deepcopy(header)
    for name, kind in MAY_BE_EMPTY.items():
        value = header.get(name)
        if value not in (None, ""):
            try:
                kind(value)
                continue
            except ValueError:
                pass
        setattr(completed, name, None)
    return completed


def _slices(sources: Sequence[Dataset]) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """For each slice: the matrix `(4, 3)` from (column, row, 1) to millimetres (RAS), and (rows, columns)."""
    slices = []
    for source in sources:
        shape = (int(source.Rows), int(source.Columns))
        if "PerFrameFunctionalGroupsSequence" not in source:
            matrix = _matrix(source.ImageOrientationPatient, source.PixelSpacing, source.ImagePositionPatient)
            slices.append((matrix, shape))
            continue
        shared = source.SharedFunctionalGroupsSequence[0]
        for frame in source.PerFrameFunctionalGroupsSequence:
            parts = [
                (frame if group in frame else shared)[group].value[0]
                for group in ("PlaneOrientationSequence", "PixelMeasuresSequence", "PlanePositionSequence")
            ]
            matrix = _matrix(parts[0].ImageOrientationPatient, parts[1].PixelSpacing, parts[2].ImagePositionPatient)
            slices.append((matrix, shape))
    return slices


def _matrix(cosines: Sequence[float], spacing: Sequence[float], position: Sequence[float]) -> np.ndarray:
    """Matrix `(4, 3)` from (column, row, 1) to millimetres in RAS, by equation C.7.6.2.1-1 of DICOM part 3."""
    along, down = np.array(cosines, dtype=float).reshape(2, 3)
    matrix = np.zeros((4, 3))
    # The first number of the spacing is the distance between rows.
    matrix[:3] = np.column_stack(
        [along * float(spacing[1]), down * float(spacing[0]), np.array(position, dtype=float)]
    )
    matrix[3, 2] = 1
    return TO_RAS @ matrix


def _height(source: Dataset) -> float:
    """Position of a slice along its normal, in millimetres."""
    along, down = np.array(source.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return float(np.array(source.ImagePositionPatient, dtype=float) @ np.cross(along, down))


def _sampled(classes: np.ndarray, affine: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values of `classes` at the pixels of a slice, `(rows, columns, C)` bool.

    A pixel gets the value of the nearest voxel of `classes`, `(D, H, W, C)`, or false if it lies outside this grid.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    index = np.rint((np.linalg.inv(affine) @ matrix @ pixels)[:3]).astype(int)
    inside = ((index >= 0) & (index < np.array(classes.shape[:3])[:, None])).all(axis=0)
    result = np.zeros((rows.size, classes.shape[3]), dtype=bool)
    result[inside] = classes[tuple(index[:, inside])]
    return result.reshape(*shape, classes.shape[3])

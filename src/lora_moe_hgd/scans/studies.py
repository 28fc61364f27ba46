"""List the patients, studies and series in a folder of DICOM files.

The list leaves out the fields with the name, number and date of birth of a patient. Patients are distinguished by a
digest of these fields, which is never written to a file.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from ..files import counted
from ..model.findings import BadInputError
from .deflated import inflated, is_deflated
from .raw import files_below, is_dicom
from .series import Acquisition, Series

# Elements that are read from a header.
KEYWORDS = [
    "SOPClassUID",
    "Modality",
    "StudyInstanceUID",
    "StudyDate",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "ImageType",
    "ScanningSequence",
    "AngioFlag",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "ContrastBolusAgent",
    "DiffusionBValue",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "SamplesPerPixel",
    "PixelSpacing",
    "SliceThickness",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# Item at the end of compressed pixels, and the largest distance in bytes from its start to the end of the file.
LAST_ITEM, LAST_BYTES = b"\xfe\xff\xdd\xe0\0\0\0\0", 4096
# Slices of one stack have equal cosines up to the rounding of the header.
SAME_COSINES = 1e-2
SAME_POSITION_MM = 0.05
# A gap between slices is uneven if it differs from the median gap by more than this share.
UNEVEN = 0.1
OBLIQUE_DEGREES = 20.0
# Words of the patient's name with fewer letters are not blacked out, because short words, such as initials, are also
# parts of other words. The second limit is for wide letters, such as Chinese ones.
MIN_NAME, MIN_WIDE_NAME = 3, 2


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: Dataset
    cosines: tuple[float, ...] | None
    position: tuple[float, ...] | None
    echo_ms: float | None
    spacing: tuple[float, ...]
    cut_off: bool


def read_studies(folder: Path) -> tuple[list[Series], int]:
    """List the series of all DICOM files below a folder. Also return the number of files that cannot be read.

    Raises:
        BadInputError: If there is no DICOM file.
    """
    slices: list[_Slice] = []
    unreadable, directories, found = 0, 0, 0
    for path in files_below(folder):
        if not is_dicom(path):
            continue
        found += 1
        try:
            with BytesIO(inflated(path)) if is_deflated(path) else path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=KEYWORDS)
                cut_off = _is_cut_off(file, header, size - file.tell())
            if header.file_meta.get("MediaStorageSOPClassUID") == MEDIA_DIRECTORY:
                directories += 1
                continue
            if "SeriesInstanceUID" not in header:
                unreadable += 1
                continue
            slices += _slices(path, header, cut_off=cut_off)
        # pydicom raises many kinds of errors for invalid bytes. Each of them means that the file cannot be read.
        except Exception:
            unreadable += 1
    if not found:
        raise BadInputError(folder, "No DICOM file was found in this folder or below. Give the folder of a study.")
    if directories == found:
        raise BadInputError(
            folder,
            "The files that the DICOMDIR lists are missing. Copy the DICOMDIR together with these files.",
        )
    stacks = [stack for part in _by_series(slices) for stack in _stacks(part)]
    rows = sorted((_series(stack) for stack in stacks), key=_row_order)
    return [replace(row, number=number) for number, row in enumerate(rows, start=1)], unreadable


def choose_study(series: Sequence[Series], wanted: str | None, *, where: Path) -> list[Series]:
    """Return the series of one study. If there are several studies, `wanted` is the number or UID of one study.

    Raises:
        BadInputError: If there are several studies or patients and `wanted` is `None`, or if there is no such study.
    """
    studies = list(dict.fromkeys(row.study for row in series))
    patients = list(dict.fromkeys(row.patient for row in series))
    lines = []
    for number, study in enumerate(studies, start=1):
        rows = [row for row in series if row.study == study]
        owner = f", patient {patients.index(rows[0].patient) + 1}" if len(patients) > 1 else ""
        lines.append(f"{number}: {shown_date(rows[0].date)}, {len(rows)} series{owner}")
    listing = "; ".join(lines)
    if wanted is not None:
        chosen = studies[int(wanted) - 1] if wanted.isdecimal() and 0 < int(wanted) <= len(studies) else wanted
        if chosen not in studies:
            raise BadInputError(where, f"There is no study {wanted}. Choose a study with --study NUMBER: {listing}.")
        return [row for row in series if row.study == chosen]
    if len(patients) > 1:
        raise BadInputError(
            where, f"The images are of {len(patients)} patients. Choose a study with --study NUMBER: {listing}."
        )
    if len(studies) > 1:
        raise BadInputError(where, f"There are {len(studies)} studies. Choose a study with --study NUMBER: {listing}.")
    return list(series)


def shown_date(date: str) -> str:
    """Write the date of a DICOM header with hyphens.

    Example:
        >>> shown_date("20260331"), shown_date("")
        ('2026-03-31', 'no date')
    """
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}" if len(date) == 8 and date.isdecimal() else "no date"


def unreadable_files(count: int) -> str:
    """Warning about DICOM files that cannot be read."""
    return (
        f"{counted(count, 'DICOM file')} cannot be read. If the study was not copied completely, copy the study again."
    )


def case_id_of(study: str) -> str:
    """Name of a case: the beginning of a digest of the study's UID, which does not reveal the patient."""
    return f"study-{hashlib.sha256(study.encode()).hexdigest()[:12]}"


def _slices(path: Path, header: Dataset, *, cut_off: bool) -> list[_Slice]:
    """The slices of a DICOM file: one slice, or all slices of an enhanced file, which has several frames."""
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        cosines = _numbers(header.get("ImageOrientationPatient"), 6)
        position = _numbers(header.get("ImagePositionPatient"), 3)
        spacing = _numbers(header.get("PixelSpacing"), 2) or ()
        thickness = _number(header.get("SliceThickness"))
        spacing = (*spacing, thickness) if spacing and thickness else spacing
        return [_Slice(path, header, cosines, position, _number(header.get("EchoTime")), spacing, cut_off)]
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or [Dataset()]))
    found = []
    for frame in frames:
        values = [
            _nested(frame, shared, group, keyword)
            for group, keyword in (
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("MREchoSequence", "EffectiveEchoTime"),
                ("PixelMeasuresSequence", "PixelSpacing"),
                ("PixelMeasuresSequence", "SliceThickness"),
            )
        ]
        spacing = (*(_numbers(values[3], 2) or ()), _number(values[4]) or 1.0)
        cosines, position = _numbers(values[0], 6), _numbers(values[1], 3)
        found.append(_Slice(path, header, cosines, position, _number(values[2]), spacing, cut_off))
    timing = ("MRTimingAndRelatedParametersSequence", "RepetitionTime")
    inversion = _nested(frames[0], shared, "MRModifierSequence", "InversionTimes")
    header.RepetitionTime = _number(_nested(frames[0], shared, *timing))
    header.InversionTime = _number(inversion[0] if isinstance(inversion, Sequence) and inversion else inversion)
    return found


def _nested(frame: Dataset, shared: Dataset, group: str, keyword: str) -> Any:
    """Value in a functional group of one frame, or in the group that all frames share; `None` if neither exists."""
    for place in (frame, shared):
        items = place.get(group)
        if items:
            return items[0].get(keyword)
    return None


def _by_series(slices: Iterable[_Slice]) -> list[list[_Slice]]:
    series: dict[str, list[_Slice]] = defaultdict(list)
    for part in slices:
        series[str(part.header.SeriesInstanceUID)].append(part)
    return list(series.values())


def _stacks(series: Sequence[_Slice]) -> list[list[_Slice]]:
    """Group the slices of a series by orientation, echo time and size."""
    stacks: list[list[_Slice]] = []
    for part in series:
        stack = next((stack for stack in stacks if _belong_together(stack[0], part)), None)
        if stack is None:
            stacks.append([part])
        else:
            stack.append(part)
    return stacks


def _belong_together(first: _Slice, second: _Slice) -> bool:
    if (first.cosines is None) != (second.cosines is None) or first.echo_ms != second.echo_ms:
        return False
    if any(first.header.get(name) != second.header.get(name) for name in ("Rows", "Columns")):
        return False
    if first.cosines is None or second.cosines is None:
        return True
    return max(abs(a - b) for a, b in zip(first.cosines, second.cosines, strict=True)) < SAME_COSINES


def _series(stack: Sequence[_Slice]) -> Series:
    first = stack[0]
    header = first.header
    heights = np.zeros(len(stack))
    plane, spacing = "none", (1.0, 1.0, 1.0)
    placed = first.cosines is not None and all(part.position is not None for part in stack)
    if placed:
        normal = _normal(first.cosines or ())
        heights = np.array([part.position for part in stack]) @ normal
        plane = _plane(normal)
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    steps = steps[steps > SAME_POSITION_MM]
    count = len(steps) + 1
    usual = float(np.median(steps)) if len(steps) else (first.spacing[2] if len(first.spacing) > 2 else 1.0)
    if len(first.spacing) >= 2:
        spacing = (first.spacing[1], first.spacing[0], usual)
    columns, rows = (int(header.get(name, 0) or 0) for name in ("Columns", "Rows"))
    files = tuple(dict.fromkeys(stack[index].path for index in order))
    return Series(
        number=int(_number(header.get("SeriesNumber")) or 0),
        uid=str(header.SeriesInstanceUID),
        study=str(header.get("StudyInstanceUID", "")),
        patient=_patient(header),
        date=str(header.get("StudyDate", "") or ""),
        files=files,
        positions=tuple(tuple(stack[index].position or ()) for index in order) if placed else (),
        cosines=first.cosines or (),
        acquisition=_acquisition(first),
        shape=(columns, rows, count if rows else 0),
        spacing_mm=spacing,
        plane=plane,
        volumes=math.ceil(len(stack) / count) if placed else 1,
        gaps=int(np.count_nonzero(np.abs(steps - usual) > UNEVEN * usual)),
        cut_off=len({part.path for part in stack if part.cut_off}),
    )


def _acquisition(part: _Slice) -> Acquisition:
    header = part.header
    return Acquisition(
        modality=str(header.get("Modality", "") or ""),
        description=_without_patient(
            _text(header.get("SeriesDescription")) or _text(header.get("ProtocolName")), header
        ),
        image_type=_words(header.get("ImageType")),
        scanning=_words(header.get("ScanningSequence")),
        echo_ms=part.echo_ms,
        repetition_ms=_number(header.get("RepetitionTime")),
        inversion_ms=_number(header.get("InversionTime")) or None,
        agent=_text(header.get("ContrastBolusAgent")),
        angiography=header.get("AngioFlag") == "Y",
        diffusion=header.get("DiffusionBValue") is not None,
        is_secondary=str(header.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7"),
    )


def _without_patient(text: str, header: Dataset) -> str:
    """Black out the words of the patient's name and number in `text`, because some sites write them into any field."""
    words = re.split(r"[\^=\s,]+", f"{header.get('PatientName', '')} {header.get('PatientID', '')}")
    for word in words:
        is_wide = all(unicodedata.east_asian_width(letter) in "WF" for letter in word)
        if len(word) >= (MIN_WIDE_NAME if is_wide else MIN_NAME):
            text = re.sub(re.escape(word), "***", text, flags=re.IGNORECASE)
    return text


def _patient(header: Dataset) -> str:
    """Digest of the patient's number (DICOM `PatientID`), or of name and date of birth if there is no number."""
    number = str(header.get("PatientID", "") or "").strip()
    parts = [number] if number else [str(header.get(name, "") or "") for name in ("PatientName", "PatientBirthDate")]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()


def _is_cut_off(file: BinaryIO, header: Dataset, left: int) -> bool:
    """Whether pixels are missing: an uncompressed file is too short, or a compressed file has no end marker.

    Args:
        file: Open file at the beginning of its pixels, or at its end if it has no pixels.
        header: Header of the file.
        left: Number of bytes from the position of `file` to its end.
    """
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not header.get("Rows"):
        return False
    if syntax is not None and syntax.is_compressed:
        file.seek(max(0, left - LAST_BYTES), os.SEEK_CUR)
        return LAST_ITEM not in file.read()
    # Tag, value representation (VR) and length come before the pixels. Implicit syntaxes leave out the VR.
    left -= 8 if syntax is None or syntax.is_implicit_VR else 12
    values = [int(header.get(name, 1) or 1) for name in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")]
    return left < math.prod(values) * int(header.get("BitsAllocated", 8) or 8) // 8


def _normal(cosines: Sequence[float]) -> np.ndarray:
    normal = np.cross(np.array(cosines[:3]), np.array(cosines[3:]))
    return normal / max(float(np.linalg.norm(normal)), 1e-6)


def _plane(normal: np.ndarray) -> str:
    """Name of the plane of a stack of slices whose normal is the unit vector `normal` (LPS).

    Example:
        >>> _plane(np.array([0.0, -0.1, 0.99]))
        'transverse'
    """
    axis = int(np.abs(normal).argmax())
    turned = math.degrees(math.acos(min(1.0, float(abs(normal[axis])))))
    return ("sagittal", "coronal", "transverse")[axis] + (" oblique" if turned > OBLIQUE_DEGREES else "")


def _row_order(row: Series) -> tuple[Any, ...]:
    return (row.date, row.study, row.number, row.acquisition.description, row.uid, row.acquisition.echo_ms or 0.0)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Convert `values` to `count` finite numbers; `None` if that is impossible."""
    try:
        numbers = tuple(_number(value) for value in values)
    except TypeError:
        return None
    if len(numbers) != count:
        return None
    return tuple(number for number in numbers if number is not None) if None not in numbers else None


def _text(value: Any) -> str:
    """Convert the value of a header element to one line of printable text."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value or "")).split())


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else list(value)
    return tuple(str(word).strip().upper() for word in values)

"""Warnings about problems in NIfTI headers that nibabel accepts silently.

A header gives the geometry up to three times: as an affine (sform), as a rotation with an origin (qform), and as voxel
sizes (`pixdim`), which the qform needs. The sform has priority, then the qform, then the voxel sizes alone. Nibabel
and the NIfTI standard use this order of sform, qform and voxel sizes
(https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h, methods 1 to 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Finding

# Codes that the standard defines, except 0, which means that the header has no such form.
KNOWN_CODES = range(1, 6)
# Largest difference between sform and qform without a warning. Rounding errors are less than a tenth of it.
SIZE_TOLERANCE = 0.01
ANGLE_TOLERANCE_DEGREES = 1.0
# Units of length by their code, except millimetres (2) and unknown (0).
OTHER_UNITS = {1: "metres", 3: "micrometres"}


def header_findings(header: Any, where: Path | str) -> list[Finding]:
    """Warnings about the geometry in a header.

    Args:
        header: Unchanged NIfTI-1 or NIfTI-2 header of nibabel, read with `from_fileobj(..., check=False)`. Do not give
            the header of a loaded image, in which nibabel has already replaced missing voxel sizes.
        where: File or sequence that the findings name.
    """
    known = {form: int(header[f"{form}_code"]) in KNOWN_CODES for form in ("sform", "qform")}
    messages = [
        f"The {form} code of the header is {int(header[f'{form}_code'])}, which the standard does not define. The "
        f"{form} is ignored, as in nibabel. Correct the header if position or orientation is wrong."
        for form in known
        if not known[form] and int(header[f"{form}_code"]) != 0
    ]
    if known["sform"] and known["qform"]:
        messages += _disagreements(header)
    if not known["sform"]:
        messages += _voxel_sizes(header, rotated=known["qform"])
    unit = int(header["xyzt_units"]) & 7
    if unit in OTHER_UNITS:
        messages.append(
            f"The header gives lengths in {OTHER_UNITS[unit]}. All lengths are read as millimetres, as in nibabel. "
            "Correct the lengths or their unit in the header."
        )
    return [Finding(where, message) for message in messages]


def _disagreements(header: Any) -> list[str]:
    """Warnings about different voxel sizes or directions in sform and qform."""
    affine = np.array([header[f"srow_{axis}"][:3] for axis in "xyz"], dtype=np.float64)
    sizes_mm, other_mm = np.linalg.norm(affine, axis=0), np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if not (np.isfinite(sizes_mm).all() and sizes_mm.all()):
        # The sform is not a valid affine. The reader of the volume refuses it.
        return []
    used = "The sform is used, as in nibabel. If the qform is right, set the sform code to 0."
    # Write `not (a <= b)` instead of `a > b`, so that NaN counts as a difference.
    if not (np.abs(other_mm - sizes_mm) <= SIZE_TOLERANCE * sizes_mm).all():
        return [
            f"The header's sform and qform disagree about the voxel size: the sform gives {_in_mm(sizes_mm)}, "
            f"and the qform gives {_in_mm(other_mm)}. {used}"
        ]
    rotation = qform_rotation(header)
    if rotation is None:
        return ["The header's qform is invalid: its quaternion is not a rotation. The sform is used, as in nibabel."]
    cosines = np.clip((affine / sizes_mm * rotation).sum(axis=0), -1, 1)
    apart = np.degrees(np.arccos(cosines)).max()
    if apart > ANGLE_TOLERANCE_DEGREES:
        return [
            f"The header's sform and qform disagree about the directions of the axes, by up to {apart:.3g} degrees. "
            f"{used}"
        ]
    return []


def qform_rotation(header: Any) -> np.ndarray | None:
    """Directions of the axes in the qform as columns, `(3, 3)`; `None` if its quaternion is invalid."""
    unit = header.copy()
    unit["pixdim"][1:4] = 1
    if unit["pixdim"][0] != -1:
        unit["pixdim"][0] = 1
    with np.errstate(all="ignore"):
        try:
            rotation = unit.get_qform()[:3, :3]
        except ValueError:
            return None
    return rotation if np.isfinite(rotation).all() else None


def _voxel_sizes(header: Any, *, rotated: bool) -> list[str]:
    """Warnings about wrong values of `pixdim`, which gives the voxel sizes if the header has no sform."""
    handedness, *sizes = (float(value) for value in header["pixdim"][:4])
    messages = []
    missing = [str(axis) for axis, size in enumerate(sizes, start=1) if size == 0]
    if missing:
        messages.append(
            f"The header gives no voxel size for axis {' and '.join(missing)} (`pixdim` is 0). 1 mm is assumed, as "
            "in nibabel, so volumes and distances may be wrong. Correct the header."
        )
    if min(sizes) < 0:
        messages.append(
            f"The header gives a negative voxel size ({_in_mm(sizes)}). The sign is ignored, as in nibabel. "
            "Check that left and right are not swapped."
        )
    # The standard reads a `pixdim[0]` of 0 as 1.
    if rotated and handedness not in (-1, 0, 1):
        messages.append(
            f"The header's `pixdim[0]` is {handedness:g}, but only 1 and -1 are defined. 1 is assumed, as in "
            "nibabel, so the third axis may be reversed. Correct the header."
        )
    return messages


def _in_mm(sizes: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"

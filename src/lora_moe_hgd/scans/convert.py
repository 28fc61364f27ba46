"""Convert DICOM series to volumes with dcm2niix."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import dcm2niix
import numpy as np
from scipy import ndimage

from ..cases.nifti import read_image
from ..cases.volume_rules import in_bytes
from ..model.findings import BadInputError, Finding
from ..model.grids import Volume
from .deflated import MAX_BYTES, inflated, is_deflated
from .series import Series

TIMEOUT_S = 600
# Slice positions in headers are rounded. Only larger differences from evenly spaced slices are corrected.
TOLERATED_MM, TOLERATED_VOXELS = 0.2, 0.05
# Least cosine of the angle between two directions that count as the same.
SAME_DIRECTION = 0.999


def convert(series: Series, sequence: str, scratch: Path) -> tuple[Volume, list[Finding]]:
    """Convert a series to a volume. The position of each slice comes from the header of the slice.

    dcm2niix assumes evenly spaced slices, which can be wrong by millimetres. If the gaps between the slices are
    uneven, or if the slices are shifted against each other, as with a tilted gantry, the volume is interpolated
    linearly to evenly spaced slices. A warning then says so.

    Args:
        series: Series to convert.
        sequence: Name of the sequence, for warnings and error messages.
        scratch: Folder for intermediate files.

    Raises:
        BadInputError: If dcm2niix does not make one volume of the series, or if the slices of this volume do
            not match the headers.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    source, target = folder / "dicom", folder / "nifti"
    source.mkdir()
    target.mkdir()
    # dcm2niix takes a folder. Files get new names there, because their own names may contain the patient's name.
    total = 0
    for number, path in enumerate(series.files):
        copy = source / f"{number:06d}.dcm"
        if not is_deflated(path):
            link_or_copy(path, copy)
            continue
        total += copy.write_bytes(inflated(path))
        if total > MAX_BYTES:
            raise BadInputError(
                sequence,
                f"Without compression, the files of series {series.number} have more than {in_bytes(MAX_BYTES)}. "
                f"{_other_series(sequence)}",
            )
    # `-g i` ignores the defaults that the user has saved for dcm2niix.
    options = ["-g", "i", "-z", "n", "-b", "n", "-f", "volume", "-o", str(target)]
    try:
        done = subprocess.run(
            [dcm2niix.bin, *options, str(source)], capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise BadInputError(
            sequence, f"dcm2niix took more than {TIMEOUT_S} s for series {series.number}. {_other_series(sequence)}"
        ) from error
    # For uneven gaps or a tilted gantry, dcm2niix may also write a corrected volume, which is not used here.
    made = sorted(path for path in target.glob("*.nii") if not path.stem.endswith(("_Eq", "_Tilt")))
    if len(made) != 1:
        raise BadInputError(
            sequence,
            f"dcm2niix must make one volume of series {series.number}, but it made {len(made)} (exit code "
            f"{done.returncode}). The DICOM files may be damaged, incomplete, or compressed in an unsupported way. "
            f"Copy them again. If that does not help: {_other_series(sequence)}",
        )
    image = read_image(made[0]).image
    shutil.rmtree(folder)
    volume = Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    return _placed(volume, series, sequence)


def _placed(volume: Volume, series: Series, sequence: str) -> tuple[Volume, list[Finding]]:
    """Volume with each slice at the position in the slice's header, and a warning if the volume was interpolated."""
    origins = _origins(volume, series)
    if origins is None:
        raise BadInputError(
            sequence,
            f"The volume that dcm2niix makes of series {series.number} does not fit the slice positions in the "
            f"headers. {_other_series(sequence)}",
        )
    affine, count = volume.affine, volume.array.shape[2]
    assumed = affine[:3, 3] + np.arange(count)[:, None] * affine[:3, 2]
    if np.abs(origins - assumed).max() <= TOLERATED_MM:
        return volume, []
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal *= np.sign(normal @ affine[:3, 2]) / np.linalg.norm(normal)
    heights = (origins - origins[0]) @ normal
    beside = origins - origins[0] - heights[:, None] * normal
    edges = np.linalg.norm(affine[:3, :2], axis=0)
    shifts = beside @ (affine[:3, :2] / edges) / edges  # In voxels, a row for each slice.
    array = volume.array
    if np.abs(shifts).max() > TOLERATED_VOXELS:
        array = np.stack([ndimage.shift(array[..., at], shifts[at], order=1) for at in range(count)], axis=2)
    step = float(np.median(np.diff(heights)))
    targets = np.arange(round(heights[-1] / step) + 1) * step
    above = np.clip(np.searchsorted(heights, targets), 1, count - 1)
    weight = np.clip((targets - heights[above - 1]) / (heights[above] - heights[above - 1]), 0, 1)
    array = array[..., above - 1] * (1 - weight) + array[..., above] * weight
    affine = np.column_stack([affine[:3, :2], normal * step, origins[0]])
    message = (
        "The gaps between the slices are uneven, or the slices are shifted against each other. The volume was "
        "interpolated to evenly spaced slices. Look at the interpolated slices."
    )
    return Volume(array.astype(np.float32), np.vstack([affine, [0, 0, 0, 1]])), [Finding(sequence, message)]


def _other_series(sequence: str) -> str:
    return f"Choose another series with --series {sequence}=NUMBER."


def _origins(volume: Volume, series: Series) -> np.ndarray | None:
    """Position of the first voxel of each slice, read from the DICOM headers, in millimetres (RAS), `(slices, 3)`.

    The result is `None` if the headers give another number, size or direction of slices than the volume has.
    """
    affine, shape = volume.affine, volume.array.shape
    if len(series.positions) != shape[2] or shape[:2] != series.shape[:2]:
        return None
    to_ras = np.array([-1.0, -1.0, 1.0])
    cosines = np.array(series.cosines).reshape(2, 3) * to_ras
    origins = np.array(series.positions) * to_ras
    for axis in range(2):
        along = affine[:3, axis] @ cosines[axis] / np.linalg.norm(affine[:3, axis])
        if abs(along) < SAME_DIRECTION:
            return None
        if along < 0:
            # dcm2niix reversed the axis: the first voxel of the header is the last of the array.
            origins = origins - (shape[axis] - 1) * affine[:3, axis]
    # dcm2niix orders slices along the normal, as `Series.positions` does.
    return origins if np.cross(*cosines) @ affine[:3, 2] > 0 else None


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a link to `source`, or a copy where links are not possible."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        # Windows lets only some users create links.
        shutil.copyfile(source, target)

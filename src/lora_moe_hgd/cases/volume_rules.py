"""Rules for image files from users: which files are refused, and what the user can do instead."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from ..model.findings import BadInputError, prepare_command

MAX_EDGE = 1024
MAX_BYTES = 4 * 1024**3
MAX_EXTENSION_BYTES = 64 * 1024**2

FORMATS = (".nii", ".nii.gz", ".npy")
CONVERTED_BY_NIBABEL = (
    *(".hdr", ".img", ".hdr.gz", ".img.gz", ".nii.bz2", ".nii.zst"),
    *(".mgh", ".mgz", ".mnc", ".head", ".brik", ".brik.gz", ".par", ".rec"),
)
NRRD = (".nrrd", ".nhdr")
CONVERTED_BY_ITK = (*NRRD, ".mha", ".mhd", ".gipl", ".gipl.gz")
DICOM = (".dcm", ".ima")


def check_place(path: Path) -> None:
    if path.is_symlink():
        try:
            path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            loops = isinstance(error, RuntimeError) or not isinstance(error, FileNotFoundError)
            what = "The link leads to itself." if loops else "The link leads to a file that does not exist."
            raise BadInputError(path, f"{what} Link to a NIfTI file, or remove the link.") from error
    if path.is_dir():
        raise BadInputError(path, "This is a folder. Give the path of a file.")
    if not path.exists():
        raise BadInputError(path, "There is no such file. Check the path.")
    if not path.is_file():
        raise BadInputError(path, "This is not a regular file. Give the path of a NIfTI file.")
    if path.stat().st_size == 0:
        raise BadInputError(path, "The file is empty. Copy or download the file again.")


def check_name(path: Path) -> None:
    """Refuse a file whose extension belongs to an unsupported format."""
    name = path.name.lower()
    if name.endswith(FORMATS):
        return
    if name.endswith(CONVERTED_BY_NIBABEL):
        message = f"This file format is not supported. Convert the file to NIfTI: nib-convert {path.name} NAME.nii.gz."
    elif name.endswith(NRRD):
        message = f"NRRD files must be converted first. Run {prepare_command()}, and use the case in the folder OUT."
    elif name.endswith(CONVERTED_BY_ITK):
        message = "This file format is not supported. Save the image as .nii.gz with 3D Slicer, ITK-SNAP or SimpleITK."
    elif name.endswith(DICOM):
        message = "Single DICOM files are not supported. Give the folder of the study."
    else:
        message = (
            f"The file name ends in none of the supported extensions: {', '.join(FORMATS)}. Correct the file name, or "
            "convert the file to NIfTI."
        )
    raise BadInputError(path, message)


def check_header(path: Path, header: nib.Nifti1Header) -> None:
    """Refuse headers that nibabel also refuses, or with which nibabel would read the wrong bytes."""
    if not _has_known_type(header):
        raise BadInputError(
            path, f"The voxels have the unknown data type {int(header['datatype'])}. Save the voxels as float32."
        )
    offset = float(header["vox_offset"])
    if not offset >= header.single_vox_offset:
        if header["magic"].item()[:2] == b"ni":
            raise BadInputError(
                path,
                "This file is only the header of an image. The voxels are in a separate .img file. Convert both files "
                "to one file: nib-convert NAME.hdr NAME.nii.gz.",
            )
        raise BadInputError(
            path,
            f"The header says that the voxels begin at byte {offset:g}, which is inside the header itself. "
            "Save the file again with the program that made it.",
        )
    if offset - header.single_vox_offset > MAX_EXTENSION_BYTES:
        raise BadInputError(
            path,
            f"The header announces extensions of {in_bytes(offset - header.single_vox_offset)}, but at most "
            f"{in_bytes(MAX_EXTENSION_BYTES)} are allowed. Save the file without header extensions.",
        )
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 0 and math.isfinite(slope) and not math.isfinite(inter):
        raise BadInputError(
            path,
            f"The header's `scl_inter`, which is added to each voxel, is {inter:g}. Correct the header, or save the "
            "file again.",
        )


def _has_known_type(header: nib.Nifti1Header) -> bool:
    try:
        return bool(header.get_data_dtype().itemsize)
    except KeyError:
        return False


def check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) < 3:
        raise BadInputError(
            path,
            f"The image must have three axes, but has {len(shape)} ({times(shape)}). Give a complete volume, not a "
            "slice.",
        )
    if any(not 1 <= edge <= MAX_EDGE for edge in shape):
        raise BadInputError(
            path,
            f"The header announces {times(shape)} voxels, but each axis must have 1 to {MAX_EDGE} voxels. "
            "Correct the header, or crop the volume.",
        )
    if dtype.kind not in "biuf":
        found = {"c": "complex numbers", "V": "colours or records"}.get(dtype.kind, "not numbers")
        raise BadInputError(
            path, f"Each voxel must be one real number, but the voxels are {found}. Save real numbers."
        )
    size = math.prod(shape) * max(dtype.itemsize, 4)
    if size > MAX_BYTES:
        raise BadInputError(
            path,
            f"The voxels need {in_bytes(size)} of memory, but at most {in_bytes(MAX_BYTES)} are allowed. Crop the "
            "volume, or save the voxels as float32.",
        )
    # Reading needs memory for two copies in the stored data type (one of them during conversion) and one in float32.
    needed, free = math.prod(shape) * (2 * dtype.itemsize + 4), psutil.virtual_memory().available
    if needed > free:
        raise BadInputError(
            path, f"Reading needs {in_bytes(needed)} of memory, but {in_bytes(free)} are free. Close other programs."
        )


def times(sizes: tuple[int, ...] | np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" if isinstance(size, float) else str(size) for size in sizes)


def in_bytes(count: float) -> str:
    return f"{count / 1024**3:.4g} GiB" if count >= 1024**3 else f"{count / 1024**2:.4g} MiB"

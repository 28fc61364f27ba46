"""Reading volumes that a user brings, header first, and writing results whole or not at all."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from ..files import replacing

MAX_EDGE = 1024
MAX_BYTES = 4 * 1024**3


class BadInputError(ValueError):
    """A file that cannot be used.

    Attributes:
        path: The file or folder.
        rule: What it should be.
        value: What was found.
    """

    def __init__(self, path: Path, rule: str, value: object) -> None:
        super().__init__(f"{path}: {rule}, got {value}.")
        self.path, self.rule, self.value = path, rule, value


def read_image(path: Path, *, npy_spacing_mm: float = 1.0) -> nib.Nifti1Image:
    """Read one 3-D volume as float32 with its affine; trailing axes of length one are dropped.

    Sizes are judged from the header, before any voxel is read. A `.npy` array has no geometry: it is taken to be in
    RAS order with voxels of `npy_spacing_mm`.

    Raises:
        BadInputError: If the file is missing, damaged, too large, not 3-D, or has an affine that is singular.
    """
    if not path.is_file():
        raise BadInputError(path, "must be a file", "a folder" if path.is_dir() else "nothing there")
    try:
        if path.suffix == ".npy":
            return _read_npy(path, npy_spacing_mm)
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise BadInputError(path, "must be a NIfTI file", type(image).__name__)
        _check_header(path, image.shape, image.header.get_data_dtype().itemsize)
        array = np.asarray(image.dataobj, dtype=np.float32)
    except BadInputError:
        raise
    except PermissionError as error:
        raise BadInputError(path, "must be readable", "no permission") from error
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, nib.filebasedimages.ImageFileError) as error:
        raise BadInputError(path, "must be a whole NIfTI file", f"{type(error).__name__}: {error}") from error
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadInputError(path, "its affine must be finite and not singular", affine[:3].tolist())
    return nib.Nifti1Image(array.reshape(array.shape[:3]), affine, _geometry_only(image.header))


def _geometry_only(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A header with the geometry of `header` and none of its text."""
    clean = nib.Nifti1Header()
    clean.set_xyzt_units(header.get_xyzt_units()[0])
    clean.set_qform(header.get_qform(), int(header["qform_code"]))
    clean.set_sform(header.get_sform(), int(header["sform_code"]))
    return clean


def _read_npy(path: Path, spacing_mm: float) -> nib.Nifti1Image:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_header(path, mapped.shape, mapped.dtype.itemsize)
    array = np.array(mapped, dtype=np.float32).reshape(mapped.shape[:3])
    return nib.Nifti1Image(array, np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))


def _check_header(path: Path, shape: tuple[int, ...], bytes_per_voxel: int) -> None:
    if len(shape) < 3 or any(edge != 1 for edge in shape[3:]):
        raise BadInputError(path, "must hold one volume with three axes", f"shape {tuple(shape)}")
    if any(not 1 <= edge <= MAX_EDGE for edge in shape[:3]):
        raise BadInputError(path, f"each axis must have 1 to {MAX_EDGE} voxels", f"shape {tuple(shape)}")
    size = math.prod(shape) * max(bytes_per_voxel, 4)
    if size > MAX_BYTES:
        raise BadInputError(path, f"must take at most {MAX_BYTES} bytes unpacked", f"{size}")


def write_image(path: Path, array: np.ndarray, *, like: nib.Nifti1Image) -> None:
    """Write a NIfTI file beside `path` and rename it; affine and geometry of the header are those of `like`."""
    image = nib.Nifti1Image(array, like.affine, _geometry_only(like.header), dtype=array.dtype)
    with replacing(path) as scratch:
        nib.save(image, scratch)

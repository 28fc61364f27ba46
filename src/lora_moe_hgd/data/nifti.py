"""Reading volumes that a user brings, header first, and writing results whole or not at all.

A file may be damaged, huge or something else altogether. So sizes are judged before anything is unpacked, no more is
unpacked than the header announces, a checksum is read to its end, and every failure is a `BadInputError`.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import psutil
from nibabel.arrayproxy import ArrayProxy

from ..files import replacing
from ..model.findings import BadInputError, Finding
from .findings import got

MAX_EDGE = 1024
MAX_BYTES = 4 * 1024**3
# Text and other extensions of the header are skipped, not read; what follows the voxels is nothing.
MAX_EXTENSION_BYTES = 64 * 1024**2
MAX_TAIL_BYTES = 1024**2
# No byte of deflate unpacks to more (https://zlib.net/zlib_tech.html).
MOST_PACKED = 1032
VOXEL_MM = (0.1, 20.0)
MAX_FIELD_MM = 600.0
HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
# Nibabel mends what writers of headers commonly get wrong, and would say so on standard error.
MENDED = logging.getLogger(__name__)
MENDED.addHandler(logging.NullHandler())
MENDED.propagate = False
MAGIC = (b"n+1\0", b"n+2\0\r\n\x1a\n")


@dataclass(frozen=True)
class ReadVolume:
    """One volume from a file.

    Attributes:
        image: Voxels `(D, H, W)` float32 with their affine and a header that holds the geometry alone.
        findings: What the header says that its reader should know.
    """

    image: nib.Nifti1Image
    findings: tuple[Finding, ...] = ()


def read_image(path: Path, *, npy_spacing_mm: float = 1.0) -> ReadVolume:
    """Read one 3-D volume as float32 with its affine; trailing axes of length one are dropped.

    A `.npy` array has no geometry: it is taken to be in RAS order with voxels of `npy_spacing_mm`.

    Raises:
        BadInputError: If the file is missing, damaged, too large, not 3-D, or its affine is no head's.
    """
    array, image = _read(path, npy_spacing_mm)
    if any(edge != 1 for edge in array.shape[3:]):
        raise BadInputError(
            path,
            got(
                "must hold one volume with three axes (a file with the sequences along a fourth is a case: "
                "--in-path FILE --channel-order flair,t1,t1c,t2)",
                f"shape {array.shape}",
            ),
        )
    return ReadVolume(_with_geometry(array.reshape(array.shape[:3]), image))


def read_stack(path: Path, channels: Mapping[str, int]) -> dict[str, ReadVolume]:
    """Read volumes of a file with four axes, as `read_image` does, by the name and place along the fourth.

    Raises:
        BadInputError: As `read_image`; and if the fourth axis is not as long as there are names.
    """
    array, image = _read(path, 1.0)
    length = max(channels.values()) + 1
    if array.shape[3:] != (length,):
        raise BadInputError(path, got(f"must have four axes, the last of length {length}", f"shape {array.shape}"))
    return {
        name: ReadVolume(_with_geometry(np.ascontiguousarray(array[..., at]), image)) for name, at in channels.items()
    }


def has_geometry(image: nib.Nifti1Image) -> bool:
    """Whether the file said where it lies, by `sform` or `qform`."""
    return bool(image.header["sform_code"] or image.header["qform_code"])


def _with_geometry(array: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, like.affine, like.header)
    image.header["sform_code"], image.header["qform_code"] = like.header["sform_code"], like.header["qform_code"]
    return image


def _read(path: Path, npy_spacing_mm: float) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Array of any number of axes, and an image that has nothing but the geometry."""
    try:
        _check_place(path)
        with np.errstate(all="ignore"):
            array, affine, header = _read_npy(path, npy_spacing_mm) if path.suffix == ".npy" else _read_nifti(path)
    except PermissionError as error:
        raise BadInputError(path, got("must be readable", "no permission")) from error
    except OSError as error:
        raise BadInputError(path, got("must be readable", error.strerror or type(error).__name__)) from error
    _check_affine(path, affine, array.shape)
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), affine, header)
    for code in ("sform_code", "qform_code"):
        image.header[code] = 0 if header is None else header[code]
    return array, image


def _check_place(path: Path) -> None:
    if path.is_symlink():
        try:
            path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            loops = isinstance(error, RuntimeError) or not isinstance(error, FileNotFoundError)
            found = "a link that leads to itself" if loops else "a link that leads nowhere"
            raise BadInputError(path, got("must be a file", found)) from error
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no regular file" if path.exists() else "nothing there"
        raise BadInputError(path, got("must be a file", found))
    if path.stat().st_size == 0:
        raise BadInputError(path, got("must be a whole NIfTI file", "an empty file"))


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if packed != (path.suffix.lower() == ".gz"):
            found = "one packed with gzip" if packed else "one that is not packed with gzip"
            raise BadInputError(path, got(f"must be the kind of file that {path.suffix} says", found))
        if not packed:
            return _parse(path, file, path.stat().st_size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _parse(path, unpacked, path.stat().st_size * MOST_PACKED)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            found = "one that ends too early" if isinstance(error, EOFError) else "one that is damaged"
            raise BadInputError(path, got("must be a whole gzip file", found)) from error


def _parse(path: Path, file: BinaryIO, most_bytes: int) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
    start = file.read(540)
    size = next(
        (size for size in HEADERS for order in ("<", ">") if start[:4] == np.array(size, f"{order}i4").tobytes()), 0
    )
    if not size or len(start) < size:
        raise BadInputError(path, got("must be a whole NIfTI file", f"{len(start)} bytes that are no header of one"))
    if not start[:size].endswith(MAGIC[0]) and start[4:12] != MAGIC[1]:
        raise BadInputError(path, got("must be a NIfTI file with header and voxels in one", "another format"))
    try:
        header = HEADERS[size].from_fileobj(io.BytesIO(start), check=False)
        header.check_fix(logger=MENDED)
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        clean = _geometry_only(header)
        slope, inter = header.get_slope_inter()
    # Whatever nibabel raises over a header that makes no sense, for its user it is one thing.
    except Exception as error:
        raise BadInputError(path, got("must have a valid NIfTI header", type(error).__name__)) from error
    _check_size(path, shape, dtype)
    if offset - size > MAX_EXTENSION_BYTES:
        raise BadInputError(path, got(f"its voxels must begin within {MAX_EXTENSION_BYTES} bytes", f"{offset}"))
    _skip(file, offset - len(start))
    announced = math.prod(shape) * dtype.itemsize
    rule = f"must hold the {announced} bytes of voxels that its header announces"
    if announced > most_bytes - offset:
        raise BadInputError(path, got(rule, "a file that is too small for them"))
    start_of_data = start[offset:]
    content = bytearray(announced)
    content[: len(start_of_data)] = start_of_data[:announced]
    done = min(len(start_of_data), announced)
    while done < announced:
        count = file.readinto(memoryview(content)[done:])  # type: ignore[attr-defined]
        if not count:
            raise BadInputError(path, got(rule, done))
        done += count
    # A checksum is compared at the very end of a packed file.
    if len(file.read(MAX_TAIL_BYTES)) == MAX_TAIL_BYTES and path.suffix.lower() == ".gz":
        raise BadInputError(
            path, got(f"must end after its {announced} bytes of voxels", "more than 1 MiB behind them")
        )
    array = np.asarray(ArrayProxy(io.BytesIO(content), (shape, dtype, 0, slope, inter)), dtype=np.float32)
    return array, affine, clean


def _skip(file: BinaryIO, count: int) -> None:
    """Read over `count` bytes without keeping them; the end of the file is noticed by who reads on."""
    while count > 0 and (block := file.read(min(count, 1024**2))):
        count -= len(block)


def _geometry_only(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A header with the geometry of `header` and none of its text."""
    clean = nib.Nifti1Header()
    clean.set_xyzt_units(header.get_xyzt_units()[0])
    clean.set_qform(header.get_qform(), int(header["qform_code"]))
    clean.set_sform(header.get_sform(), int(header["sform_code"]))
    return clean


def _read_npy(path: Path, spacing_mm: float) -> tuple[np.ndarray, np.ndarray, None]:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = mapped.shape, mapped.dtype
    except OSError:
        raise
    # As with NIfTI: the header is text that anyone may have written.
    except Exception as error:
        raise BadInputError(path, got("must be a whole .npy file of numbers", type(error).__name__)) from error
    _check_size(path, shape, dtype)
    return np.array(mapped, dtype=np.float32), np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]), None


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) < 3:
        raise BadInputError(path, got("must have three axes", f"shape {tuple(shape)}"))
    if any(not 1 <= edge <= MAX_EDGE for edge in shape):
        raise BadInputError(path, got(f"each axis must have 1 to {MAX_EDGE} voxels", f"shape {tuple(shape)}"))
    if dtype.kind not in "biuf":
        raise BadInputError(path, got("must hold real numbers", f"voxels of type {dtype}"))
    size = math.prod(shape) * max(dtype.itemsize, 4)
    if size > MAX_BYTES:
        raise BadInputError(path, got(f"must take at most {MAX_BYTES} bytes unpacked", f"{size}"))
    # As stored, once more while it is converted, and as float32.
    needed, free = math.prod(shape) * (2 * dtype.itemsize + 4), psutil.virtual_memory().available
    if needed > free:
        raise BadInputError(path, got(f"must fit into the {free} bytes of memory that are free", f"{needed}"))


def _check_affine(path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    with np.errstate(all="ignore"):
        edges_mm = np.linalg.norm(affine[:3, :3], axis=0)
        # Of a box of these edges this share is left when its axes lean.
        share = abs(np.linalg.det(affine[:3, :3] / edges_mm)) if np.isfinite(affine).all() and edges_mm.all() else 0.0
    if not np.isfinite(share) or share < 1e-2:
        raise BadInputError(path, got("its affine must be finite and not singular", affine[:3].tolist()))
    if edges_mm.min() < VOXEL_MM[0] or edges_mm.max() > VOXEL_MM[1]:
        found = " x ".join(f"{edge:.4g}" for edge in edges_mm)
        raise BadInputError(path, got(f"its voxels must have edges of {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm", found))
    field_mm = edges_mm * shape[:3]
    if field_mm.max() > MAX_FIELD_MM:
        found = " x ".join(f"{edge:.4g}" for edge in field_mm)
        raise BadInputError(path, got(f"must cover at most {MAX_FIELD_MM:g} mm along an axis", found))
    if np.abs(affine[:3, 3]).max() > 1e5:
        raise BadInputError(path, got("must lie within 100 m of the origin", f"{affine[:3, 3].tolist()} mm"))


def write_image(path: Path, array: np.ndarray, *, like: nib.Nifti1Image) -> None:
    """Write a NIfTI file beside `path` and rename it; affine and geometry of the header are those of `like`."""
    image = nib.Nifti1Image(array, like.affine, _geometry_only(like.header), dtype=array.dtype)
    with replacing(path) as scratch:
        nib.save(image, scratch)

"""Read image files from users, header first, and write results atomically.

A user's file may be damaged, too large, or of another format. Sizes are therefore checked before any data is
decompressed, and only as much data is decompressed as the header announces. Checksums are verified, and every failure
is a `BadInputError`. Header extensions are skipped, because they may be long and may contain the patient's name.
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
from nibabel.arrayproxy import ArrayProxy

from ..files import replacing
from ..model.findings import BadInputError, Finding
from ..model.geometry import voxel_spacing_mm
from ..model.grids import check_affine
from ..model.header_rules import header_findings, qform_rotation
from .volume_rules import check_header, check_name, check_place, check_size, in_bytes, times

# Largest amount of data after the voxels of a compressed file that is decompressed to reach the checksum.
MAX_TAIL_BYTES = 1024**2
# Highest compression ratio of deflate (https://zlib.net/zlib_tech.html).
MOST_PACKED = 1032
# Nibabel repairs common errors in headers and would print them. `header_findings` reports them instead.
REPAIRS = logging.getLogger(__name__)
REPAIRS.addHandler(logging.NullHandler())
REPAIRS.propagate = False


@dataclass(frozen=True)
class ReadVolume:
    """One volume from a file.

    Attributes:
        image: Voxels `(D, H, W)` float32 with their affine and a header that contains only the geometry.
        findings: Warnings about the header.
    """

    image: nib.Nifti1Image
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Content:
    """Content of a file: an array with any number of axes, and its geometry. `header` is `None` for a `.npy` file."""

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None = None
    findings: tuple[Finding, ...] = ()

    def volume(self, array: np.ndarray) -> ReadVolume:
        image = nib.Nifti1Image(array, self.affine, self.header)
        for code in ("sform_code", "qform_code"):
            image.header[code] = 0 if self.header is None else self.header[code]
        return ReadVolume(image, self.findings)


def read_image(path: Path, *, npy_spacing_mm: float = 1.0) -> ReadVolume:
    """Read one 3-D volume as float32, with the affine that nibabel computes from the header.

    Trailing axes of length one are dropped.

    A `.npy` array has no geometry, so the array is assumed to be in RAS order, with cubic voxels of edge
    `npy_spacing_mm`.

    Raises:
        BadInputError: If the file is missing, damaged, too large, of another format or not 3-D, or if its affine is
            implausible for a head.
    """
    content = _read(path, npy_spacing_mm)
    shape = content.array.shape
    if math.prod(shape[3:]) != 1:
        raise BadInputError(
            path,
            f"The file contains {math.prod(shape[3:])} volumes ({times(shape)}). Split the file. If the volumes are "
            "the sequences of a case, `lora-moe-hgd segment --in-path FILE --channel-order flair,t1,t1c,t2` reads the "
            "file as it is.",
        )
    return content.volume(content.array.reshape(shape[:3]))


def read_stack(path: Path, channels: Mapping[str, int]) -> dict[str, ReadVolume]:
    """Read a file with four axes by the rules of `read_image`. Map the name of each sequence to its volume.

    Args:
        path: File with four axes.
        channels: Index along the fourth axis, by the name of the sequence.

    Raises:
        BadInputError: For the same reasons as in `read_image`, and if the length of the fourth axis does not fit
            `channels`.
    """
    content = _read(path, 1.0)
    shape, length = content.array.shape, max(channels.values()) + 1
    # In vector files of ITK, an axis of length one comes before the axis of the sequences.
    if [edge for edge in shape[3:] if edge != 1] != [length] * (length > 1):
        raise BadInputError(
            path,
            f"The number of sequences in the channel order ({length}) differs from the number of volumes in the file "
            f"({math.prod(shape[3:])}, shape {times(shape)}). Name the sequence of each volume with --channel-order.",
        )
    array = content.array.reshape(*shape[:3], length)
    return {name: content.volume(np.ascontiguousarray(array[..., at])) for name, at in channels.items()}


def _read(path: Path, npy_spacing_mm: float) -> _Content:
    try:
        check_place(path)
        check_name(path)
        with np.errstate(all="ignore"):
            content = _read_npy(path, npy_spacing_mm) if path.name.lower().endswith(".npy") else _read_nifti(path)
    except PermissionError as error:
        raise BadInputError(path, "You have no permission to read the file. Change its permissions.") from error
    except OSError as error:
        raise BadInputError(
            path, f"The file cannot be read: {error.strerror or type(error).__name__}. Check the disk."
        ) from error
    check_affine(path, content.affine, content.array.shape)
    return content


def _read_nifti(path: Path) -> _Content:
    with path.open("rb") as file:
        packed, named = file.read(2) == b"\x1f\x8b", path.name.lower().endswith(".gz")
        file.seek(0)
        if packed and not named:
            raise BadInputError(
                path, f"The file is compressed with gzip, but its name lacks .gz. Rename the file to {path.name}.gz."
            )
        if named and not packed:
            _read_header(path, file)
            raise BadInputError(
                path,
                f"The file is not compressed with gzip, but its name ends in .gz. Rename the file to {path.stem}.",
            )
        if not packed:
            return _read_voxels(path, file, path.stat().st_size)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read_voxels(path, unpacked, path.stat().st_size * MOST_PACKED)  # type: ignore[arg-type]
        except EOFError as error:
            raise BadInputError(
                path, "The compressed file ends too early. Copy or download the file again."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise BadInputError(
                path, "The compressed file is damaged: its checksum is wrong. Copy or download the file again."
            ) from error


def _read_header(path: Path, file: BinaryIO) -> nib.Nifti1Header:
    """Read the header as it is stored in the file, without its extensions."""
    # Same rule as nibabel: a signature at the end marks NIfTI-1, the header's length at the beginning marks NIfTI-2.
    raw = file.read(nib.Nifti1Header.sizeof_hdr)
    kind = nib.Nifti1Header
    if raw[344:348] not in (b"n+1\0", b"ni1\0"):
        kind = nib.Nifti2Header
        lengths = [np.array(kind.sizeof_hdr, f"{order}i4").tobytes() for order in "<>"]
        if raw[:4] not in lengths or raw[4:8] not in (b"n+2\0", b"ni2\0"):
            raise BadInputError(
                path,
                "The file does not begin with a NIfTI header. Copy or download the file again, or convert it to "
                "NIfTI.",
            )
        raw += file.read(kind.sizeof_hdr - len(raw))
        if len(raw) < kind.sizeof_hdr:
            raise BadInputError(path, "The file ends inside its header. Copy or download the file again.")
        if raw[8:12] not in (b"\r\n\x1a\n", bytes(4)):
            raise BadInputError(
                path,
                "This file was damaged when it was copied in text mode, for example with FTP. Copy the file again in "
                "binary mode.",
            )
    return kind(raw, check=False)


def _read_voxels(path: Path, file: BinaryIO, most_bytes: int) -> _Content:
    """Read the header and the voxels of an open file.

    The decompressed file has at most `most_bytes` bytes. If the header announces more, the file is refused.
    """
    header = _read_header(path, file)
    findings = header_findings(header, path)
    check_header(path, header)
    try:
        header.check_fix(logger=REPAIRS)
        shape, dtype = tuple(int(edge) for edge in header.get_data_shape()), header.get_data_dtype()
    # Nibabel raises various errors for an invalid header. The user gets one message for all of them.
    except Exception as error:
        raise BadInputError(
            path, f"The header is invalid ({error}). Save the file again with the program that made it."
        ) from error
    check_size(path, shape, dtype)
    if not header["sform_code"] and header["qform_code"] and qform_rotation(header) is None:
        raise BadInputError(
            path,
            "The header's qform is invalid: its quaternion is not a rotation. Correct the qform, or set an sform.",
        )
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    offset, announced = header.get_data_offset(), math.prod(shape) * dtype.itemsize
    too_short = (
        f"The file ends too early: its header announces {times(shape)} voxels of {dtype.itemsize} bytes. "
        "Copy or download the file again."
    )
    if announced > most_bytes - offset:
        raise BadInputError(path, too_short)
    _skip(file, offset - header.sizeof_hdr)
    content, done = bytearray(announced), 0
    while done < announced:
        count = file.readinto(memoryview(content)[done:])  # type: ignore[attr-defined]
        if not count:
            raise BadInputError(path, too_short)
        done += count
    findings += _read_tail(path, file)
    slope, inter = header.get_slope_inter()
    # By the NIfTI standard, voxels are not scaled if the slope is 0 or not finite.
    scaling = (1.0, 0.0) if slope is None else (slope, inter)
    array = np.asarray(ArrayProxy(io.BytesIO(content), (shape, dtype, 0, *scaling)), dtype=np.float32)
    return _Content(array, affine, _geometry_only(header, affine), tuple(findings))


def _skip(file: BinaryIO, count: int) -> None:
    """Skip `count` bytes. At the end of the file, skipping stops silently, and the next read fails."""
    while count > 0 and (block := file.read(min(count, 1024**2))):
        count -= len(block)


def _read_tail(path: Path, file: BinaryIO) -> list[Finding]:
    """Read the data after the voxels. In a compressed file, reading to the end verifies the checksum."""
    tail = file.read(MAX_TAIL_BYTES)
    if len(tail) == MAX_TAIL_BYTES and path.name.lower().endswith(".gz"):
        raise BadInputError(
            path,
            f"More than {in_bytes(MAX_TAIL_BYTES)} of data follow the voxels that the header announces. Correct the "
            "shape in the header, or save the file again.",
        )
    if not tail.strip(b"\0"):
        return []
    message = (
        "The file contains more data than the header announces. This extra data is ignored. Check that the volume is "
        "complete: the shape in the header may be wrong."
    )
    return [Finding(path, message)]


def _geometry_only(header: nib.Nifti1Header, affine: np.ndarray) -> nib.Nifti1Header:
    """Build a header with only the geometry of `header`, in millimetres. Texts such as `descrip` are left out."""
    clean = nib.Nifti1Header()
    clean.set_xyzt_units("mm")
    clean["pixdim"][1:4] = voxel_spacing_mm(affine)
    fields = []
    if header["sform_code"]:
        fields += ["sform_code", "srow_x", "srow_y", "srow_z"]
    if header["qform_code"] and qform_rotation(header) is not None:
        fields += ["qform_code", *(f"quatern_{part}" for part in "bcd"), *(f"qoffset_{axis}" for axis in "xyz")]
        clean["pixdim"][:4] = header["pixdim"][:4]
    for field in fields:
        clean[field] = header[field]
    return clean


def _read_npy(path: Path, spacing_mm: float) -> _Content:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = mapped.shape, mapped.dtype
    except OSError:
        raise
    # A damaged header of an array file can raise any error.
    except Exception as error:
        raise BadInputError(
            path, "The file is not an array of numbers, or it is damaged. Save the array again with numpy.save."
        ) from error
    check_size(path, shape, dtype)
    return _Content(np.array(mapped, dtype=np.float32), np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))


def image_like(array: np.ndarray, *, like: nib.Nifti1Image) -> nib.Nifti1Image:
    """Build an image with the affine and the header geometry of `like`. Texts in the header of `like` are left out."""
    return nib.Nifti1Image(array, like.affine, _geometry_only(like.header, like.affine), dtype=array.dtype)


def save_image(path: Path, image: nib.Nifti1Image) -> None:
    """Write a NIfTI file atomically."""
    with replacing(path) as scratch:
        nib.save(image, scratch)


def write_image(path: Path, array: np.ndarray, *, like: nib.Nifti1Image) -> None:
    """Write a NIfTI file atomically, with the affine and the header geometry of `like`."""
    save_image(path, image_like(array, like=like))

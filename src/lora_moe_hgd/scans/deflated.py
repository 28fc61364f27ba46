"""DICOM files that are deflated as a whole. dcm2niix does not read them, and pydicom inflates them without a limit."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from ..cases.volume_rules import MAX_EDGE, in_bytes
from .archives import MAX_RATIO, SMALL_BYTES

# The largest volume that is read, with two bytes for each voxel: for one file, and for a series.
MAX_BYTES = 2 * MAX_EDGE**3
# The group that names the transfer syntax is never deflated and lies in the first bytes, behind the preamble. It
# begins with its own length, counted from the end of that element.
PREAMBLE, META_BYTES = 132, 1024
LENGTH = slice(PREAMBLE + 8, PREAMBLE + 12)


def is_deflated(path: Path) -> bool:
    """Whether a DICOM file is deflated as a whole."""
    with path.open("rb") as file:
        if DeflatedExplicitVRLittleEndian.encode() not in file.read(META_BYTES):
            return False
    return read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian


def inflated(path: Path) -> bytes:
    """Read a deflated file, and return it without compression.

    Raises:
        ValueError: If the file is too large or cut off, or if it inflates to more than images do.
        zlib.error: If it is damaged.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"The file has more than {in_bytes(MAX_BYTES)}.")
    content = path.read_bytes()
    start = LENGTH.stop + int.from_bytes(content[LENGTH], "little")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    most = min(MAX_BYTES, max(SMALL_BYTES, MAX_RATIO * len(content)))
    elements = stream.decompress(content[start:], most)
    if not stream.eof:
        raise ValueError(f"The file is cut off, or it inflates to more than {in_bytes(most)}.")
    meta = read_file_meta_info(path)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = BytesIO()
    target.write(content[:PREAMBLE])
    write_file_meta_info(DicomFileLike(target), meta)
    target.write(elements)
    return target.getvalue()

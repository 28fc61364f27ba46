"""Read DICOM files in a deflated transfer syntax, in which all elements are compressed together.

dcm2niix does not read such files, and pydicom inflates them without a limit of size.
"""

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

# Largest inflated size of a file, and of all files of a series: the largest volume that is read, with two bytes for
# each voxel.
MAX_BYTES = 2 * MAX_EDGE**3
# The group of elements that names the transfer syntax is never deflated. It follows the preamble, and is within the
# first `META_BYTES`. Its first element is the length of the rest of the group.
PREAMBLE, META_BYTES = 132, 1024
LENGTH = slice(PREAMBLE + 8, PREAMBLE + 12)


def is_deflated(path: Path) -> bool:
    """Whether a DICOM file has a deflated transfer syntax."""
    with path.open("rb") as file:
        if DeflatedExplicitVRLittleEndian.encode() not in file.read(META_BYTES):
            return False
    return read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian


def inflated(path: Path) -> bytes:
    """Read a deflated file, and return its content without compression.

    Raises:
        ValueError: If the file is too large or cut off, or if its uncompressed content is too large for an image.
        zlib.error: If the file is damaged.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"The file is larger than {in_bytes(MAX_BYTES)}.")
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

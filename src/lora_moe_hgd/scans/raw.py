"""Check whether a path contains DICOM files, and whether the packages that read them are installed.

This module can be imported without the pip extra `scans`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..files import install_command
from ..model.findings import missing_scan_modules

ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
# A folder with more files than this is not a study.
MAX_FILES = 200_000


def is_raw(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files at any depth, a zip file, or a DICOMDIR.

    The answer is yes even if the folder also contains other images, such as NIfTI files.
    """
    if path.is_dir():
        return any(is_dicom(file) for file in files_below(path))
    return path.is_file() and (is_zip(path) or (path.name.upper() == "DICOMDIR" and is_dicom(path)))


def is_zip(path: Path) -> bool:
    """Whether the file begins with the signature of a zip file."""
    return _first_bytes(path, 4) in ZIP_SIGNATURES


def is_dicom(path: Path) -> bool:
    """Whether the file begins like a DICOM file, with or without the preamble of 128 bytes."""
    first = _first_bytes(path, 132)
    if first[128:132] == b"DICM":
        return True
    # Old files have no preamble. They begin with one of the elements 0000, 0001, 0005, 0008 and 0016 of group 0008.
    return first[:2] == b"\x08\x00" and first[2:4] in (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder at any depth, in sorted order. Links to folders are not followed.

    Raises:
        ValueError: If there are more than `MAX_FILES` files. No study has so many files.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            count += 1
            if count > MAX_FILES:
                raise ValueError(f"{folder} contains more than {MAX_FILES} files. Give the folder of one study.")
            yield path


def require_extra() -> None:
    """Check that the packages of the pip extra `scans` are installed.

    Raises:
        ValueError: If a package is missing. The error message contains the command that installs the package.
    """
    if missing := missing_scan_modules():
        raise ValueError(
            f"Images from the scanner need packages that are not installed ({', '.join(missing)}). Install them: "
            f"{install_command('scans')}"
        )


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        # Reading a pipe or a device would block.
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""

"""Whether a path holds DICOM files, and what reading them takes. This module needs no further package."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..files import install_command

# Packages of the extra, by the name under which they are imported.
NEEDED = {
    "pydicom": "pydicom",
    "dcm2niix": "dcm2niix",
    "SimpleITK": "SimpleITK",
    "deepbet": "deepbet",
    "highdicom": "highdicom",
}
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
# A folder with more files than this is no study.
MAX_FILES = 200_000


def is_raw(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files at any depth, a zip file, or a DICOMDIR.

    A folder with images of another kind beside them, such as an ordinary case, still counts if it holds DICOM files.
    """
    if path.is_dir():
        return any(is_dicom(file) for file in files_below(path))
    return path.is_file() and (is_zip(path) or (path.name.upper() == "DICOMDIR" and is_dicom(path)))


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip file does."""
    return _first_bytes(path, 4) in ZIP_SIGNATURES


def is_dicom(path: Path) -> bool:
    """Whether the file begins as a DICOM file does, with or without the preamble of 128 bytes."""
    first = _first_bytes(path, 132)
    if first[128:132] == b"DICM":
        return True
    # Old files begin with group 8, element 0, 1, 5, 8 or 16, and the length or kind of its value.
    return first[:2] == b"\x08\x00" and first[2:4] in (b"\x00\x00", b"\x01\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00")


def files_below(folder: Path) -> Iterator[Path]:
    """Regular files at any depth, in order; links to folders are not followed.

    Raises:
        ValueError: If there are far more files than any study has.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place) / name
            count += 1
            if count > MAX_FILES:
                raise ValueError(f"{folder} holds more than {MAX_FILES} files. Give the folder of one study.")
            yield path


def require_extra() -> None:
    """Check that the packages of the extra `scans` are installed.

    Raises:
        ValueError: If one is missing; the message has the command that installs it.
    """
    missing = [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"Images from the scanner need further packages ({', '.join(missing)}): {install_command('scans')}"
        )


def _first_bytes(path: Path, count: int) -> bytes:
    try:
        # A pipe or device would block.
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""

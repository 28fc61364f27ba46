"""The file `SHA256SUMS`: checksums of all files of a repository, in the format of `sha256sum --check`."""

from __future__ import annotations

from pathlib import Path

from ..fingerprints import file_fingerprint

SUMS = "SHA256SUMS"
CARD = "README.md"


def write_sums(folder: Path) -> None:
    """Write checksums of all files below `folder` except the card, because users edit cards on the Hub."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, CARD)]
    lines = [f"{file_fingerprint(path)}  {path.relative_to(folder).as_posix()}\n" for path in sorted(paths)]
    (folder / SUMS).write_text("".join(lines))


def read_sums(path: Path) -> dict[str, str]:
    """Read the checksum of each file from `SHA256SUMS`, by file name.

    Raises:
        ValueError: If a line does not consist of a SHA-256, two spaces and a name.
    """
    sums = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        checksum, _, name = line.partition("  ")
        if len(checksum) != 64 or not name:
            raise ValueError(f"Line {number} of {SUMS} must be a SHA-256, two spaces and a name, got '{line[:80]}'.")
        sums[name] = checksum
    return sums


def check_sums(folder: Path, sums: dict[str, str]) -> None:
    """Check that the files in `folder` have the checksums `sums`.

    Raises:
        ValueError: If a file is missing or has another checksum. The error message names the file.
    """
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, checksum in sums.items():
        if name not in there:
            raise ValueError(f"{SUMS} lists {name}, but this file is missing.")
        if (found := file_fingerprint(there[name])) != checksum:
            raise ValueError(f"{name} has the SHA-256 {found}, but {SUMS} lists {checksum}. Download {name} again.")

"""`SHA256SUMS`: what the files of a repository must contain, in the form that `sha256sum --check` reads."""

from __future__ import annotations

from pathlib import Path

from ..fingerprints import file_fingerprint

SUMS = "SHA256SUMS"
CARD = "README.md"


def write_sums(folder: Path) -> None:
    """Sum up all files below `folder`, except the card, which is often edited on the Hub itself."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, CARD)]
    lines = [f"{file_fingerprint(path)}  {path.relative_to(folder).as_posix()}\n" for path in sorted(paths)]
    (folder / SUMS).write_text("".join(lines))


def read_sums(path: Path) -> dict[str, str]:
    """Checksum by name.

    Raises:
        ValueError: If the file is not of that form.
    """
    sums = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        checksum, _, name = line.partition("  ")
        if len(checksum) != 64 or not name:
            raise ValueError(f"Line {number} of {SUMS} must be a SHA-256, two spaces and a name, got '{line[:80]}'.")
        sums[name] = checksum
    return sums


def check_sums(folder: Path, sums: dict[str, str]) -> None:
    """See that the files of `folder` are those that `sums` tells.

    Raises:
        ValueError: If a file is absent or differs; the message names it.
    """
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, checksum in sums.items():
        if name not in there:
            raise ValueError(f"{SUMS} tells of {name}, which is not there.")
        if (found := file_fingerprint(there[name])) != checksum:
            raise ValueError(f"{name} must have the SHA-256 {checksum}, as {SUMS} says, got {found}.")

"""Zip files with images: unpacked within bounds, and never outside the target folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from ..cases.volume_rules import in_bytes
from ..model.findings import BadInputError

MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 16 * 1024**3
# Images shrink to a third or so; a picture of zeros alone, to a thousandth. A bomb is far beyond.
MAX_RATIO = 100
SMALL_BYTES = 64 * 1024**2


def unpack(path: Path, target: Path, *, max_bytes: int | None = None) -> None:
    """Unpack a zip file into `target`. Members get names of their own, because theirs may name the patient.

    Args:
        path: Zip file.
        target: Folder that exists.
        max_bytes: Largest sum of the unpacked files. `None` means `MAX_UNPACKED_BYTES`.

    Raises:
        BadInputError: If the file is damaged or encrypted, holds links or paths that lead out of the folder, or
            unpacks to more than the limits.
    """
    max_bytes = MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check(path, members, max_bytes)
            left = max_bytes
            for number, member in enumerate(members):
                with archive.open(member) as source, (target / f"{number:06d}").open("wb") as file:
                    # The size in the directory of the archive is a claim: `ZipExtFile` reads no more than it.
                    shutil.copyfileobj(source, file, 1024**2)
                left -= member.file_size
                assert left >= 0
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadInputError(path, "The zip file is damaged or of an unsupported kind. Unpack it first.") from error


def _check(path: Path, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > MAX_MEMBERS:
        raise BadInputError(path, f"The zip file holds {len(members)} files; at most {MAX_MEMBERS} are unpacked.")
    if total > max_bytes:
        raise BadInputError(
            path, f"The zip file unpacks to {in_bytes(total)}; at most {in_bytes(max_bytes)} are unpacked."
        )
    if total > SMALL_BYTES and total > MAX_RATIO * packed:
        raise BadInputError(path, f"The zip file unpacks to more than {MAX_RATIO} times its size. Images never do.")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise BadInputError(path, "The zip file holds a path that leads out of its folder. It is not unpacked.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadInputError(path, "The zip file holds a link. It is not unpacked.")
        if member.flag_bits & 0x1:
            raise BadInputError(path, "The zip file is encrypted. Unpack it first.")

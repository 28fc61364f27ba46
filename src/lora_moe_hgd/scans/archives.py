"""Zip files with images: unpacked within bounds, and never outside the target folder."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..cases.volume_rules import in_bytes
from ..model.findings import BadInputError

MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 16 * 1024**3
# Images shrink to a third or so; a picture of zeros alone, to a thousandth. A bomb is far beyond.
MAX_RATIO = 100
SMALL_BYTES = 64 * 1024**2
# What the packers raise for bytes that they cannot read. That of bzip2 is an `OSError` without a number.
DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)


def unpack(path: Path, target: Path, *, max_bytes: int | None = None, max_members: int | None = None) -> int:
    """Unpack a zip file into `target`. Members get names of their own, because theirs may name the patient.

    Args:
        path: Zip file.
        target: Folder that is made; its parent exists. It is deleted again on any error.
        max_bytes: Largest sum of the unpacked files. `None` means `MAX_UNPACKED_BYTES`.
        max_members: Largest number of files. `None` means `MAX_MEMBERS`.

    Returns:
        Bytes of the unpacked files.

    Raises:
        BadInputError: If the file is damaged or encrypted, holds links or paths that lead out of the folder, unpacks
            to more than the limits, or does not fit on the disk.
    """
    max_bytes = MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
    max_members = MAX_MEMBERS if max_members is None else max_members
    target.mkdir()
    done = False
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.endswith("/")]
            total = _check(path, members, max_bytes, max_members)
            free = shutil.disk_usage(target).free
            if total > free:
                raise BadInputError(
                    path, f"The zip file unpacks to {in_bytes(total)}, and the disk has {in_bytes(free)} left."
                )
            for number, member in enumerate(members):
                with archive.open(member) as source, (target / f"{number:06d}").open("wb") as file:
                    # The size in the directory of the archive is a claim: `ZipExtFile` reads no more than it.
                    shutil.copyfileobj(source, file, 1024**2)
        done = True
    except DAMAGED as error:
        raise _damaged(path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path) from error
        raise BadInputError(path, f"The zip file cannot be unpacked: {error.strerror}.") from error
    finally:
        if not done:
            shutil.rmtree(target, ignore_errors=True)
    return total


def _damaged(path: Path) -> BadInputError:
    return BadInputError(path, "The zip file is damaged or of an unsupported kind. Unpack it first.")


def _check(path: Path, members: list[zipfile.ZipInfo], max_bytes: int, max_members: int) -> int:
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > max_members:
        raise BadInputError(path, f"The zip file holds {len(members)} files; at most {max_members} are unpacked.")
    if total > max_bytes:
        raise BadInputError(
            path, f"The zip file unpacks to {in_bytes(total)}; at most {in_bytes(max_bytes)} are unpacked."
        )
    if total > SMALL_BYTES and total > MAX_RATIO * packed:
        raise BadInputError(path, f"The zip file unpacks to more than {MAX_RATIO} times its size. Images never do.")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]):
            raise BadInputError(path, "The zip file holds a path that leads out of its folder. It is not unpacked.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadInputError(path, "The zip file holds a link. It is not unpacked.")
        if member.flag_bits & 0x1:
            raise BadInputError(path, "The zip file is encrypted. Unpack it first.")
    return total

"""Unpack zip files with images, up to a limited size and never outside the target folder."""

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
# Largest ratio of unpacked to packed bytes. Zip shrinks an image to about a third. It shrinks zeros, of which zip
# bombs are made, to a thousandth. Files that unpack to at most `SMALL_BYTES` in all may have any ratio.
MAX_RATIO = 100
SMALL_BYTES = 64 * 1024**2
ONE_STUDY = "Give a zip file that contains only one study, or unpack the zip file yourself and give the folder."
IF_TRUSTED = "If you trust the zip file, unpack the file yourself, and give the folder."
# Errors of the decompressors for invalid bytes. The one of bzip2 also raises an `OSError` without `errno`.
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
    """Unpack a zip file into `target`.

    The unpacked files get numbers as names, because their names in the zip file may contain the patient's name.

    Args:
        path: Zip file.
        target: Folder to create, whose parent must exist. The folder is deleted on any error.
        max_bytes: Largest total size of the unpacked files, in bytes. `None` means `MAX_UNPACKED_BYTES`.
        max_members: Largest number of files. `None` means `MAX_MEMBERS`.

    Returns:
        Total size of the unpacked files, in bytes.

    Raises:
        BadInputError: If the file is damaged or encrypted, contains links or paths that lead out of `target`,
            contains more than `max_members` files or `max_bytes` bytes, or does not fit on the disk.
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
                    path,
                    f"The zip file unpacks to {in_bytes(total)}, but the disk has only {in_bytes(free)} left. Free "
                    "some space.",
                )
            for number, member in enumerate(members):
                with archive.open(member) as source, (target / f"{number:06d}").open("wb") as file:
                    # The archive may state a wrong size, but `ZipExtFile` never reads more than the stated size.
                    shutil.copyfileobj(source, file, 1024**2)
        done = True
    except DAMAGED as error:
        raise _damaged(path) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path) from error
        raise BadInputError(
            path,
            f"The zip file cannot be unpacked: {error.strerror}. Unpack the zip file yourself, and give the folder.",
        ) from error
    finally:
        if not done:
            shutil.rmtree(target, ignore_errors=True)
    return total


def _damaged(path: Path) -> BadInputError:
    return BadInputError(
        path, "The zip file is damaged or of an unsupported kind. Unpack the zip file yourself, and give the folder."
    )


def _check(path: Path, members: list[zipfile.ZipInfo], max_bytes: int, max_members: int) -> int:
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > max_members:
        raise BadInputError(
            path, f"The zip file contains {len(members)} files, but at most {max_members} are allowed. {ONE_STUDY}"
        )
    if total > max_bytes:
        raise BadInputError(
            path,
            f"The zip file unpacks to {in_bytes(total)}, but at most {in_bytes(max_bytes)} are allowed. {ONE_STUDY}",
        )
    if total > SMALL_BYTES and total > MAX_RATIO * packed:
        raise BadInputError(
            path, f"The zip file unpacks to more than {MAX_RATIO} times its size, which images never do. {IF_TRUSTED}"
        )
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]):
            raise BadInputError(
                path,
                "The zip file contains a path that leads out of the target folder, so nothing is unpacked. "
                f"{IF_TRUSTED}",
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadInputError(path, f"The zip file contains a link, so nothing is unpacked. {IF_TRUSTED}")
        if member.flag_bits & 0x1:
            raise BadInputError(path, "The zip file is encrypted. Unpack the zip file yourself, and give the folder.")
    return total

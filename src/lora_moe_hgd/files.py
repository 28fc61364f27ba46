"""Atomic writing of files and folders, and text for messages."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .model.findings import BadInputError

MAX_JSON_BYTES = 1_000_000
# For files that grow with the number of cases or of subsets of the sequences.
MAX_LONG_JSON_BYTES = 100_000_000


def read_json(path: Path, *, remedy: str = "", max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file that may come from a user.

    Args:
        path: The file.
        remedy: Sentences at the end of the error message: what the file is for, and what to do. May be empty if
            the caller catches the error, because nobody reads the message then.
        max_bytes: Largest size of the file. A larger file is not read.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadInputError: If the file has more than `max_bytes` bytes or is not valid JSON.
    """
    if path.stat().st_size > max_bytes:
        raise BadInputError(path, f"The file has more than {max_bytes} bytes, which is too much. {remedy}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(path, f"The file is not valid JSON ({error}). {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Atomic write: the yielded scratch file is renamed to `path` on success and deleted on error.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "a.txt") as scratch:
        ...     _ = scratch.write_text("whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        # The error for a full disk names no file, so add the name.
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Atomic write of a new folder: the yielded folder is renamed to `path` on success and deleted on error.

    Raises:
        FileExistsError: If `path` exists. Nothing is overwritten.

    Example:
        >>> import tempfile
        >>> with new_folder(Path(tempfile.mkdtemp()) / "new") as scratch:
        ...     _ = (scratch / "a.txt").write_text("whole")
        >>> scratch.exists()
        False
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already. Choose another folder, or remove the existing folder.")
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Atomic write of a folder: the yielded folder replaces `path` on success and is deleted on error.

    If the process is killed, `path` is missing, is the old folder or is the new folder, but is never a mixture.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp())
        >>> (path / "old.txt").touch()
        >>> with replacing_folder(path) as scratch:
        ...     (scratch / "new.txt").touch()
        >>> [file.name for file in path.iterdir()]
        ['new.txt']
    """
    old = path.with_name(f".{os.getpid()}-{path.name}.old")
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if path.exists():
            path.rename(old)
        scratch.rename(path)
    finally:
        # Restore the old folder if the new one could not be renamed.
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`.

    A temporary file is removed only if it would have become a file with one of the `names`. Do not call this function
    while another process writes to `folder`: the temporary files of that process would be removed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in (".71-case[1]", ".71-other", ".old-case[1]"):
        ...     (folder / name).mkdir()
        >>> remove_leftovers(folder, ["case[1]"])
        >>> sorted(path.name for path in folder.iterdir())
        ['.71-other', '.old-case[1]']
    """
    wanted = set(names)
    for path in folder.iterdir() if folder.is_dir() else ():
        process, _, name = path.name.removeprefix(".").partition("-")
        if path.name.startswith(".") and process.isdecimal() and name in wanted:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def printable(text: object) -> str:
    r"""Replace the characters of a text that cannot be encoded, so that the text can be printed and written.

    In file names, Python replaces bytes that are not UTF-8 by surrogates, which no encoding accepts.

    Example:
        >>> print(printable(b"M\xfcller".decode("utf-8", "surrogateescape")))
        M\udcfcller
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def listed(words: Iterable[str], *, separator: str = ", ", most: int = 10) -> str:
    """Join words to one text. If there are more than `most` words, the remaining words are only counted.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    every = list(words)
    rest = len(every) - most
    return separator.join(every[:most]) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, thing: str, things: str | None = None) -> str:
    """Write a number with its noun in the singular or the plural.

    Args:
        count: Number of things.
        thing: Noun in the singular.
        things: Noun in the plural. `None` means the singular with an `s`.

    Example:
        >>> counted(1, "case"), counted(0, "case"), counted(2, "series", "series")
        ('1 case', '0 cases', '2 series')
    """
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"


def volume_text(volume_ml: float) -> str:
    """Text of a volume in millilitres with one decimal, without the unit. A tiny volume is not shown as 0.0.

    Example:
        >>> volume_text(12.34), volume_text(0.04), volume_text(0.0)
        ('12.3', '< 0.1', '0.0')
    """
    return "< 0.1" if 0 < volume_ml < 0.05 else f"{volume_ml:.1f}"


def install_command(extra: str) -> str:
    """Text for messages: the command that installs an extra of this package.

    Example:
        >>> print(install_command("scans"))
        pip install "lora-moe-hgd[scans]"
    """
    # pip finds the installed package, so this works without a package index that lists it, and outside a clone.
    return f'pip install "lora-moe-hgd[{extra}]"'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of an error message: suggest the known name that is most similar to the mistyped `name`.

    Example:
        >>> did_you_mean("gliom", ["glioma", "tiny"]), did_you_mean("resnet", ["glioma", "tiny"])
        (" Did you mean 'glioma'?", '')
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def reason_of(error: Exception) -> str:
    """Message of an error on one line. The type of the error is added unless it is a `ValueError` or an `OSError`.

    Example:
        >>> reason_of(ValueError("The case has no T1.")), reason_of(KeyError("t1"))
        ('The case has no T1.', "KeyError: 't1'")
    """
    text = " ".join(printable(error).split())
    if text and isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it becomes `path` when the block ends well, and goes when it does not.

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
        # A full disk is reported without a name.
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)

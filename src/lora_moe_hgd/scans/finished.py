"""Check whether a folder already contains the case that `lora-moe-hgd prepare` would make."""

from __future__ import annotations

import glob
from dataclasses import asdict
from pathlib import Path

from ..cases.case_files import PREPARED
from ..files import read_json
from ..fingerprints import code_fingerprint, file_fingerprint, fingerprint
from .prepare import DEEPBET, NONE, ScanOptions
from .prepared import BRAIN_MASK, FILE_NAMES
from .raw import files_below


def inputs_fingerprint(source: Path, target: Path, options: ScanOptions) -> str | None:
    """Fingerprint of all inputs of a preparation: files, options and code.

    The result is `None` if a program of the user extracts the brain, because that program may have changed. The result
    is also `None` if a file cannot be read. The preparation then reports the error.

    Args:
        source: Path of the raw images.
        target: Folder for the case. If it is inside the folder of the raw images, its files are not inputs.
        options: Options of the preparation.
    """
    if options.brain_extraction not in (None, DEEPBET, NONE):
        return None
    folder = source if source.is_dir() else source.parent
    # A DICOMDIR lists files in its own folder. `source` may also be the common start of the paths of numbered files.
    is_folder = source.is_dir() or source.name.upper() == "DICOMDIR"
    files = files_below(folder) if is_folder else sorted(folder.glob(f"{glob.escape(source.name)}*"))
    try:
        contents = [
            (path.relative_to(folder).as_posix(), file_fingerprint(path))
            for path in files
            if path.is_file() and not path.resolve().is_relative_to(target.resolve())
        ]
        mask = None if options.brain_mask is None else file_fingerprint(options.brain_mask)
    except OSError:
        return None
    return fingerprint(contents, {**asdict(options), "brain_mask": mask}, code_fingerprint(f"{__package__}.prepare"))


def is_finished(target: Path, made_from: str | None) -> bool:
    """Whether `target` contains the complete case, made from inputs with the fingerprint `made_from`."""
    try:
        report = read_json(target / PREPARED)
        names = [FILE_NAMES[name] for name in report["sequences"]]
        same = made_from is not None and report["made_from"] == made_from
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return same and all((target / name).is_file() for name in (BRAIN_MASK, *names))

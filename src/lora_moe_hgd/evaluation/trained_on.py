"""Training cases of a checkpoint, as recorded in the folders of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..cases.case_files import CaseFiles
from ..files import read_json
from ..fingerprints import images_fingerprint
from ..loading import adapter_base, checkpoint_folder, is_adapter
from ..splits import FILE_NAME, Split, read_run_split


def trained_among(cases: Sequence[CaseFiles], checkpoint: Path) -> list[str]:
    """Return the sorted ids of the cases on which a checkpoint, or a base that its training started from, was trained.

    `RUN/split.csv` lists the training cases of checkpoints of a run, such as `RUN/best` and `RUN/best/adapter`. A
    shipped checkpoint has its own `split.csv`. The training cases of other checkpoints are unknown. The training cases
    of a base are also found if the base is a folder on this machine. A case is recognised by its id or by the content
    of its images.

    Args:
        cases: Cases that may be training cases.
        checkpoint: Folder of the checkpoint.
    """
    names: set[str] = set()
    contents: set[str] = set()
    for split in _splits_of(checkpoint):
        names.update(split.train)
        contents.update(split.contents[name] for name in split.train if name in split.contents)
    return sorted(
        case.case_id for case in cases if case.case_id in names or (contents and _content_of(case) in contents)
    )


def _content_of(case: CaseFiles) -> str | None:
    try:
        return images_fingerprint(case)
    except OSError:
        # Scoring the case will raise again and report the file that cannot be read.
        return None


def _splits_of(checkpoint: Path) -> Iterator[Split]:
    """Yield the split of each run that trained a checkpoint, or a base that its training started from."""
    seen: set[Path] = set()
    waiting = [checkpoint]
    while waiting:
        folder = waiting.pop().resolve()
        if folder in seen:
            continue
        seen.add(folder)
        bases = [adapter_base(folder)] if is_adapter(folder) else []
        if (folder / FILE_NAME).is_file():
            yield read_run_split(folder)
        run = folder.parent.parent if folder.name == "adapter" else folder.parent
        if (run / "run.json").is_file() and (run / FILE_NAME).is_file():
            yield read_run_split(run)
            record = read_json(
                run / "run.json",
                remedy="This file records the run that trained the checkpoint, and is needed to find its training "
                "cases. Restore the file. To score without knowledge of the training cases, copy the folder "
                f"{folder.name} to a place outside the run.",
            )
            base = record["config"]["base"]
            bases += [base] if base else []
        waiting += [checkpoint_folder(base) for base in bases if Path(base).is_dir()]

"""Which cases a checkpoint was trained on, as far as the folders of its runs say."""

from __future__ import annotations

import json
from pathlib import Path

from ..loading import adapter_base, checkpoint_folder, is_adapter
from ..splits import FILE_NAME, read_run_split


def trained_cases(checkpoint: Path) -> set[str]:
    """Ids of the cases that trained a checkpoint or a base that it was trained from.

    `RUN/split.csv` lists them for the checkpoints of a run, such as `RUN/best` and `RUN/best/adapter`. Nothing is
    known of other checkpoints. Bases are followed as long as they are folders on this machine.

    Args:
        checkpoint: Folder of the checkpoint.
    """
    found: set[str] = set()
    seen: set[Path] = set()
    waiting = [checkpoint]
    while waiting:
        folder = waiting.pop().resolve()
        if folder in seen:
            continue
        seen.add(folder)
        bases = [adapter_base(folder)] if is_adapter(folder) else []
        run = folder.parent.parent if folder.name == "adapter" else folder.parent
        if (run / "run.json").is_file() and (run / FILE_NAME).is_file():
            found.update(read_run_split(run).train)
            base = json.loads((run / "run.json").read_text())["config"]["base"]
            bases += [base] if base else []
        waiting += [checkpoint_folder(base) for base in bases if Path(base).is_dir()]
    return found

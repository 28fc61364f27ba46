"""The folder of a run: its checkpoints, its records, and the saved states from which the run is resumed.

- `run.json`: options, fingerprints of the other inputs, and whether the run is finished
- `split.csv`: training and validation cases, see `splits`
- `resume/`: saved states, see `states`
- `best/` and `last/`: checkpoints for `from_pretrained`; the subfolder `adapter/` contains the adapter alone
- `metrics.jsonl`: losses and scores per step, see `metrics_log`
- `pictures/`: a picture of a validation case after each validation
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from ..adapters.card import write_run_card
from ..adapters.presets import merged
from ..adapters.saving import save_adapter
from ..files import counted, read_json, remove_leftovers, replacing, replacing_folder
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import BRAIN_TUMOUR, Task
from ..splits import FILE_NAME as SPLIT_FILE
from ..splits import Split, read_run_split, write_run_split
from .options import NETWORK, NOTHING, RunConfig
from .states import RunState, keep_newest_state, newest_progress, read_state, write_state

RUN_FILE = "run.json"
STATES = "resume"
CHECKPOINTS = ("best", "last")


class RunFolder:
    """One output folder.

    Args:
        config: Options of the run. The option `output_dir` is the path of the folder.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir)

    def open(self, split: Split, *, made_from: Mapping[str, Any], task: Task = BRAIN_TUMOUR) -> None:
        """Prepare the folder: continue the run that it contains, or rename the folder and begin a new run.

        An unfinished run is continued if all inputs that influence its result are unchanged. With `--continue`, a
        changed or finished run is continued too.

        Args:
            split: Training and validation cases.
            made_from: All other inputs that influence the result, by name: versions, files, number of processes.
            task: Task that defines the sequences and regions.

        Raises:
            ValueError: If the folder contains files but no run, or if `--continue` finds no run or a run that cannot
                be continued with these options. Files that belong to no run are not changed.
        """
        names = [*CHECKPOINTS, *(f"{name}.old" for name in CHECKPOINTS), RUN_FILE, SPLIT_FILE]
        remove_leftovers(self.path, names)
        if not (self.path / RUN_FILE).is_file():
            if self.path.exists() and any(self.path.iterdir()):
                raise ValueError(
                    f"{self.path} contains files, but no run. Choose another `--output-dir`, or empty the folder."
                )
            if self.config.continue_run:
                raise ValueError(f"{self.path} contains no run to continue. Start a new run without `--continue`.")
        else:
            self._continue_or_move_aside(split, made_from)
        self.path.mkdir(parents=True, exist_ok=True)
        self.made_from, self.task = dict(made_from), task
        self._write_run(finished=False)
        write_run_split(self.path, split, fold=self.config.data.fold)

    def close(self) -> None:
        """Mark the run as finished, and keep only its last state, which `--continue` needs."""
        self._write_run(finished=True)
        keep_newest_state(self.path / STATES)

    def _continue_or_move_aside(self, split: Split, made_from: Mapping[str, Any]) -> None:
        run = read_json(
            self.path / RUN_FILE,
            remedy="This file records the options of the run. Restore the file, or choose another `--output-dir`.",
        )
        changes = self._changes(run, split, made_from)
        listed = "; ".join(changes.values())
        if self.config.continue_run:
            self._check_continuation(run, split, changes)
            print(
                f"Continuing the run in {self.path}. " + (f"Changed: {listed}." if changes else "Nothing has changed.")
            )
        elif run["finished"] or changes:
            aside = self.path.with_name(f"{self.path.name}-{datetime.now():%Y%m%d-%H%M%S}")
            self.path.rename(aside)
            kind = "finished" if run["finished"] else "unfinished"
            differs = f"other options: {listed}" if changes else "the same options"
            print(
                f"{self.path} contained an earlier run ({kind}, with {differs}). The earlier run is now in {aside}, "
                f"and a new run begins. To continue the earlier run instead, stop the new run, delete {self.path}, "
                f"rename {aside} to {self.path} and add `--continue`."
            )

    def _changes(self, run: Mapping[str, Any], split: Split, made_from: Mapping[str, Any]) -> dict[str, str]:
        """Describe each changed input that influences the result, such as `epochs 3 -> 5`, by name of the input."""
        ignored = self.config.marked(NOTHING)
        pairs = [
            *((name, _value(run["config"], name), value) for name, value in _as_json(self.config.values()).items()),
            *((name, run.get("made_from", {}).get(name), value) for name, value in _as_json(made_from).items()),
        ]
        changes = {name: f"{name} {old} -> {new}" for name, old, new in pairs if old != new and name not in ignored}
        if (self.path / SPLIT_FILE).is_file():
            old_split = read_run_split(self.path)
            for part in ("train", "validation"):
                old, new = set(getattr(old_split, part)), set(getattr(split, part))
                moved = [f"+{name}" for name in sorted(new - old)] + [f"-{name}" for name in sorted(old - new)]
                if moved:
                    changes[f"{part} cases"] = f"{part} cases {' '.join(moved)}"
        return changes

    def _check_continuation(self, run: Mapping[str, Any], split: Split, changes: Mapping[str, str]) -> None:
        """Check that the run in the folder can be continued.

        Raises:
            ValueError: If the run cannot be continued. The message names the reason and the remedy.
        """
        done = newest_progress(self.path / STATES)
        if run["finished"] and done is None:
            raise ValueError(
                f"The finished run in {self.path} has no state to continue from. Begin a new run in another "
                f"`--output-dir` with `--base {self.path / 'last'}`."
            )
        if fixed := sorted({*self.config.marked(NETWORK), "base weights", "task content"} & set(changes)):
            raise ValueError(
                f"`--continue` cannot change {', '.join(fixed)}, because the weights of this run would not fit "
                f"the changed network (changes: {'; '.join(changes[name] for name in fixed)}). Begin a new run in "
                "another `--output-dir`."
            )
        if done is not None and done.epoch >= self.config.epochs and (run["finished"] or "epochs" in changes):
            raise ValueError(
                f"The run in {self.path} has already done {counted(done.epoch, 'epoch')}. Continue the run with "
                f"more epochs, such as `--epochs {2 * done.epoch}`."
            )
        if done is not None and (self.path / SPLIT_FILE).is_file():
            trained = set(read_run_split(self.path).train)
            if gone := sorted(trained - set(split.train)):
                raise ValueError(
                    f"Training cases of the run in {self.path} are missing from the training cases of the new split: "
                    f"{', '.join(gone)}. Keep the old split with `--split-file {self.path / SPLIT_FILE}`, or begin a "
                    "new run in another `--output-dir`."
                )

    def save_state(self, state: RunState) -> None:
        """Write a state into the folder of states; see `states.write_state`."""
        write_state(self.path / STATES, state)

    def read_state(self) -> tuple[RunState | None, list[str]]:
        """Load the newest intact state and the warnings about damaged states; see `states.read_state`."""
        return read_state(self.path / STATES)

    def picture_path(self, epoch: int) -> Path:
        """Create the folder of pictures, and return the path for the picture of the validation after this epoch."""
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        return folder / f"epoch_{epoch:03d}.png"

    def save_checkpoint(
        self,
        name: str,
        network: PeftModel | LoraMoeHgdForSegmentation,
        processor: LoraMoeHgdImageProcessor,
        *,
        score: str,
    ) -> None:
        """Replace the checkpoint `name`.

        A checkpoint contains the network with the adapter merged into its weights, the processor and, in `adapter/`,
        the adapter alone.

        Raises:
            OSError: If the checkpoint cannot be written, as on a full disk. The previous checkpoint is kept.
        """
        try:
            self._write_checkpoint(name, network, processor, score)
        except SafetensorError as error:
            raise OSError(
                f"The checkpoint could not be written to {self.path / name}: {error}. Free some space and start the "
                "same command again. The run then resumes from the last saved state."
            ) from error

    def _write_checkpoint(
        self,
        name: str,
        network: PeftModel | LoraMoeHgdForSegmentation,
        processor: LoraMoeHgdImageProcessor,
        score: str,
    ) -> None:
        with replacing_folder(self.path / name) as scratch:
            merged(network).save_pretrained(scratch)
            processor.save_pretrained(scratch)
            if isinstance(network, PeftModel):
                save_adapter(network, scratch / "adapter", processor=processor, place=self.path / name / "adapter")
                base = str(network.peft_config["default"].base_model_name_or_path)
                write_run_card(scratch / "adapter", base=base, preset=self.config.adapter, score=score, task=self.task)

    def _write_run(self, *, finished: bool) -> None:
        task = None if self.task.is_brain_tumour else self.task.to_dict()
        content = {"config": self.config.to_dict(), "made_from": self.made_from, "task": task, "finished": finished}
        with replacing(self.path / RUN_FILE) as scratch:
            scratch.write_text(json.dumps(content, indent=2))


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to what they become when JSON is written and read again: tuples become lists."""
    return json.loads(json.dumps(dict(values)))


def _value(config: Any, name: str) -> Any:
    """Value of the option with this dotted name in a configuration from `run.json`; `None` for a missing option."""
    for key in name.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config

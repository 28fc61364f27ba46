"""The folder of a run: `best`, `last`, `logs`, and the state to go on from.

run.json        configuration and whether the run has ended
resume/         states to go on from, see `states`
best/, last/    checkpoints in `from_pretrained` form, with the adapter alone in `adapter/`
metrics.jsonl   what was measured, see `metrics_log`
pictures/       a held-out case at each validation
"""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

from peft import PeftModel

from ..files import replacing
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .adapters import merged, write_adapter_card
from .config import RunConfig
from .states import RunState, read_state, write_state

STATES = "resume"


class RunFolder:
    """One output folder.

    Args:
        config: The run's configuration; the folder is its `output_dir`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output_dir)

    def open(self) -> None:
        """Make the folder ready: keep the state of the same run if it was broken off, move any other run aside.

        Raises:
            ValueError: If the folder holds something that is no run; it is left alone.
        """
        if self.path.exists() and any(self.path.iterdir()) and not self._is_unfinished_same_run():
            if not (self.path / "run.json").is_file():
                raise ValueError(f"`output_dir` must be a new folder or that of a run, but {self.path} is neither.")
            aside = self.path.with_name(f"{self.path.name}-{datetime.now():%Y%m%d-%H%M%S}")
            self.path.rename(aside)
            print(f"{self.path} held another or a finished run; it is now {aside}.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_run(finished=False)

    def close(self) -> None:
        """Mark the run as finished; what only resuming needs goes."""
        self._write_run(finished=True)
        shutil.rmtree(self.path / STATES, ignore_errors=True)

    def save_state(self, state: RunState) -> None:
        """Write a state beside the older ones; see `states.write_state`."""
        write_state(self.path / STATES, state)

    def picture_path(self, epoch: int) -> Path:
        """Where the picture of a validation goes; its folder is made."""
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
        """Replace the checkpoint `name`: the merged network and its processor, and the adapter alone beside it."""
        scratch = self._scratch(name)
        merged(network).save_pretrained(scratch)
        processor.save_pretrained(scratch)
        if isinstance(network, PeftModel):
            network.save_pretrained(str(scratch / "adapter"))
            base = str(network.peft_config["default"].base_model_name_or_path)
            write_adapter_card(scratch / "adapter", base=base, preset=self.config.adapter, score=score)
        self._put_in_place(scratch, name)

    def _scratch(self, name: str) -> Path:
        scratch = self.path / f".{name}-new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return scratch

    def _put_in_place(self, scratch: Path, name: str) -> None:
        target, old = self.path / name, self.path / f".{name}-old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    def _write_run(self, *, finished: bool) -> None:
        with replacing(self.path / "run.json") as scratch:
            scratch.write_text(json.dumps({"config": self.config.to_dict(), "finished": finished}, indent=2))

    def _is_unfinished_same_run(self) -> bool:
        run_file = self.path / "run.json"
        if not run_file.is_file():
            return False
        run = json.loads(run_file.read_text())
        return not run["finished"] and run["config"] == json.loads(json.dumps(self.config.to_dict()))

    def read_state(self) -> tuple[RunState | None, list[str]]:
        """The state to go on from, `None` at the start of a run, and what is to be said; see `states.read_state`."""
        return read_state(self.path / STATES)

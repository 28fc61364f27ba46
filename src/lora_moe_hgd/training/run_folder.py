"""The folder of a run: `best`, `last`, `logs`, and the state to go on from.

run.json       configuration and whether the run has ended
resume/        weights, moving average (safetensors), optimizer and place in the run
best/, last/   checkpoints in `from_pretrained` form, with the adapter alone in `adapter/`
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import replacing
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .adapters import merged
from .config import RunConfig


@dataclass
class Place:
    """How far a run is.

    Attributes:
        epoch: Epochs done.
        step: Optimizer steps done.
        best_dice: Best mean Dice of a validation so far.
    """

    epoch: int = 0
    step: int = 0
    best_dice: float = -1.0


@dataclass
class RunState:
    """What `resume/` holds.

    Attributes:
        place: How far the run is.
        weights: Trained weights by name.
        average: Their moving average.
        optimizer: State of the optimizer.
    """

    place: Place
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]


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
        shutil.rmtree(self.path / "resume", ignore_errors=True)

    def save_state(self, state: RunState) -> None:
        """Replace `resume/` as a whole."""
        scratch = self._scratch("resume")
        save_file(
            {name: tensor.contiguous() for name, tensor in state.weights.items()}, scratch / "weights.safetensors"
        )
        save_file(
            {name: tensor.contiguous() for name, tensor in state.average.items()}, scratch / "average.safetensors"
        )
        torch.save(state.optimizer, scratch / "optimizer.bin")
        (scratch / "place.json").write_text(json.dumps(asdict(state.place)))
        self._put_in_place(scratch, "resume")

    def save_checkpoint(
        self, name: str, network: PeftModel | LoraMoeHgdForSegmentation, processor: LoraMoeHgdImageProcessor
    ) -> None:
        """Replace the checkpoint `name`: the merged network and its processor, and the adapter alone beside it."""
        scratch = self._scratch(name)
        merged(network).save_pretrained(scratch)
        processor.save_pretrained(scratch)
        if isinstance(network, PeftModel):
            network.save_pretrained(str(scratch / "adapter"))
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
        if not run_file.is_file() or not self._state_folder():
            return False
        run = json.loads(run_file.read_text())
        return not run["finished"] and run["config"] == json.loads(json.dumps(self.config.to_dict()))

    def _state_folder(self) -> Path | None:
        """`resume/`, or the one before it where a kill fell between two renames."""
        for name in ("resume", ".resume-old"):
            if (self.path / name / "place.json").is_file():
                return self.path / name
        return None

    def read_state(self) -> RunState | None:
        """The state to go on from; `None` at the start of a run."""
        folder = self._state_folder()
        if folder is None:
            return None
        return RunState(
            place=Place(**json.loads((folder / "place.json").read_text())),
            weights=load_file(folder / "weights.safetensors"),
            average=load_file(folder / "average.safetensors"),
            optimizer=torch.load(folder / "optimizer.bin", weights_only=True),
        )

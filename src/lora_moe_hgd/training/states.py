"""Saved states from which a run is resumed. Each state is written atomically, and verified before it is used.

The folder of a state, such as `step-00000120`, contains the weights, their moving average and the optimizer as
safetensors, `progress.json`, and `manifest.json` with the hashes of all files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..files import read_json

KEPT_STATES = 2


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Number of complete epochs.
        batch: Number of completed batches in the current epoch.
        batches: Number of batches in an epoch.
        step: Number of optimizer steps, including skipped steps.
        skipped: Number of steps that were skipped because their gradient was not finite.
        skipped_in_a_row: Number of skipped steps since the last step that updated the weights.
        best_score: Best validation score so far.
        scored_on: Fingerprint of everything that validation scores depend on, except the weights.
    """

    epoch: int = 0
    batch: int = 0
    batches: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_score: float = -math.inf
    scored_on: str = ""


@dataclass
class RunState:
    """Everything that the next training step depends on.

    Attributes:
        progress: Progress of the run.
        weights: Trained weights by name.
        average: Moving average of the trained weights.
        optimizer: `state_dict` of the optimizer.
        others: Other tensors by name, such as the running sums of the log.
        scaler: `state_dict` of the loss scaler for fp16, otherwise empty.
    """

    progress: Progress
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    others: dict[str, Tensor]
    scaler: dict[str, Any] = field(default_factory=dict)


class StateError(ValueError):
    """A state cannot be written or read. The error message says why and what to do."""


def write_state(folder: Path, state: RunState) -> None:
    """Write a state to `folder/step-...` atomically, and remove all but the newest `KEPT_STATES` states.

    Raises:
        StateError: If the disk is full or not writable. Older states are kept. The incomplete new state is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.progress.step:08d}"
    scratch = folder / f".{target.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    tensors, plain = _flatten_optimizer(state.optimizer)
    text = {"progress": asdict(state.progress), "optimizer": plain, "scaler": state.scaler}
    files = {
        "weights.safetensors": save(_contiguous(state.weights)),
        "average.safetensors": save(_contiguous(state.average)),
        "optimizer.safetensors": save(_contiguous(tensors)),
        "others.safetensors": save(_contiguous(state.others)),
        "progress.json": json.dumps(text).encode(),
    }
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        scratch.mkdir()
        for name, content in (*files.items(), ("manifest.json", json.dumps(manifest).encode())):
            with open(scratch / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        kept = _states(folder)
        raise StateError(
            f"The state of step {state.progress.step} could not be written to {folder}: {error.strerror}. Free some "
            "space and start the same command again. The run then resumes from "
            f"{kept[0].name if kept else 'the beginning'}."
        ) from error
    for old in _states(folder)[KEPT_STATES:]:
        shutil.rmtree(old)


def read_state(folder: Path) -> tuple[RunState | None, list[str]]:
    """Load the newest intact state, and return a warning for each newer state that is damaged.

    Returns:
        The state (`None` if the folder has no states), and the warnings.

    Raises:
        StateError: If there are states, but all of them are damaged.
    """
    warnings: list[str] = []
    for path in _states(folder):
        damaged = _damaged_file(path)
        if damaged is None:
            return _load(path), warnings
        warnings.append(f"{path / damaged} is damaged or missing. An older state is used instead.")
    if warnings:
        raise StateError(f"All states in {folder} are damaged. Remove {folder.parent} to start from the beginning.")
    return None, []


def newest_progress(folder: Path) -> Progress | None:
    """Progress of the run in the newest intact state, or `None` if there is no such state."""
    path = next((path for path in _states(folder) if _damaged_file(path) is None), None)
    return None if path is None else Progress(**_read_values(path)["progress"])


def keep_newest_state(folder: Path) -> None:
    """Remove all states but the newest."""
    for old in _states(folder)[1:]:
        shutil.rmtree(old)


def _states(folder: Path) -> list[Path]:
    """Folders of the states, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _damaged_file(path: Path) -> str | None:
    """Name of the first damaged file of a state, by the hashes in its manifest; `None` if the state is intact."""
    try:
        manifest = read_json(path / "manifest.json")
    except (OSError, ValueError):
        return "manifest.json"
    for name in _FILES:
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != manifest.get(name):
            return name
    return None


def _read_values(path: Path) -> dict[str, Any]:
    """Read all values of an intact state that are not tensors."""
    # The hash of this file has been verified, so its size needs no limit.
    values: dict[str, Any] = json.loads((path / "progress.json").read_bytes())
    return values


def _load(path: Path) -> RunState:
    text = _read_values(path)
    tensors = {name: load((path / f"{name}.safetensors").read_bytes()) for name in _TENSORS}
    return RunState(
        progress=Progress(**text["progress"]),
        weights=tensors["weights"],
        average=tensors["average"],
        optimizer=_unflatten_optimizer(tensors["optimizer"], text["optimizer"]),
        others=tensors["others"],
        scaler=text["scaler"],
    )


_TENSORS = ("weights", "average", "optimizer", "others")
_FILES = (*(f"{name}.safetensors" for name in _TENSORS), "progress.json")


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimizer into tensors, with names such as `0/exp_avg`, and values for a JSON file."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _unflatten_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in (*tensors.items(), *plain["numbers"].items()):
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": plain["groups"]}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", memory_format=torch.contiguous_format) for name, tensor in tensors.items()}

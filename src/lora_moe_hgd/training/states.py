"""States to go on from: the newest few, each a folder that is whole or not there, checked when read.

step-00000120/   weights, moving average, optimizer (safetensors), place.json, manifest.json with a hash of each file
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

KEPT_STATES = 2


@dataclass
class Place:
    """How far a run is.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the epoch after those.
        step: Optimizer steps done.
        skipped: Steps left out so far because their gradient was not finite.
        skipped_in_a_row: How many of these were the last ones.
        best_score: Best score of a validation so far.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_score: float = -math.inf


@dataclass
class RunState:
    """Everything that the next step depends on.

    Attributes:
        place: How far the run is.
        weights: Trained weights by name.
        average: Their moving average.
        optimizer: `state_dict` of the optimizer.
        others: Small tensors by name: running sums of the log.
        scaler: `state_dict` of the loss scaler of fp16; else empty.
    """

    place: Place
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    others: dict[str, Tensor]
    scaler: dict[str, Any] = field(default_factory=dict)


class StateError(ValueError):
    """No state can be written or read; the message says why and what to do."""


def write_state(folder: Path, state: RunState) -> None:
    """Write `folder/step-...` beside and rename it; then remove all but the newest `KEPT_STATES`.

    Raises:
        StateError: If the disk is full or not writable; nothing is left of the attempt, and older states stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.place.step:08d}"
    scratch = folder / f".{target.name}"
    shutil.rmtree(scratch, ignore_errors=True)
    tensors, plain = _flatten_optimizer(state.optimizer)
    text = {"place": asdict(state.place), "optimizer": plain, "scaler": state.scaler}
    files = {
        "weights.safetensors": save(_contiguous(state.weights)),
        "average.safetensors": save(_contiguous(state.average)),
        "optimizer.safetensors": save(_contiguous(tensors)),
        "others.safetensors": save(_contiguous(state.others)),
        "place.json": json.dumps(text).encode(),
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
            f"The state of step {state.place.step} could not be written to {folder}: {error.strerror}. Make room and "
            f"start the same command again; it goes on from {kept[0].name if kept else 'the beginning'}."
        ) from error
    for old in _states(folder)[KEPT_STATES:]:
        shutil.rmtree(old)


def read_state(folder: Path) -> tuple[RunState | None, list[str]]:
    """The newest state that is whole, and a word on each newer one that is not; `None` where there is none at all.

    Raises:
        StateError: If there are states and none of them is whole.
    """
    complaints: list[str] = []
    for path in _states(folder):
        damaged = _damaged_file(path)
        if damaged is None:
            return _load(path), complaints
        complaints.append(f"{path / damaged} is damaged or missing; the state before it is used.")
    if complaints:
        raise StateError(f"No state in {folder} is whole; remove {folder.parent} to start from the beginning.")
    return None, []


def _states(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _damaged_file(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return "manifest.json"
    for name, digest in manifest.items():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return name
    return None


def _load(path: Path) -> RunState:
    text = json.loads((path / "place.json").read_text())
    tensors = {name: load((path / f"{name}.safetensors").read_bytes()) for name in _TENSOR_FILES}
    return RunState(
        place=Place(**text["place"]),
        weights=tensors["weights"],
        average=tensors["average"],
        optimizer=_unflatten_optimizer(tensors["optimizer"], text["optimizer"]),
        others=tensors["others"],
        scaler=text["scaler"],
    )


_TENSOR_FILES = ("weights", "average", "optimizer", "others")


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `number/key`, and the rest, which JSON can hold."""
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

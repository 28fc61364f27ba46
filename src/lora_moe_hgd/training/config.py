"""The configuration of a run: one YAML file, one tree of dataclasses, each field also a command-line option.

A key that does not exist is an error, with the nearest one that does.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..data.channels import parse_channel_order
from ..evaluation.subsets import parse_subset
from ..model.label_schemes import LABEL_SCHEMES


def _require(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{rule}, got {value}.")


@dataclass
class DataConfig:
    """Where cases come from.

    Attributes:
        root: Folder of labelled cases.
        dataset: Hub id or folder of a `datasets` dataset of labelled cases, instead of `root`.
        split: Split of `dataset`.
        label_scheme: Scheme of the segmentations; `None` for that of the file names, which a `dataset` does not have.
        channel_order: Sequences of numbered channels in `root`, such as `[flair, t1, t1c, t2]`.
        skip_bad: Go on without cases of `root` that cannot be used, instead of refusing to start.
        phantoms: Number of phantoms to train on; beside cases they are mixed in.
        phantom_share: Share of the samples that come from phantoms, where there are cases, too.
        label_maps: Folder of FreeSurfer-style label maps of brains that phantoms begin from, beside the built-in one.
        val_phantoms: Number of other phantoms to validate on, where there are no cases.
        val_fraction: Share of the cases kept for validation, at least one.
        val_on_train: Validate on the training cases instead: for seeing whether a network can overfit.
        cache_dir: Where preprocessed cases and phantoms are kept.
        num_workers: Processes that load samples.
    """

    root: str | None = None
    dataset: str | None = None
    split: str = "train"
    label_scheme: str | None = None
    channel_order: tuple[str, ...] | None = None
    skip_bad: bool = False
    phantoms: int = 0
    phantom_share: float = 0.5
    label_maps: str | None = None
    val_phantoms: int = 8
    val_fraction: float = 0.2
    val_on_train: bool = False
    cache_dir: str = "~/.cache/lora-moe-hgd"
    num_workers: int = 2

    def __post_init__(self) -> None:
        _require(
            self.root is not None or self.dataset is not None or self.phantoms > 0,
            "Give `data.root`, `data.dataset` or `data.phantoms`",
            "none of them",
        )
        _require(
            self.root is None or self.dataset is None,
            "Give either `data.root` or `data.dataset`",
            f"{self.root} and {self.dataset}",
        )
        _require(
            self.label_scheme in LABEL_SCHEMES or (self.label_scheme is None and self.dataset is None),
            f"`data.label_scheme` must be one of {', '.join(LABEL_SCHEMES)}",
            self.label_scheme,
        )
        if self.channel_order is not None:
            self.channel_order = parse_channel_order(",".join(self.channel_order))
        _require(0 < self.phantom_share < 1, "`data.phantom_share` must be between 0 and 1", self.phantom_share)
        _require(0 < self.val_fraction < 1, "`data.val_fraction` must be between 0 and 1", self.val_fraction)
        _require(self.num_workers >= 0, "`data.num_workers` must not be negative", self.num_workers)


@dataclass
class SampleConfig:
    """What a training sample is.

    Attributes:
        crop_size: Edges of a crop in voxels, multiples of 16.
        crops_per_case: Crops of each case in an epoch.
        batch_size: Crops a process sees at once.
        spacing_mm: Voxel size to train at; `None` for the base's own, and from scratch 2 mm.
    """

    crop_size: tuple[int, int, int] = (64, 64, 64)
    crops_per_case: int = 4
    batch_size: int = 2
    spacing_mm: float | None = None

    def __post_init__(self) -> None:
        _require(
            len(self.crop_size) == 3 and all(edge > 0 and edge % 16 == 0 for edge in self.crop_size),
            "`sample.crop_size` must be three positive multiples of 16",
            self.crop_size,
        )
        for name in ("crops_per_case", "batch_size"):
            _require(getattr(self, name) >= 1, f"`sample.{name}` must be at least 1", getattr(self, name))
        _require(
            self.spacing_mm is None or self.spacing_mm > 0, "`sample.spacing_mm` must be positive", self.spacing_mm
        )


@dataclass
class OptimConfig:
    """How weights change.

    Attributes:
        lr: Highest learning rate of AdamW.
        weight_decay: On matrices and kernels; biases, norms and embeddings have none.
        warmup: Share of the run over which the learning rate rises.
        max_grad_norm: Gradients are scaled down to this norm.
        ema_decay: Decay of the moving average of the weights, which is what is validated and saved.
        accumulate: Batches per step.
        precision: `no` for float32, or `bf16`, `fp16`.
        gradient_checkpointing: Recompute the blocks of stem, encoder and decoder in the backward pass to save memory.
    """

    lr: float = 1.0e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    precision: str = "bf16"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        _require(self.lr > 0, "`optim.lr` must be positive", self.lr)
        _require(self.weight_decay >= 0, "`optim.weight_decay` must not be negative", self.weight_decay)
        _require(0 < self.warmup < 1, "`optim.warmup` must be between 0 and 1", self.warmup)
        _require(self.max_grad_norm > 0, "`optim.max_grad_norm` must be positive", self.max_grad_norm)
        _require(0 <= self.ema_decay < 1, "`optim.ema_decay` must be in [0, 1)", self.ema_decay)
        _require(self.accumulate >= 1, "`optim.accumulate` must be at least 1", self.accumulate)
        _require(
            self.precision in ("no", "bf16", "fp16"), "`optim.precision` must be no, bf16 or fp16", self.precision
        )


@dataclass
class ValidationConfig:
    """When and on what a run is scored.

    Attributes:
        every: Epochs between validations; the last epoch is always validated.
        subsets: Subsets of the sequences, such as `t1c+flair`; `all` is the complete case.
    """

    every: int = 1
    subsets: tuple[str, ...] = ("all", "t1c+flair", "t1+t2", "flair", "t1c")

    def __post_init__(self) -> None:
        self.subsets = tuple(self.subsets)
        _require(self.every >= 1, "`validation.every` must be at least 1", self.every)
        _require(len(self.subsets) > 0, "`validation.subsets` must name at least one subset", self.subsets)
        for name in self.subsets:
            parse_subset(name)


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        objective: `segment`; or `reconstruct`, which trains the encoder alone and needs no labels.
        base: Checkpoint to start from (shipped name, folder or Hub id); `None` to train from scratch.
        size: `tiny` or `base` to train from scratch; goes without a `base`.
        adapter: `lora`: LoRA alone; `lora+decoder`: LoRA, and stem, routers and decoder in full; `none`: all weights.
        lora: Options of PEFT's `LoraConfig`, any of them; targets are attention and experts, alpha twice the rank `r`.
        epochs: Passes over the cases.
        seed: Of weights, split and samples.
        output_dir: Gets `best`, `last`, `logs` and the states to go on from.
        save_every: Optimizer steps between states to go on from; one is written after each epoch, too.
        tracker: Where Accelerate sends what is measured, such as `tensorboard` or `wandb`; `none` for nowhere.
    """

    objective: str = "segment"
    base: str | None = "tiny"
    size: str | None = None
    adapter: str = "lora+decoder"
    lora: dict[str, Any] = field(default_factory=lambda: {"r": 8})
    epochs: int = 50
    seed: int = 0
    output_dir: str = "checkpoints"
    save_every: int = 200
    tracker: str = "tensorboard"
    data: DataConfig = field(default_factory=lambda: DataConfig(phantoms=100))
    sample: SampleConfig = field(default_factory=SampleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        _require(
            (self.base is None) != (self.size is None),
            "Give either `base`, a checkpoint, or `size`, to train from scratch (with the other null)",
            f"base {self.base} and size {self.size}",
        )
        _require(self.size in (None, "tiny", "base"), "`size` must be tiny or base", self.size)
        _require(
            self.objective in ("segment", "reconstruct"), "`objective` must be segment or reconstruct", self.objective
        )
        _require(
            self.objective == "segment" or self.adapter == "none",
            "With `objective: reconstruct`, `adapter` must be none",
            self.adapter,
        )
        _require(
            self.adapter in ("lora", "lora+decoder", "none"),
            "`adapter` must be lora, lora+decoder or none",
            self.adapter,
        )
        _require(
            self.base is not None or self.adapter == "none", "Without a `base`, `adapter` must be none", self.adapter
        )
        _require(
            self.adapter == "none" or self.sample.spacing_mm is None,
            "`sample.spacing_mm` needs `adapter: none`, as an adapter works with its base's own voxel size",
            self.sample.spacing_mm,
        )
        _require(self.epochs >= 1, "`epochs` must be at least 1", self.epochs)
        _require(self.save_every >= 1, "`save_every` must be at least 1", self.save_every)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_config(argv: Sequence[str]) -> RunConfig:
    """Read `--config FILE` and any `--field value` or `--part.field value`, with - or _ alike.

    Raises:
        ValueError: On an unknown key, with the nearest known one; on a wrong type; or on a broken rule.
    """
    parser = argparse.ArgumentParser(
        description="Train on a folder of cases or on phantoms.",
        epilog="Fields: " + ", ".join(f"--{name.replace('_', '-')}" for name in _leaves(RunConfig)),
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    args, rest = parser.parse_known_args(argv)
    if not args.config.is_file():
        raise ValueError(f"There is no configuration file {args.config}.")
    try:
        values = yaml.safe_load(args.config.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{args.config} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{args.config} must hold keys and values, got {type(values).__name__}.")
    for path, text in _overrides(rest):
        part = values
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = yaml.safe_load(text)
    return _build(RunConfig, values, where=str(args.config))


def _overrides(rest: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Pairs of field path and text from `--name value` and `--name=value`."""
    leaves = _leaves(RunConfig)
    found = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"Expected an option such as --epochs, got '{word}'.")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ValueError(f"The option --{name} needs a value.")
            text = words.pop(0)
        # The part `data` has one field that every command line needs.
        key = "data.root" if name == "data" else name.replace("-", "_")
        matches = [path for path in leaves.values() if ".".join(path) == key or path[-1] == key]
        if len(matches) != 1:
            known = list(leaves) + [path[-1] for path in leaves.values()]
            raise ValueError(f"Unknown option --{name}.{_nearest(key, known)}")
        found.append((matches[0], text))
    return found


def _leaves(part: type, prefix: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Dotted name and path of each field below `part`."""
    leaves: dict[str, tuple[str, ...]] = {}
    for name, kind in typing.get_type_hints(part).items():
        if dataclasses.is_dataclass(kind):
            leaves |= _leaves(typing.cast(type, kind), (*prefix, name))
        else:
            leaves[".".join((*prefix, name))] = (*prefix, name)
    return leaves


def _build(part: type, values: Any, *, where: str) -> Any:
    """Make the dataclass `part` from `values`; a typo must not become a default."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold keys and values, got {values!r}.")
    kinds = typing.get_type_hints(part)
    built = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise ValueError(f"Unknown key '{key}' in {where}.{_nearest(name, list(kinds))}")
        if dataclasses.is_dataclass(kinds[name]):
            built[name] = _build(typing.cast(type, kinds[name]), value, where=f"{name} of {where}")
        else:
            built[name] = _typed(value, kinds[name], where=f"{name} of {where}")
    return part(**built)


def _typed(value: Any, kind: Any, *, where: str) -> Any:
    """Return `value` as `kind`, or raise; whole numbers pass as floats, lists as tuples."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        item_kind = typing.get_args(kind)[0]
        return tuple(_typed(item, item_kind, where=where) for item in items)
    if typing.get_origin(kind) is dict:
        kind = dict
    # YAML reads `no` as false, which is also a precision.
    if kind is str and value is False:
        return "no"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        hint = " Write numbers as 2.0e-4: YAML reads 2e-4 as text." if kind is float and isinstance(value, str) else ""
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}.{hint}")
    return value


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(sorted(set(known)))}."

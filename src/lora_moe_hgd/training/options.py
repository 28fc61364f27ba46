"""Options of a run as a tree of dataclasses: defaults, rules, and what a change of each option does to a run.

`None`, which is `null` on the command line and in YAML, means "not given". An option that is given but has no effect
is an error. An option that is not given gets its default, unless the default would have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..cases.channels import parse_channel_order
from ..model.label_schemes import LABEL_SCHEMES
from ..model.task import BRAIN_TUMOUR, Task
from ..pretrained import shipped_names
from ..processes import is_fast_in_bf16
from ..subsets import parse_subset
from ..task_files import read_task

DEFAULT_SUBSETS = ("all", "t1c+flair", "t1+t2", "flair", "t1c")

# Marks of options. A mark says what a change of the option does to a run in progress. The change of an option without
# a mark changes the training.
# The option does not influence the result, which stays bit-identical.
NOTHING = {"changes": "nothing"}
# Later validation scores cannot be compared with earlier scores.
SCORE = {"changes": "score"}
# The weights so far would not fit the network, so even `--continue` refuses the change.
NETWORK = {"changes": "network"}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _refuse_idle(part: Any, prefix: str, names: tuple[str, ...], *, applies: bool, reason: str) -> None:
    """Raise an error if `applies` is false and an option in `names` is given, because it would have no effect."""
    for name in names:
        if getattr(part, name) is not None and not applies:
            option = name.replace("_", "-")
            raise ValueError(
                f"`{prefix}{name}` has no effect in this run. {reason} Leave the option out. If the configuration "
                f"file contains the option, add `--{option} null` to the command."
            )


@dataclass
class DataConfig:
    """Sources of the cases, and the split into training and validation.

    Attributes:
        root: Folder of labelled cases.
        dataset: Hub id or folder of labelled cases that the library `datasets` reads, instead of `root`.
        split: Split of `dataset`; `train` by default.
        label_scheme: Label scheme of the segmentations. By default, it is recognised from the file names. With
            `dataset`, this option is required.
        channel_order: For numbered files (`CASE_0000.nii.gz`) and 4-D files in `root` only: sequence of each file or
            channel, in ascending order, such as `[flair, t1, t1c, t2]`.
        skip_bad: Leave out cases of `root` that cannot be used, instead of refusing to start.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
        phantoms: Number of phantoms to train on, alone or mixed with cases.
        phantom_share: Share of the samples that come from phantoms when there are also cases; 0.5 by default.
        label_maps: Folder of FreeSurfer-style label maps of brains from which phantoms are made, in addition to the
            built-in brain.
        val_phantoms: Number of further phantoms for validation when there are no cases; 8 by default.
        val_fraction: Share of the cases that is used for validation, at least one case; 0.2 by default.
        folds: Number of folds of a cross-validation over the cases. The seed assigns the cases to folds.
        fold: Number of the fold that is used for validation. With `folds`, the folds are numbered from 0. With
            `split_file`, it is the number that the fold has in the file.
        split_file: CSV file or nnU-Net's `splits_final.json` that assigns cases to training and validation.
        val_on_train: Validate on the training cases, to see whether a network can overfit.
        cache_dir: Folder of preprocessed cases and phantoms.
        num_workers: Number of processes that load samples.
    """

    root: str | None = None
    dataset: str | None = field(default=None, metadata=SCORE)
    split: str | None = field(default=None, metadata=SCORE)
    label_scheme: str | None = field(default=None, metadata=SCORE)
    channel_order: tuple[str, ...] | None = field(default=None, metadata=SCORE)
    skip_bad: bool | None = field(default=None, metadata=NOTHING)
    # These two options may change, because each start of a run compares the accepted cases themselves.
    allow_skull: bool | None = field(default=None, metadata=NOTHING)
    allow_partial: bool | None = field(default=None, metadata=NOTHING)
    phantoms: int = 0
    phantom_share: float | None = None
    label_maps: str | None = field(default=None, metadata=SCORE)
    val_phantoms: int | None = field(default=None, metadata=SCORE)
    # The options of the split may change, because each start of a run compares the resulting split itself.
    val_fraction: float | None = field(default=None, metadata=NOTHING)
    folds: int | None = field(default=None, metadata=NOTHING)
    fold: int | None = field(default=None, metadata=NOTHING)
    split_file: str | None = field(default=None, metadata=NOTHING)
    val_on_train: bool | None = field(default=None, metadata=NOTHING)
    cache_dir: str = field(default="~/.cache/lora-moe-hgd", metadata=NOTHING)
    num_workers: int = field(default=2, metadata=NOTHING)

    def __post_init__(self) -> None:
        for name in ("phantom_share", "val_fraction"):
            value = getattr(self, name)
            _require(value is None or 0 < value < 1, f"`data.{name}` must be between 0 and 1, but is {value}.")
        for name, least in (("phantoms", 0), ("val_phantoms", 1), ("folds", 2), ("num_workers", 0)):
            value = getattr(self, name)
            _require(value is None or value >= least, f"`data.{name}` must be at least {least}, but is {value}.")
        self._check_sources()
        self._check_split()
        self._set_defaults()

    @property
    def has_cases(self) -> bool:
        """Whether the run uses cases, not only phantoms."""
        return self.root is not None or self.dataset is not None

    def _check_sources(self) -> None:
        _require(
            self.has_cases or self.phantoms > 0,
            "There is nothing to train on. Give `data.root`, `data.dataset` or `data.phantoms`.",
        )
        _require(
            self.root is None or self.dataset is None,
            f"`data.root` ({self.root}) and `data.dataset` ({self.dataset}) exclude each other. Omit one option.",
        )
        self._refuse_idle(
            "split", applies=self.dataset is not None, reason="The option applies only to `data.dataset`."
        )
        self._refuse_idle(
            *("channel_order", "skip_bad"),
            applies=self.root is not None,
            reason="The option applies only to the cases in `data.root`.",
        )
        self._refuse_idle(
            *("label_scheme", "allow_skull", "allow_partial"),
            applies=self.has_cases,
            reason="The option applies only to cases (`data.root` or `data.dataset`).",
        )
        self._refuse_idle(
            "label_maps", applies=self.phantoms > 0, reason="The option applies only to phantoms (`data.phantoms`)."
        )
        self._refuse_idle(
            "phantom_share",
            applies=self.has_cases and self.phantoms > 0,
            reason="The run does not mix cases (`data.root` or `data.dataset`) and phantoms (`data.phantoms`).",
        )
        self._refuse_idle(
            "val_phantoms", applies=not self.has_cases, reason="A run with cases is validated on cases, not phantoms."
        )

    def fit_to(self, task: Task) -> None:
        """Check the options whose allowed values depend on the task.

        Raises:
            ValueError: If a sequence or label scheme is unknown, or if an option has no effect with this task.
        """
        if self.channel_order is not None:
            self.channel_order = parse_channel_order(",".join(self.channel_order), task)
        if task.is_brain_tumour:
            _require(
                (self.dataset is None and self.label_scheme is None) or self.label_scheme in LABEL_SCHEMES,
                f"`data.label_scheme` must be one of {', '.join(LABEL_SCHEMES)}, but is "
                f"{self.label_scheme or 'missing'}.",
            )
            return
        self._refuse_idle("label_scheme", applies=False, reason=f"The task {task.name} has only one label scheme.")
        _require(
            self.phantoms == 0,
            f"`data.phantoms` must be 0 with the task {task.name}, because phantoms show brain tumours. Give "
            "`data.root` or `data.dataset`.",
        )

    def _check_split(self) -> None:
        self._refuse_idle(
            "val_fraction",
            "folds",
            "fold",
            "split_file",
            "val_on_train",
            applies=self.has_cases,
            reason="A run without cases (`data.root` or `data.dataset`) is validated on phantoms.",
        )
        chosen = [name for name in ("val_on_train", "split_file", "folds", "val_fraction") if getattr(self, name)]
        if len(chosen) > 1:
            self._refuse_idle(
                *chosen[1:], applies=False, reason=f"`data.{chosen[0]}` already chooses the validation cases."
            )
        _require(
            self.split_file is None or self.root is not None,
            "`data.split_file` needs `data.root`, because the cases of a dataset have no names.",
        )
        self._refuse_idle(
            "fold",
            applies=self.folds is not None or self.split_file is not None,
            reason="Only `data.folds` and `data.split_file` define folds.",
        )
        if self.folds is not None:
            _require(
                self.fold is not None and 0 <= self.fold < self.folds,
                f"With {self.folds} folds, `data.fold` must be from 0 to {self.folds - 1}, but is "
                f"{'missing' if self.fold is None else self.fold}.",
            )

    def _set_defaults(self) -> None:
        if self.dataset is not None and self.split is None:
            self.split = "train"
        if not self.has_cases:
            self.val_phantoms = self.val_phantoms or 8
            return
        if self.phantoms > 0 and self.phantom_share is None:
            self.phantom_share = 0.5
        if not (self.val_on_train or self.split_file or self.folds) and self.val_fraction is None:
            self.val_fraction = 0.2

    def _refuse_idle(self, *names: str, applies: bool, reason: str) -> None:
        _refuse_idle(self, "data.", names, applies=applies, reason=reason)


@dataclass
class SampleConfig:
    """Training samples.

    Attributes:
        crop_size: Edges of a crop in voxels, multiples of 16.
        crops_per_case: Number of crops of each case in an epoch.
        batch_size: Number of crops in a batch of one process.
        spacing_mm: Voxel size of the training samples. The default is the voxel size of the base checkpoint, or 1.5 mm
            without `base`.
    """

    crop_size: tuple[int, int, int] = (64, 64, 64)
    crops_per_case: int = 4
    batch_size: int = 2
    spacing_mm: float | None = field(default=None, metadata=SCORE)

    def __post_init__(self) -> None:
        _require(
            all(edge > 0 and edge % 16 == 0 for edge in self.crop_size),
            f"`sample.crop_size` must be three positive multiples of 16, but is {self.crop_size}.",
        )
        for name in ("crops_per_case", "batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"`sample.{name}` must be at least 1, but is {value}.")
        _require(
            self.spacing_mm is None or self.spacing_mm > 0,
            f"`sample.spacing_mm` must be positive, but is {self.spacing_mm}.",
        )


@dataclass
class OptimConfig:
    """Optimization.

    Attributes:
        lr: Highest learning rate of AdamW.
        weight_decay: Weight decay of matrices and kernels. Biases, norms and embeddings have no weight decay.
        warmup: Share of the run over which the learning rate rises.
        max_grad_norm: Largest norm of the gradient. Gradients with a larger norm are scaled down.
        ema_decay: Decay of the moving average of the weights. The averaged weights are validated and saved.
        accumulate: Number of batches per optimizer step.
        precision: `no` for float32, `bf16` or `fp16`. `auto` means `bf16` on hardware that computes bf16 fast, else
            `no`.
        gradient_checkpointing: Save memory by computing the blocks of stem, encoder and decoder again in the backward
            pass.
    """

    lr: float = 1.0e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    precision: str = "auto"
    gradient_checkpointing: bool = field(default=False, metadata=NOTHING)

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"`optim.lr` must be positive, but is {self.lr}.")
        _require(self.weight_decay >= 0, f"`optim.weight_decay` must not be negative, but is {self.weight_decay}.")
        _require(0 < self.warmup < 1, f"`optim.warmup` must be between 0 and 1, but is {self.warmup}.")
        _require(self.max_grad_norm > 0, f"`optim.max_grad_norm` must be positive, but is {self.max_grad_norm}.")
        _require(
            0 <= self.ema_decay < 1, f"`optim.ema_decay` must be at least 0 and below 1, but is {self.ema_decay}."
        )
        _require(self.accumulate >= 1, f"`optim.accumulate` must be at least 1, but is {self.accumulate}.")
        _require(
            self.precision in ("auto", "no", "bf16", "fp16"),
            f"`optim.precision` must be auto, no, bf16 or fp16, but is {self.precision}.",
        )
        # Replace `auto` here, so that a run records the precision that it was trained with.
        if self.precision == "auto":
            self.precision = "bf16" if is_fast_in_bf16() else "no"


@dataclass
class ValidationConfig:
    """Options of the validation: after which epochs, and for which subsets of the sequences.

    Attributes:
        every: Number of epochs from one validation to the next. The last epoch is always validated.
        subsets: Subsets of the sequences, such as `t1c+flair`; `all` means all sequences together. Each subset is
            scored on the validation cases that have all of its sequences. The default is `all`, `t1c+flair`, `t1+t2`,
            `flair` and `t1c`; for a task of your own, all sequences together and each sequence alone.
    """

    every: int = 1
    subsets: tuple[str, ...] | None = field(default=None, metadata=SCORE)

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"`validation.every` must be at least 1, but is {self.every}.")
        if self.subsets is None:
            return
        _require(len(self.subsets) > 0, "`validation.subsets` must name at least one subset.")

    def fit_to(self, task: Task) -> None:
        """Check that each subset consists of sequences of the task.

        Raises:
            ValueError: If a sequence is unknown, or a subset occurs twice.
        """
        if self.subsets is None:
            return
        masks = [parse_subset(name, task.modalities) for name in self.subsets]
        _require(
            len(set(masks)) == len(masks), f"`validation.subsets` names a subset twice: {', '.join(self.subsets)}."
        )


@dataclass(kw_only=True)
class RunConfig:
    """All options of a run.

    Attributes:
        objective: `segment`, or `reconstruct`, which trains only the encoder and needs no labels.
        base: Checkpoint to start from (shipped name, folder or Hub id); `null` to train from scratch.
        task: YAML file of a task of your own, see docs/tasks.md. The default is the task of the base, or brain tumour
            if there is no base.
        size: Size of a network that is trained from scratch: `tiny` or `base`.
        adapter: `lora` trains LoRA alone; `lora+decoder` trains LoRA and all weights of stem, routers and decoder;
            `none` trains all weights.
        lora: Options of PEFT's `LoraConfig`. By default, LoRA is added to attention and experts, the rank `r` is 8,
            and alpha is twice the rank.
        epochs: Number of passes over the training cases.
        seed: Seed of initial weights, split and samples.
        output_dir: Folder of the run: `best`, `last`, logs, and the saved states from which the run is resumed.
        save_every: Number of optimizer steps from one saved state to the next. A state is also saved after each epoch.
        tracker: Experiment tracker of Accelerate, such as `tensorboard` or `wandb`, or `none`.
        continue_run: Continue the run in `output_dir` although options have changed (`--continue`).
    """

    objective: str = field(default="segment", metadata=NETWORK)
    base: str | None = field(default="tiny", metadata=NETWORK)
    # The path does not matter, because the content of the file is compared.
    task: str | None = field(default=None, metadata=NOTHING)
    size: str | None = field(default=None, metadata=NETWORK)
    adapter: str = field(default="lora+decoder", metadata=NETWORK)
    lora: dict[str, Any] | None = field(default=None, metadata=NETWORK)
    epochs: int = 50
    seed: int = 0
    output_dir: str = field(default="checkpoints", metadata=NOTHING)
    save_every: int = field(default=200, metadata=NOTHING)
    tracker: str = field(default="tensorboard", metadata=NOTHING)
    data: DataConfig
    sample: SampleConfig
    optim: OptimConfig
    validation: ValidationConfig
    continue_run: bool = field(default=False, init=False, metadata=NOTHING)

    def __post_init__(self) -> None:
        _require(
            self.objective in ("segment", "reconstruct"),
            f"`objective` must be segment or reconstruct, but is {self.objective}.",
        )
        _require(self.size in (None, "tiny", "base"), f"`size` must be tiny or base, but is {self.size}.")
        _require(
            self.adapter in ("lora", "lora+decoder", "none"),
            f"`adapter` must be lora, lora+decoder or none, but is {self.adapter}.",
        )
        _require(
            (self.base is None) != (self.size is None),
            f"Either `base` or `size` must be null, but not both. Here `base` is {self.base} and `size` is "
            f"{self.size}. Set `size` to null to start from a checkpoint, or `base` to null to train from scratch.",
        )
        _require(
            self.objective == "segment" or self.adapter == "none",
            f"With `objective: reconstruct`, `adapter` must be none, but is {self.adapter}.",
        )
        _require(
            self.base is not None or self.adapter == "none",
            f"Without a `base`, `adapter` must be none, but is {self.adapter}.",
        )
        _refuse_idle(
            self, "", ("lora",), applies=self.adapter != "none", reason="With `adapter: none`, no adapter is trained."
        )
        _refuse_idle(
            self.sample,
            "sample.",
            ("spacing_mm",),
            applies=self.adapter == "none",
            reason=f"With `adapter: {self.adapter}`, the base checkpoint determines the voxel size.",
        )
        _refuse_idle(
            self.validation,
            "validation.",
            ("subsets",),
            applies=self.objective == "segment",
            reason="With `objective: reconstruct`, the validation scores no subsets.",
        )
        _require(self.epochs >= 1, f"`epochs` must be at least 1, but is {self.epochs}.")
        _require(self.save_every >= 1, f"`save_every` must be at least 1, but is {self.save_every}.")
        if self.adapter != "none" and self.lora is None:
            self.lora = {"r": 8}
        if self.task is not None:
            self.fit_to(read_task(self.task))
        elif self.base is None or self.base in shipped_names():
            self.fit_to(BRAIN_TUMOUR)

    def fit_to(self, task: Task) -> None:
        """Check the options whose allowed values depend on the task.

        `train` calls this method after it has loaded the base checkpoint, which may define the task.

        Raises:
            ValueError: If a sequence or label scheme is unknown, or if an option has no effect with this task.
        """
        self.data.fit_to(task)
        self.validation.fit_to(task)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def values(self) -> dict[str, Any]:
        """Value of each option, by its dotted name."""
        return {".".join(path): value for path, value, _ in _leaves(self)}

    def marked(self, mark: Mapping[str, str]) -> set[str]:
        """Dotted names of the options with this mark, such as `NETWORK`.

        The mark of an option says what a change of this option affects.
        """
        return {".".join(path) for path, _, metadata in _leaves(self) if metadata == mark}


def _leaves(part: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Mapping[str, str]]]:
    """Yield the names that lead to each option in `part`, such as `("data", "root")`, its value and its metadata."""
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, (*prefix, item.name))
        else:
            yield (*prefix, item.name), value, item.metadata

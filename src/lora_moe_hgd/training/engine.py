"""From a configuration to a trained network: what a run is built of. The steps themselves are in `loop`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from torch import nn

from ..data.case_files import NO_GROUND_TRUTH
from ..data.datasets import (
    CachedCases,
    CaseDataset,
    CaseSource,
    ChosenCases,
    MixedCases,
    PhantomDataset,
)
from ..data.layouts import survey
from ..data.streams import StreamedCases
from ..data.style import WIDE, PhantomStyle
from ..loading import base_name, load_checkpoint
from ..model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from ..model.findings import Finding
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..processes import refuse_lone_process
from .adapters import add_adapter
from .config import RunConfig, read_config
from .loop import Network, TrainingLoop
from .objectives import Objective, SegmentationObjective
from .reconstruction import MaskedReconstruction, ReconstructionObjective
from .run_folder import RunFolder

Build = Callable[[RunConfig], tuple[Network, LoraMoeHgdImageProcessor]]

# Validation phantoms come from seeds that no training set reaches.
VALIDATION_SEED = 9_000_000

FROM_SCRATCH_SPACING_MM = (2.0, 2.0, 2.0)


def main(argv: Sequence[str]) -> None:
    """Train as the command line says."""
    train(read_config(argv))


def train(config: RunConfig, *, build: Build | None = None, style: PhantomStyle = WIDE) -> Path:
    """Train, and return the folder of the best checkpoint.

    Args:
        config: The run.
        build: What gives network and processor instead of `build_network`: for other networks that are called as the
            segmenter is.
        style: Ranges that phantoms are drawn from.

    Raises:
        ValueError: If the data or the base cannot be used; found before the first step.
    """
    accelerator = build_accelerator(config)
    set_seed(config.seed)
    network, processor = (build or build_network)(config)
    # FSDP2 takes contiguous weights only; convolutions are faster with the others.
    if accelerator.distributed_type != DistributedType.FSDP:
        nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    with accelerator.main_process_first():
        source, validation = build_data(config, processor, show=accelerator.is_main_process, style=style)
    run = RunFolder(config)
    if accelerator.is_main_process:
        run.open()
    accelerator.wait_for_everyone()
    objective: Objective
    if config.objective == "reconstruct":
        objective = ReconstructionObjective(config, accelerator, validation)
    else:
        objective = SegmentationObjective(config, accelerator, processor, validation, run)
    return TrainingLoop(config, accelerator, network, processor, source, objective, run).run_epochs()


def build_accelerator(config: RunConfig) -> Accelerator:
    """Processes, devices and precision as the launcher and the configuration say.

    Raises:
        ValueError: If the launcher was asked for processes that it did not start or for DeepSpeed, or a tracker is not
            installed.
    """
    refuse_lone_process()
    # It steps inside the backward pass and keeps the optimizer's state in a form of its own: neither a step whose
    # gradient is not finite could be left out, nor a run be resumed.
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError(
            "`accelerate launch` was asked for DeepSpeed, which runs cannot resume from. "
            "`--config_file configs/accelerate/fsdp2.yaml` also keeps weights and optimizer in parts."
        )
    known = [str(tracker) for tracker in get_available_trackers()]
    if config.tracker not in ("none", *known):
        raise ValueError(
            f"`tracker` must be none or one that is installed ({', '.join(known)}), got {config.tracker}."
        )
    return Accelerator(
        # Without a GPU Accelerate must be told, or processes started for a GPU do not find each other.
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.optim.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )


def build_network(config: RunConfig) -> tuple[Network, LoraMoeHgdImageProcessor]:
    """The network to train, with its adapter, and its processor."""
    if config.base is None:
        sizes = {"tiny": LoraMoeHgdConfig.tiny, "base": LoraMoeHgdConfig.base}
        network = LoraMoeHgdForSegmentation(sizes[str(config.size)]())
        processor = LoraMoeHgdImageProcessor(target_spacing_mm=FROM_SCRATCH_SPACING_MM)
    else:
        network, processor = load_checkpoint(config.base)
    if config.sample.spacing_mm is not None:
        processor.target_spacing_mm = [config.sample.spacing_mm] * 3
    if config.optim.gradient_checkpointing:
        network.activation_checkpointing_enable()
    if config.objective == "reconstruct":
        return MaskedReconstruction(network), processor
    if config.adapter == "none" or config.base is None:
        return network, processor
    return add_adapter(network, config.adapter, options=config.lora, base=base_name(config.base)), processor


def build_data(
    config: RunConfig, processor: LoraMoeHgdImageProcessor, *, show: bool, style: PhantomStyle = WIDE
) -> tuple[CaseSource, list[CaseSource]]:
    """Training and validation cases; files that are new are read here: a bad one is found before training.

    Raises:
        ValueError: If there are too few cases to keep one for validation, or one has no segmentation.
    """
    data = config.data
    cache_dir = Path(data.cache_dir).expanduser()

    def prepared(cases: CachedCases) -> CachedCases:
        cases.prepare_all(num_workers=data.num_workers, progress=show)
        return cases

    def phantoms(number: int, seed: int) -> CachedCases:
        label_maps = Path(data.label_maps) if data.label_maps else None
        return prepared(
            PhantomDataset(
                number, seed=seed, label_maps=label_maps, style=style, processor=processor, cache_dir=cache_dir
            )
        )

    if data.root is None and data.dataset is None:
        return phantoms(data.phantoms, config.seed), [phantoms(data.val_phantoms, VALIDATION_SEED)]
    cases: CachedCases
    if data.root is not None:
        cases = _cases_below(Path(data.root), config, processor, cache_dir, show=show)
    else:
        scheme = str(data.label_scheme)
        cases = prepared(
            StreamedCases(
                str(data.dataset), split=data.split, label_scheme=scheme, processor=processor, cache_dir=cache_dir
            )
        )
    _require_two(len(cases), config)
    held_out, rest = split(len(cases), config)
    training: CaseSource = ChosenCases(cases, rest)
    if data.phantoms:
        shares = [1 - data.phantom_share, data.phantom_share]
        training = MixedCases([training, phantoms(data.phantoms, config.seed)], shares)
    return training, [ChosenCases(cases, held_out)]


def _cases_below(
    root: Path, config: RunConfig, processor: LoraMoeHgdImageProcessor, cache_dir: Path, *, show: bool
) -> CachedCases:
    """Every case below `root`, read and judged as `lora-moe-hgd check` does; without the bad ones if so configured.

    Raises:
        ValueError: If a case cannot be used; the message lists them.
    """
    data = config.data
    found, findings = survey(root, channel_order=data.channel_order)
    cases = [case.in_scheme(data.label_scheme) for case in found]
    if config.objective == "segment":
        unlabelled = [case for case in cases if case.segmentation is None]
        findings += [Finding(case.folder, NO_GROUND_TRUTH, "error") for case in unlabelled]
        cases = [case for case in cases if case.segmentation is not None]
    dataset = CaseDataset(cases, processor=processor, cache_dir=cache_dir)
    bad = dataset.prepare_all(num_workers=data.num_workers, progress=show)
    findings += bad.values()
    if findings and not data.skip_bad:
        shown = "".join(f"\n  {finding}" for finding in findings)
        raise ValueError(
            f"All cases in {root} must be usable, got {len(findings)} that are not (`--skip-bad true` goes on without "
            f"them, `lora-moe-hgd check {root}` tells more):{shown}"
        )
    for finding in findings if show else ():
        print(f"left out: {finding}", file=sys.stderr)
    return dataset.without(bad)


def _require_two(number: int, config: RunConfig) -> None:
    if number < 2 and not config.data.val_on_train:
        where = config.data.root or config.data.dataset
        raise ValueError(f"{where} must hold at least 2 cases, one of them for validation, got {number}.")


def split(number: int, config: RunConfig) -> tuple[list[int], list[int]]:
    """Validation and training cases by their number, in order: a split that the seed fixes."""
    everything = list(range(number))
    if config.data.val_on_train:
        return everything, everything
    order = torch.randperm(number, generator=torch.Generator().manual_seed(config.seed)).tolist()
    num_validation = min(max(1, round(config.data.val_fraction * number)), number - 1)
    chosen = set(order[:num_validation])
    return [index for index in everything if index in chosen], [index for index in everything if index not in chosen]

"""Build network, data and objective of a run from its options, and train. The training steps are in `loop`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from torch import nn

from ..adapters.presets import add_adapter
from ..fingerprints import fingerprint
from ..loading import base_name, checkpoint_folder, load_checkpoint, weights_digest
from ..model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.task import BRAIN_TUMOUR, Task
from ..phantoms.style import WIDE, PhantomStyle
from ..processes import main_process_first, refuse_lone_process
from ..splits import Split
from ..task_files import read_task
from .config import build_parser as build_parser
from .config import read_config
from .loop import Network, TrainingLoop
from .objectives import Objective, SegmentationObjective
from .options import SCORE, RunConfig
from .reconstruction import MaskedReconstruction, ReconstructionObjective
from .run_folder import RunFolder
from .sources import RunData, build_data
from .start import differing, start_from

Build = Callable[[RunConfig], tuple[Network, LoraMoeHgdImageProcessor]]

FROM_SCRATCH_SPACING_MM = (1.5, 1.5, 1.5)


def main(argv: Sequence[str]) -> None:
    """Train with the options of the command line."""
    train(read_config(argv))


def train(config: RunConfig, *, build: Build | None = None, style: PhantomStyle = WIDE) -> Path:
    """Train, and return the folder of the best checkpoint.

    Args:
        config: Options of the run.
        build: Function that builds network and processor instead of `build_network`. The network must have the call
            signature of `LoraMoeHgdForSegmentation`.
        style: Ranges of the random properties of phantoms.

    Raises:
        ValueError: If the data, the base checkpoint or the output folder cannot be used. This is checked before the
            first step.
    """
    accelerator = build_accelerator(config)
    set_seed(config.seed)
    run = RunFolder(config)
    shows = accelerator.is_main_process
    with main_process_first(accelerator.state):
        network, processor = (build or build_network)(config)
        task = processor.segmentation_task
        config.fit_to(task)
        data = build_data(config, processor, show=shows, style=style)
        objective: Objective
        if config.objective == "reconstruct":
            objective = ReconstructionObjective(config, accelerator, data)
        else:
            objective = SegmentationObjective(config, accelerator, processor, data, run)
        if shows:
            run.open(data.split, made_from=_made_from(config, accelerator, data, task), task=task)
    # Convolutions are faster in channels-last format, but FSDP2 accepts contiguous weights only.
    if accelerator.distributed_type != DistributedType.FSDP:
        nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    scored_on = _scored_on(config, data.split)
    loop = TrainingLoop(config, accelerator, network, processor, data.train, objective, run, scored_on=scored_on)
    return loop.run_epochs()


def _made_from(config: RunConfig, accelerator: Accelerator, data: RunData, task: Task) -> dict[str, Any]:
    """Inputs of a run besides options and case ids, by name: version, content of files, and number of processes."""
    return {
        "package version": version("lora-moe-hgd"),
        "base weights": None if config.base is None else weights_digest(checkpoint_folder(config.base))[:16],
        "task content": None if task.is_brain_tumour else fingerprint(task.to_dict())[:16],
        "content of the cases": data.content[:16],
        "processes": accelerator.num_processes,
    }


def _scored_on(config: RunConfig, split: Split) -> str:
    """Fingerprint of everything that validation scores depend on, except the weights."""
    values = config.values()
    content = [{name: values[name] for name in sorted(config.marked(SCORE))}, split.validation]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def build_accelerator(config: RunConfig) -> Accelerator:
    """Set up processes, devices and precision from the launcher and the configuration.

    Raises:
        ValueError: If the launcher was asked for several processes but started only one, if it uses DeepSpeed, or if
            the tracker is not installed.
    """
    refuse_lone_process()
    # DeepSpeed updates the weights inside the backward pass and stores the optimizer's state in its own format. So
    # steps whose gradient is not finite could not be skipped, and runs could not be resumed.
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ValueError(
            "`accelerate launch` is set to use DeepSpeed, but runs with DeepSpeed cannot be resumed. Use "
            "`--config_file configs/accelerate/fsdp2.yaml`, which also shards weights and optimizer."
        )
    known = [str(tracker) for tracker in get_available_trackers()]
    if config.tracker not in ("none", *known):
        raise ValueError(
            f"`tracker` must be none or an installed tracker ({', '.join(known)}), but is {config.tracker}."
        )
    return Accelerator(
        # On a machine without a GPU, processes that were launched for GPUs cannot communicate unless `cpu=True`.
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.optim.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )


def build_network(config: RunConfig) -> tuple[Network, LoraMoeHgdImageProcessor]:
    """Build the network to train, including its adapter, and the processor.

    Raises:
        ValueError: If the base checkpoint cannot be used, or if an adapter is requested although the task has other
            sequences or regions than the base.
    """
    given = None if config.task is None else read_task(config.task)
    if config.base is None:
        sizes = {"tiny": LoraMoeHgdConfig.tiny, "base": LoraMoeHgdConfig.base}
        task = given or BRAIN_TUMOUR
        network = LoraMoeHgdForSegmentation(sizes[str(config.size)](modalities=task.modalities, regions=task.regions))
        processor = LoraMoeHgdImageProcessor(
            target_spacing_mm=FROM_SCRATCH_SPACING_MM, task=None if given is None else given.to_dict()
        )
    else:
        network, processor = load_checkpoint(config.base)
        if given is not None and given != processor.segmentation_task:
            if config.adapter != "none" and differing(processor.segmentation_task, given):
                raise ValueError(
                    f"`adapter` must be none, but is {config.adapter}: {config.task} has other sequences or regions "
                    f"than {config.base}, and an adapter cannot change these. Train all weights "
                    "with `--adapter none --lora null`. You can train adapters for the resulting network later."
                )
            network, processor, lines = start_from(network, processor, given)
            # With several processes, only the first process prints.
            PartialState().print("\n".join([f"{given.name} starts from {config.base}.", *lines]))
    if config.sample.spacing_mm is not None:
        processor.target_spacing_mm = [config.sample.spacing_mm] * 3
    if config.optim.gradient_checkpointing:
        network.activation_checkpointing_enable()
    if config.objective == "reconstruct":
        return MaskedReconstruction(network), processor
    if config.adapter == "none" or config.base is None:
        return network, processor
    return add_adapter(network, config.adapter, options=config.lora or {}, base=base_name(config.base)), processor

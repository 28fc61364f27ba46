"""Compare networks and ways of training with the same data, the same steps or minutes, and the same scores."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.files import replacing
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from lora_moe_hgd.model.sliding_window import OVERLAP
from lora_moe_hgd.processes import is_fast_in_bf16
from lora_moe_hgd.subsets import EVERY_SUBSET, Mask
from lora_moe_hgd.training import engine, objectives
from lora_moe_hgd.training.averaging import WeightAverage
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.data.datasets import CaseDataset, CaseSource, ChosenCases, PhantomDataset
from lora_moe_hgd.training.engine import Build, train
from lora_moe_hgd.training.loop import build_optimizer
from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd.training.objectives import SegmentationObjective, predict
from lora_moe_hgd.training.options import RunConfig
from lora_moe_hgd.training.schedule import draw_subset
from lora_moe_hgd.training.sources import VALIDATION_SEED, RunData, build_data

ROOT = Path(__file__).parents[1]
VAL_PHANTOMS = 8
# Share of a window that overlaps with the next window, when trials are scored. An overlap of a half takes three times
# as long.
TRIAL_OVERLAP = 0.0
Scored = tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]
PHANTOMS = ("--phantoms", "100", "--phantom-share", "0.8", "--val-phantoms", "null")
BUDGET = ("--epochs", "3", "--every", "3", "--subsets", "[all]", "--tracker", "none")
# Number of training steps that are timed for each network.
TIMED_STEPS = 3


@dataclass(frozen=True)
class Trial:
    """A network and a way to train it.

    Attributes:
        build: Function that builds network and processor from the options of the run.
        training: Function that returns a context manager, inside which the network is trained.
        options: Further options of `train.py`.
    """

    build: Build
    training: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: tuple[str, ...] = ()


def without_curriculum() -> AbstractContextManager[Any]:
    """Train with all regions and all subsets from the first step."""
    return patch.multiple(
        objectives,
        region_weights=lambda progress, regions: (1.0,) * regions,
        draw_subset=lambda acquired, progress, generator: draw_subset(acquired, 1.0, generator),
    )


def mean_dice(
    network: nn.Module,
    source: CaseSource,
    subsets: Sequence[Mask] = EVERY_SUBSET,
    *,
    every: int = 1,
    overlap: float = OVERLAP,
) -> list[float]:
    """Mean Dice of each region over cases and subsets.

    Args:
        network: Network to score.
        source: Cases to score on.
        subsets: Subsets of the sequences.
        every: Score case number `i` on each `every`-th subset, beginning with number `i % every`.
        overlap: Share of a window that overlaps with the next window.
    """
    values = []
    for index in range(len(source)):
        case = source[index]
        for subset in subsets[index % every :: every]:
            predicted = predict(network, case["pixel_values"], subset, overlap=overlap)
            values.append([dice(*pair) for pair in zip(predicted, case["labels"], strict=True)])
    return np.mean(values, axis=0).tolist()


def score_cases(
    scored: Scored, cases: list[CaseFiles], subsets: Sequence[Mask], *, cache_dir: str, bf16: bool
) -> list[float]:
    """Mean Dice of each region over cases on disk and the subsets, on the network's own grid."""
    network, processor = scored
    nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    source = CaseDataset(cases, processor=processor, cache_dir=Path(cache_dir).expanduser())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return mean_dice(network, source, subsets)


def run_trial(trial: Trial, config: RunConfig, *, every: int) -> dict[str, Any]:
    """Train, then score the last weights on phantoms that no run trains on and on the held-out cases.

    Args:
        trial: Network and way to train it.
        config: Options of the run.
        every: Step between the scored subsets, as in `mean_dice`.
    """
    began = time.process_time()
    with trial.training(), patch.object(SegmentationObjective, "validate", _skip_validation):
        train(config, build=trial.build)
    seconds = time.process_time() - began
    network, processor = trial.build(config)
    network.load_state_dict(load_file(Path(config.output_dir) / "last" / "model.safetensors"))
    nn.Module.to(network.eval(), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cache_dir = Path(config.data.cache_dir).expanduser()
    phantoms = PhantomDataset(VAL_PHANTOMS, seed=VALIDATION_SEED, processor=processor, cache_dir=cache_dir)
    real = build_data(config, processor, show=False).validation
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_fast_in_bf16()):
        on_phantoms, on_real = (
            mean_dice(network, source, every=every, overlap=TRIAL_OVERLAP) for source in (phantoms, real)
        )
    steps = read_metrics(Path(config.output_dir))[-1]["step"]
    return {"seconds": seconds, "steps": steps, "phantoms": on_phantoms, "real": on_real}


def _skip_validation(*_: Any, **__: Any) -> float:
    """Skip the validation during training, because the last weights are scored afterwards."""
    return 0.0


def with_steps(steps: int) -> AbstractContextManager[Any]:
    """Give an epoch exactly `steps` steps by repeating or dropping training cases. Each case must give one crop."""

    def build(config: RunConfig, *args: Any, **options: Any) -> RunData:
        data = build_data(config, *args, **options)
        order = np.random.default_rng(config.seed).permutation(len(data.train)).tolist()
        indices = [order[index % len(order)] for index in range(steps * config.sample.batch_size)]
        return replace(data, train=ChosenCases(data.train, indices))

    return patch.object(engine, "build_data", build)


def step_seconds(trials: Mapping[str, Trial], config: RunConfig) -> dict[str, float]:
    """Seconds of processor time of a training step of each trial: median of `TIMED_STEPS` steps, taken in turns.

    Processor time is used instead of wall time, because other work on the machine hardly changes it. Run the
    measurement with one thread.
    """
    steps = {name: _training_step(trial, config) for name, trial in trials.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for number in range(TIMED_STEPS + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            # The first step allocates memory and is not counted.
            if number:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _training_step(trial: Trial, config: RunConfig) -> Callable[[], None]:
    """Return a training step as in a run: forward, backward, optimizer, averaging; random crops of all sequences."""
    network: nn.Module = trial.build(config)[0].train()
    nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, config)
    average = WeightAverage(network, decay=config.optim.ema_decay)
    size = config.sample.batch_size
    volume = torch.randn(size, 4, *config.sample.crop_size).contiguous(memory_format=torch.channels_last_3d)
    labels = (torch.rand(size, len(REGIONS), *config.sample.crop_size) > 0.5).float()
    mask = torch.ones(size, 4, dtype=torch.bool)

    def step() -> None:
        with trial.training(), torch.autocast("cpu", torch.bfloat16, enabled=config.optim.precision == "bf16"):
            loss = network(pixel_values=volume, modality_mask=mask, labels=labels, output_router_logits=True).loss
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.optim.max_grad_norm)
        optimizer.step()
        average.update(network, step=1)
        optimizer.zero_grad()

    return step


def to_markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown table with one row per trial: means over the seeds, and the mean of each seed."""
    names = [f"{data} {region.upper()}" for data in ("phantoms", "real") for region in REGIONS]
    heads = ["variant", *names, "mean", "by seed", "steps", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, runs in results.items():
        values = np.array([[*run["phantoms"], *run["real"]] for run in runs])
        cells = " | ".join(f"{value:.3f}" for value in values.mean(axis=0))
        by_seed = ", ".join(f"{value:.3f}" for value in values.mean(axis=1))
        steps, minutes = (np.mean([run[key] for run in runs]) for key in ("steps", "seconds"))
        lines.append(f"| {name} | {cells} | {values.mean():.3f} | {by_seed} | {steps:.0f} | {minutes / 60:.1f} |")
    return "\n".join(lines)


def main(trials: dict[str, Trial], *, about: str, out: str) -> None:
    """Run all trials that have no score yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of labelled cases")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the runs")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument(
        "--only", default=";".join(trials), help="trials to run, in this order, separated by semicolons"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="steps of each trial, instead of epochs")
    length.add_argument(
        "--minutes",
        type=float,
        help="minutes of processor time of each trial, instead of equal steps. The time of a step is measured "
        "first, for all trials in turns, and stored in OUT/step_seconds.json",
    )
    parser.add_argument(
        "--subset-step",
        type=int,
        default=1,
        help="score case number i on every n-th of the 15 subsets, from the i-th on",
    )
    args, options = parser.parse_known_args()
    common = ["--config", str(ROOT / "configs/pretrain_phantom.yaml"), "--data", args.data, *PHANTOMS, *BUDGET]
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds.split(","):
        for name in args.only.split(";"):
            trial = trials[name]
            folder = args.out / f"{list(trials).index(name)}-{seed}"
            scores = folder / "scores.json"
            if not scores.is_file():
                words = [*common, *trial.options, *options, "--seed", seed, "--output-dir", str(folder)]
                steps = args.steps
                if args.minutes is not None:
                    times = _kept_step_seconds(trials, read_config(words), args.out / "step_seconds.json")
                    steps = max(1, int(60 * args.minutes / times[name]))
                if steps is not None:
                    words += ["--epochs", "1", "--crops-per-case", "1"]
                with nullcontext() if steps is None else with_steps(steps):
                    result = run_trial(trial, read_config(words), every=args.subset_step)
                with replacing(scores) as scratch:
                    scratch.write_text(json.dumps(result))
            results.setdefault(name, []).append(json.loads(scores.read_text()))
            print(f"{name}, seed {seed}: {results[name][-1]}", flush=True)
    print(to_markdown(results))


def _kept_step_seconds(trials: Mapping[str, Trial], config: RunConfig, path: Path) -> dict[str, float]:
    """Read the times of `step_seconds` from a file, or measure and write them if the file is missing."""
    if not path.is_file():
        measured = step_seconds(trials, config)
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(measured))
    times: dict[str, float] = json.loads(path.read_text())
    return times

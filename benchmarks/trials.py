"""Networks and ways of training compared fairly: same data, same steps, same scores, as a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lora_moe_hgd.subsets import EVERY_SUBSET, Mask
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.data.datasets import CaseDataset, CaseSource, PhantomDataset
from lora_moe_hgd.training.engine import Build, train
from lora_moe_hgd.training.objectives import predict
from lora_moe_hgd.training.options import RunConfig
from lora_moe_hgd.training.sources import VALIDATION_SEED, build_data

ROOT = Path(__file__).parents[1]
VAL_PHANTOMS = 6
Scored = tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]
PHANTOMS = ("--phantoms", "100", "--phantom-share", "0.8", "--val-phantoms", "null")
BUDGET = ("--epochs", "3", "--every", "3", "--subsets", "[all]", "--tracker", "none")


@dataclass(frozen=True)
class Trial:
    """What is trained, and how.

    Attributes:
        build: Gives network and processor.
        training: Entered while training.
        options: Further options of `train.py`.
    """

    build: Build
    training: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: tuple[str, ...] = ()


def mean_dice(network: nn.Module, source: CaseSource, subsets: Sequence[Mask] = EVERY_SUBSET) -> list[float]:
    """Mean Dice of each region over cases and subsets."""
    values = [
        [dice(*pair) for pair in zip(predict(network, case["pixel_values"], subset), case["labels"], strict=True)]
        for case in (source[index] for index in range(len(source)))
        for subset in subsets
    ]
    return np.mean(values, axis=0).tolist()


def score_cases(
    scored: Scored, cases: list[CaseFiles], subsets: Sequence[Mask], *, cache_dir: str, bf16: bool
) -> list[float]:
    """Dice of each region on cases on disk, the mean over them and the subsets, on the network's own grid."""
    network, processor = scored
    nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    source = CaseDataset(cases, processor=processor, cache_dir=Path(cache_dir).expanduser())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return mean_dice(network, source, subsets)


def run_trial(trial: Trial, config: RunConfig) -> dict[str, Any]:
    """Train, and score the last weights on phantoms that no run trains on and on the cases held out."""
    began = time.perf_counter()
    with trial.training():
        train(config, build=trial.build)
    seconds = time.perf_counter() - began
    network, processor = trial.build(config)
    network.load_state_dict(load_file(Path(config.output_dir) / "last" / "model.safetensors"))
    nn.Module.to(network.eval(), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cache_dir = Path(config.data.cache_dir).expanduser()
    phantoms = PhantomDataset(VAL_PHANTOMS, seed=VALIDATION_SEED, processor=processor, cache_dir=cache_dir)
    real = build_data(config, processor, show=False).validation
    return {"seconds": seconds, "phantoms": mean_dice(network, phantoms), "real": mean_dice(network, real)}


def to_markdown(results: dict[str, list[dict[str, Any]]]) -> str:
    """One row a trial: means over the seeds, and the mean of each."""
    names = [f"{data} {region.upper()}" for data in ("phantoms", "real") for region in REGIONS]
    lines = [f"| variant | {' | '.join(names)} | mean | by seed | minutes |", "|---" * (len(names) + 4) + "|"]
    for name, runs in results.items():
        values = np.array([[*run["phantoms"], *run["real"]] for run in runs])
        cells = " | ".join(f"{value:.3f}" for value in values.mean(axis=0))
        by_seed = ", ".join(f"{value:.3f}" for value in values.mean(axis=1))
        minutes = np.mean([run["seconds"] for run in runs]) / 60
        lines.append(f"| {name} | {cells} | {values.mean():.3f} | {by_seed} | {minutes:.1f} |")
    return "\n".join(lines)


def main(trials: dict[str, Trial], *, about: str, out: str) -> None:
    """Run what has no score yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of labelled cases")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for the runs")
    parser.add_argument("--seeds", default="0,1")
    args, options = parser.parse_known_args()
    common = ["--config", str(ROOT / "configs/pretrain_phantom.yaml"), "--data", args.data, *PHANTOMS, *BUDGET]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds.split(","):
        for number, (name, trial) in enumerate(trials.items()):
            folder = args.out / f"{number}-{seed}"
            scores = folder / "scores.json"
            if not scores.is_file():
                words = [*common, *trial.options, *options, "--seed", seed, "--output-dir", str(folder)]
                result = run_trial(trial, read_config(words))
                with replacing(scores) as scratch:
                    scratch.write_text(json.dumps(result))
            results.setdefault(name, []).append(json.loads(scores.read_text()))
            print(f"{name}, seed {seed}: {results[name][-1]}", flush=True)
    print(to_markdown(results))

"""Runs of a small network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from fsdp_on_cpu import shard_on_cpu
from small import small_network

from lora_moe_hgd import pretrained, save_adapter
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.loading import is_adapter
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training import engine, loop
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.data.datasets import PhantomDataset
from lora_moe_hgd.training.engine import train
from lora_moe_hgd.training.loop import Network
from lora_moe_hgd.training.options import RunConfig
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
# The volume and each sequence change the confidence, differently in each region.
CONFIDENCE_WEIGHTS = [[bias, 1.0, 0.2, 0.0, 0.0, 0.1, 0.4, -0.1, 0.3] for bias in (0.5, -2.0, -2.0)]


def build_small(config: RunConfig) -> tuple[Network, LoraMoeHgdImageProcessor]:
    network = small_network().train()
    if config.optim.gradient_checkpointing:
        network.activation_checkpointing_enable()
    return network, LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))


def save_shipped(folder: Path) -> Path:
    """Save small ones of what is shipped, with random weights and a processor for voxels of 4 mm.

    Networks stay networks and adapters stay adapters over `tiny`, because they are loaded in different ways.
    """
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0), confidence_weights=CONFIDENCE_WEIGHTS)
    names = pretrained.shipped_names()
    adapters = [name for name in names if is_adapter(pretrained.pretrained_path(name))]
    for name in set(names) - set(adapters):
        small_network().save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for name in adapters:
        adapted = add_adapter(small_network(), "lora", options={"r": 2}, base="tiny")
        generator = torch.Generator().manual_seed(2)
        # An adapter that nobody has trained changes no output.
        with torch.no_grad():
            for weights in adapted.parameters():
                if weights.requires_grad:
                    weights += 0.05 * torch.randn(weights.shape, generator=generator)
        with shipping(folder):
            save_adapter(adapted, folder / name, processor=processor)
    return folder


@contextlib.contextmanager
def shipping(folder: Path) -> Iterator[None]:
    """Let the names of what is shipped mean what lies in another folder."""
    with mock.patch.object(pretrained, "_FOLDER", folder):
        yield


def segment_shipping(folder: Path, words: Sequence[str]) -> None:
    """What `infer.py` does, with what lies in another folder instead of what is shipped."""
    with shipping(folder):
        run("segment", words)


def small_run(output_dir: Path, cache: Path, *options: str) -> Path:
    """Train in this process, on four phantoms or on other data that the options name, an epoch of a crop of each."""
    words = ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(output_dir), "--cache-dir", str(cache)]
    words += ["--tracker", "none", "--crops-per-case", "1", "--epochs", "1", "--precision", "no", *options]
    # Accelerate keeps the precision of the first run of a process otherwise.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return train(read_config(words), build=build_small)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def train_small(words: Sequence[str], pause: float = 0.0, sharded: bool = False) -> None:
    """What `train.py` does, with the small network; for a process of its own, which it changes.

    Args:
        words: Options of the run.
        pause: Seconds to wait after each step.
        sharded: Whether the processes hold a part of the weights each, as with FSDP2.
    """
    if sharded:
        shard_on_cpu()
    engine.build_network = build_small
    measure = loop.peak_memory_gb

    def measure_slowly() -> float:
        time.sleep(pause)
        return measure()

    loop.peak_memory_gb = measure_slowly
    run("train", words)


def prepare_slowly(words: Sequence[str]) -> None:
    """Prepare for longer than the processes of the default group wait for each other, and stop before the first step.

    For a process of its own, which it changes.
    """
    make = PhantomDataset._preprocess

    def slow(self: PhantomDataset, index: int) -> dict[str, torch.Tensor]:
        if index == 0:
            time.sleep(3)
        return make(self, index)

    PhantomDataset._preprocess = slow
    loop.TrainingLoop.run_epochs = lambda self: print(f"process {self.accelerator.process_index} is ready")
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=4))
    train_small(words)

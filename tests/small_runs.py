"""Runs of a small network, in this process."""

from __future__ import annotations

from pathlib import Path

from accelerate.state import AcceleratorState
from small import small_network

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import train

ROOT = Path(__file__).parents[1]


def small_run(output_dir: Path, cache: Path, *options: str) -> Path:
    """Train on four phantoms, or on other data that the options name, for one epoch of a crop of each."""
    words = ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(output_dir), "--cache-dir", str(cache)]
    words += ["--tracker", "none", "--crops-per-case", "1", "--epochs", "1", "--precision", "no", *options]
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))
    # Accelerate keeps the precision of the first run of a process otherwise.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return train(read_config(words), build=lambda config: (small_network().train(), processor))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)

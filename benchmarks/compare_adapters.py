"""Adapters of several kinds, fitted to the same cases for the same number of steps, as a table.

`python benchmarks/compare_adapters.py --data ROOT` starts from the shipped weights. Dice is that of the cases held out
from ROOT, over regions and the subsets of `configs/lora_finetune.yaml`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lora_moe_hgd.training.adapters import TARGET_MODULES
from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
# The convolutions of stem and decoder, too; PEFT cannot merge those of a single voxel.
STEM = r".*\.stem\.(downsample\.\d|blocks\.\d\.\d\.conv|patch_projection)"
DECODER = r".*decoder\.(refine\d\.mix|block\d\.conv)"
CONVOLUTIONS = f"{TARGET_MODULES}|{STEM}|{DECODER}"

VARIANTS: dict[str, list[str]] = {
    "lora, rank 8": ["--adapter", "lora", "--lora", "{r: 8}"],
    "lora, rank 16": ["--adapter", "lora", "--lora", "{r: 16}"],
    "lora, rank 8, DoRA": ["--adapter", "lora", "--lora", "{r: 8, use_dora: true}"],
    "lora, rank 8, and Conv3d": ["--adapter", "lora", "--lora", f"{{r: 8, target_modules: '{CONVOLUTIONS}'}}"],
    "lora+decoder, rank 8": ["--adapter", "lora+decoder", "--lora", "{r: 8}"],
    "all weights": ["--adapter", "none"],
}


def mean_dice(folder: Path, step: int) -> float:
    """Mean over subsets and regions of the validation at a step."""
    rows = [row for row in read_metrics(folder) if row["step"] == step]
    values = [value for row in rows for name, value in row.items() if name.startswith("dice_")]
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of labelled cases")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_adapters"), help="folder for the runs")
    parser.add_argument("--config", default=str(ROOT / "configs/lora_finetune.yaml"))
    args, options = parser.parse_known_args()
    common = ["--config", args.config, "--base", "tiny", "--data", args.data, *options]
    untrained = args.out / "base"
    run("train", [*common, "--lr", "1.0e-12", "--epochs", "1", "--output-dir", str(untrained)])
    rows = [("base, not fitted", mean_dice(untrained, read_metrics(untrained)[-1]["step"]), 0.0)]
    for number, (name, words) in enumerate(VARIANTS.items()):
        folder = args.out / str(number)
        run("train", [*common, *words, "--output-dir", str(folder)])
        kept = folder / "best/adapter/adapter_model.safetensors"
        weights = kept if kept.is_file() else folder / "best/model.safetensors"
        rows.append((name, mean_dice(folder, read_metrics(folder)[-1]["step"]), weights.stat().st_size / 1e6))
    print("\n| trained | mean Dice | MB |\n|---|---|---|")
    for name, dice, megabytes in rows:
        print(f"| {name} | {dice:.3f} | {megabytes:.1f} |")


if __name__ == "__main__":
    main()

"""Phantoms beside real cases in numbers: each statistic's 10th, 50th and 90th percentile, as a table.

`python benchmarks/phantom_statistics.py --data ROOT` measures the labelled cases in ROOT and as many phantoms as asked
for, both as the network gets them: on the shipped spacing, normalised.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.data.datasets import Case, CaseDataset, CaseSource, PhantomDataset
from lora_moe_hgd.data.layouts import find_cases
from lora_moe_hgd.data.statistics import case_statistics
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES

PERCENTILES = (10, 50, 90)


def statistics_of(cases: Iterable[Case], spacing_mm: float) -> dict[str, list[float]]:
    """Values of each statistic, one per case."""
    found: dict[str, list[float]] = {}
    for case in cases:
        volumes = dict(zip(MODALITIES, case["pixel_values"], strict=True))
        for name, value in case_statistics(volumes, case["labels"].bool(), spacing_mm).items():
            found.setdefault(name, []).append(value)
    return found


def each(source: CaseSource) -> Iterable[Case]:
    return (source[index] for index in range(len(source)))


def cell(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in np.nanpercentile(values, PERCENTILES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases, all sequences present")
    parser.add_argument("--phantoms", type=int, default=24)
    parser.add_argument("--label-maps", type=Path, help="folder of FreeSurfer-style label maps for the phantoms")
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/lora-moe-hgd"))
    args = parser.parse_args()
    _, processor = load_checkpoint("tiny")
    cache_dir = args.cache_dir.expanduser()
    cases = CaseDataset(find_cases(args.data), processor=processor, cache_dir=cache_dir)
    phantoms = PhantomDataset(
        args.phantoms, seed=args.seed, label_maps=args.label_maps, processor=processor, cache_dir=cache_dir
    )
    (spacing_mm, *_) = processor.target_spacing_mm
    real, made_up = (statistics_of(each(source), spacing_mm) for source in (cases, phantoms))
    print(f"| statistic | {len(cases)} real cases: p10 / p50 / p90 | {len(phantoms)} phantoms |\n|---|---|---|")
    for name in real:
        print(f"| {name} | {cell(real[name])} | {cell(made_up[name])} |")


if __name__ == "__main__":
    main()

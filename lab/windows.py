"""Whether larger windows, windows that overlap less, or bf16 give the same Dice in less time.

`OMP_NUM_THREADS=1 python lab/windows.py --data BRATS_AFRICA --out runs/windows.json` stores the Dice of each region on
the grid of the case, and the processor seconds of the network, for each fit case, window and subset. No weight of
`tiny` was trained on these cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.files import replacing
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import TOKEN_STRIDE
from lora_moe_hgd.model.sliding_window import sliding_window_logits
from lora_moe_hgd.subsets import parse_subset

SUBSETS = ("t1+t1c+t2+flair", "t1c+flair", "flair", "t1c")
# Largest edge of a window in voxels (at most the size of the brain), overlap, and whether the network uses bf16.
VARIANTS = {
    "64, 1/2, float32": (64, 0.5, False),
    "64, 1/2": (64, 0.5, True),
    "64, 1/4": (64, 0.25, True),
    "96, 1/2": (96, 0.5, True),
    "96, 1/4": (96, 0.25, True),
    "whole brain": (256, 0.0, True),
}


def main() -> None:
    """Score what has no score yet, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--cases", type=int, default=20, help="number of cases, the first by name")
    args = parser.parse_args()
    with (args.data / "split.csv").open() as file:
        chosen = sorted(row["case"] for row in csv.DictReader(file) if row["role"] == "fit")[: args.cases]
    network, processor = load_checkpoint(args.checkpoint)
    scores = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for case in find_cases(args.data):
        of_case: dict[str, dict[str, list[float]]] = scores.get(case.case_id, {})
        if case.case_id not in chosen or of_case.keys() == VARIANTS.keys():
            continue
        reading = read_case(case, labels=True)
        inputs = processor(reading.settled)
        (geometry,) = inputs["geometry"]
        volumes = inputs["pixel_values"]
        scores[case.case_id] = of_case
        for name, (edge, overlap, bf16) in VARIANTS.items():
            if name in of_case:
                continue
            window = tuple(min(edge, TOKEN_STRIDE * math.ceil(size / TOKEN_STRIDE)) for size in volumes.shape[2:])
            for subset in SUBSETS:
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logits = sliding_window_logits(
                        network, volumes, torch.tensor([parse_subset(subset)]), window=window, overlap=overlap
                    )
                seconds = time.process_time() - began
                found = geometry.to_own_grid(processor.post_process_in_box(logits[0], geometry)[0])
                values = [dice(*pair) for pair in zip(found, reading.regions, strict=True)]
                of_case.setdefault(name, {})[subset] = [*values, seconds]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as scratch:
            scratch.write_text(json.dumps(scores))
        print(f"{case.case_id} done", flush=True)
    print("| window, overlap | WT | TC | ET | mean | seconds |\n|---|---|---|---|---|---|")
    for name in VARIANTS:
        *dices, seconds = np.mean([list(scores[case][name].values()) for case in chosen], axis=(0, 1))
        cells = " | ".join(f"{value:.3f}" for value in (*dices, np.mean(dices)))
        print(f"| {name} | {cells} | {seconds:.1f} |")


if __name__ == "__main__":
    main()

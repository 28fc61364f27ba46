"""Whether larger windows, or windows that overlap less, give the same Dice in less time.

`OMP_NUM_THREADS=1 python lab/windows.py --data BRATS_AFRICA --out runs/windows.json` stores the Dice of each region on
the grid of the case, and the processor seconds of the network, for each fit case, window and subset. No weight of
`tiny` was trained on these cases. Forward passes are in bf16.
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
# Largest edge of a window in voxels, and overlap. Where the brain is smaller than the window, the window is smaller.
VARIANTS = {
    "64, 1/2": (64, 0.5),
    "64, 1/4": (64, 0.25),
    "96, 1/2": (96, 0.5),
    "96, 1/4": (96, 0.25),
    "whole brain": (256, 0.0),
}


def main() -> None:
    """Score what has no score yet, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tiny")
    args = parser.parse_args()
    with (args.data / "split.csv").open() as file:
        chosen = {row["case"] for row in csv.DictReader(file) if row["role"] == "fit"}
    network, processor = load_checkpoint(args.checkpoint)
    scores = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for case in find_cases(args.data):
        if case.case_id not in chosen or case.case_id in scores:
            continue
        reading = read_case(case, labels=True)
        inputs = processor(reading.settled)
        (geometry,) = inputs["geometry"]
        volumes = inputs["pixel_values"]
        of_case: dict[str, dict[str, list[float]]] = {}
        for name, (edge, overlap) in VARIANTS.items():
            window = tuple(min(edge, TOKEN_STRIDE * math.ceil(size / TOKEN_STRIDE)) for size in volumes.shape[2:])
            for subset in SUBSETS:
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16):
                    logits = sliding_window_logits(
                        network, volumes, torch.tensor([parse_subset(subset)]), window=window, overlap=overlap
                    )
                seconds = time.process_time() - began
                found = geometry.to_own_grid(processor.post_process_in_box(logits[0], geometry)[0])
                values = [dice(*pair) for pair in zip(found, reading.regions, strict=True)]
                of_case.setdefault(name, {})[subset] = [*values, seconds]
        scores[case.case_id] = of_case
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as scratch:
            scratch.write_text(json.dumps(scores))
        for name in VARIANTS:
            means = {s: np.mean([c[name][s] for c in scores.values()], axis=0).round(3).tolist() for s in SUBSETS}
            print(len(scores), name, np.mean(list(means.values()), axis=0).round(3).tolist(), means, flush=True)


if __name__ == "__main__":
    main()

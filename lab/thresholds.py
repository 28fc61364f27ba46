"""Whether another threshold than 0.5 of the probability gains, for each region, on the fit cases.

`python lab/thresholds.py --data BRATS_AFRICA --out runs/thresholds.json` stores the Dice of each region at each
threshold, for each case and subset, on the case's own grid, without the removal of small parts. No weight of `tiny`
was trained on these cases.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.files import replacing
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.geometry import resample
from lora_moe_hgd.subsets import parse_subset

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SUBSETS = ("t1+t1c+t2+flair", "t1c+flair", "t1+t2", "flair", "t1c", "t1+t1c", "t2+flair", "t1", "t2")


def main() -> None:
    """Score what has no score yet."""
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
        print(case.case_id, flush=True)
        inputs = processor(reading.settled)
        (geometry,) = inputs["geometry"]
        truth = reading.regions
        of_case = {}
        for subset in SUBSETS:
            mask = torch.tensor([parse_subset(subset)])
            logits = network.segment_volume(inputs["pixel_values"], mask)[0]
            depth, height, width = geometry.resampled_shape
            probabilities = resample(logits[:, :depth, :height, :width].float(), geometry.box_shape).sigmoid()
            probabilities = processor.segmentation_task.nested(probabilities).numpy() * geometry.brain
            own = geometry.to_own_grid(probabilities)
            of_case[subset] = [[dice(own[r] > t, truth[r]) for t in THRESHOLDS] for r in range(3)]
        scores[case.case_id] = of_case
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as scratch:
            scratch.write_text(json.dumps(scores))


if __name__ == "__main__":
    main()

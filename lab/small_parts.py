"""What leaving out small parts and asking the mirror image are worth, as a table.

`python lab/small_parts.py --data ROOT` segments the labelled cases in ROOT with and without their mirror image,
and leaves out parts of a region below a share of its largest part, for several shares (`least_part` of the processor).
Dice is the mean over the cases and `--subsets`, on the network's own grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS
from lora_moe_hgd.subsets import parse_subset
from lora_moe_hgd.training.data.datasets import CaseDataset

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--subsets", default="all,t1c+flair,t1+t2,flair,t1c")
    parser.add_argument("--bf16", action="store_true", help="segment in bfloat16")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/lora-moe-hgd"))
    args = parser.parse_args()
    network, processor = load_checkpoint(args.checkpoint)
    nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    subsets = [parse_subset(name) for name in args.subsets.split(",")]
    cases = CaseDataset(find_cases(args.data), processor=processor, cache_dir=args.cache_dir.expanduser())
    scores: dict[tuple[bool, float], list[list[float]]] = {}
    for index in tqdm(range(len(cases)), desc="cases", unit="case"):
        case = cases[index]
        truth = case["labels"].bool().numpy()
        for subset in subsets:
            for mirror in (False, True):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                    logits = network.segment_volume(case["pixel_values"][None], torch.tensor([subset]), mirror=mirror)
                probabilities = logits[0].sigmoid().cummin(dim=0).values.numpy()
                for share in SHARES:
                    found = LoraMoeHgdImageProcessor(least_part=share).regions_of(probabilities)
                    values = [dice(*pair) for pair in zip(found, truth, strict=True)]
                    scores.setdefault((mirror, share), []).append(values)
    heads = " | ".join(region.upper() for region in REGIONS)
    print(f"| mirror image | least part | {heads} | mean |\n|---|---|---|---|---|---|")
    for (mirror, share), found_scores in sorted(scores.items()):
        cells = " | ".join(f"{value:.3f}" for value in np.mean(found_scores, axis=0))
        print(f"| {'with' if mirror else 'without'} | {share:g} | {cells} | {np.mean(found_scores):.3f} |")


if __name__ == "__main__":
    main()

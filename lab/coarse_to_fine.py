"""At which spacing to look, and whether to look again around the tumour: Dice and seconds, as a table.

`python lab/coarse_to_fine.py --data ROOT` segments each labelled case in ROOT at the checkpoint's own spacing,
at finer ones, and at these inside a box around what was found, and scores each, and the mean of both looks, on the
case's own grid. Dice is the mean over the cases and `--subsets`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import BatchFeature

from lora_moe_hgd import LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor, load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from lora_moe_hgd.model.geometry import resample
from lora_moe_hgd.model.label_schemes import label_scheme
from lora_moe_hgd.model.sliding_window import BACKGROUND_LOGIT
from lora_moe_hgd.subsets import parse_subset

FOUND = 0.3
MARGIN_MM = 8.0


def box_around(found: np.ndarray, margin: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The found voxels and `margin` voxels about them, inside `shape`."""
    box = []
    for axis in range(3):
        index = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(index[0]) - margin), min(shape[axis], int(index[-1]) + 1 + margin)))
    return tuple(box)


def look_again(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    inputs: BatchFeature,
    coarse: Tensor,
) -> dict[str, np.ndarray]:
    """Regions on the case's own grid from the finer look alone, and from the mean of both looks.

    `inputs` are the case at the finer spacing, `coarse` the logits `(R, D, H, W)` of the brain at the coarser one.
    """
    geometry = inputs["geometry"][0]
    first = resample(coarse, geometry.resampled_shape)
    padded = torch.full((len(REGIONS), *inputs["pixel_values"].shape[2:]), BACKGROUND_LOGIT)
    depth, height, width = geometry.resampled_shape
    padded[:, :depth, :height, :width] = first
    second = padded.clone()
    found = (padded[0].sigmoid() > FOUND).numpy()
    if found.any():
        box = box_around(found, round(MARGIN_MM / processor.target_spacing_mm[0]), found.shape)
        second[:, *box] = network.segment_volume(inputs["pixel_values"][:, :, *box], inputs["modality_mask"])[0]
    return {
        "around the tumour": regions(processor, second, inputs),
        "mean of both": regions(processor, (padded + second) / 2, inputs),
    }


def regions(processor: LoraMoeHgdImageProcessor, logits: Tensor, inputs: BatchFeature) -> np.ndarray:
    """Regions `(R, D, H, W)` on the case's own grid."""
    (labels,) = processor.post_process_semantic_segmentation(logits[None], inputs["geometry"])
    return label_scheme(processor.label_scheme).decode(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--subsets", default="t1+t1c+t2+flair,t1c+flair,flair,t1+t1c")
    parser.add_argument("--spacings-mm", default="1.5,1.0", help="the finer ones")
    args = parser.parse_args()
    network, processor = load_checkpoint(args.checkpoint)
    finer = {
        f"{spacing} mm": LoraMoeHgdImageProcessor(
            target_spacing_mm=[float(spacing)] * 3, least_part=processor.least_part
        )
        for spacing in args.spacings_mm.split(",")
    }
    subsets = [parse_subset(name) for name in args.subsets.split(",")]
    once = f"whole, at {processor.target_spacing_mm[0]} mm"
    rows: dict[str, list[list[float]]] = {}
    for case in tqdm(find_cases(args.data), desc="cases", unit="case"):
        reading = read_case(case, labels=True).checked()
        for subset in subsets:
            names = [name for name, used in zip(MODALITIES, subset, strict=True) if used]
            images = reading.settled.only(names)
            began = time.perf_counter()
            inputs = processor(images)
            logits = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])[0]
            results = {once: regions(processor, logits, inputs)}
            seconds = {once: time.perf_counter() - began}
            depth, height, width = inputs["geometry"][0].resampled_shape
            for spacing, fine in finer.items():
                began = time.perf_counter()
                inputs = fine(images)
                prepared = time.perf_counter()
                whole = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])[0]
                results[f"whole, at {spacing}"] = regions(fine, whole, inputs)
                done = time.perf_counter()
                seconds[f"whole, at {spacing}"] = done - began
                second = look_again(network, fine, inputs, logits[:, :depth, :height, :width])
                again = prepared - began + time.perf_counter() - done
                for how, found in second.items():
                    results[f"again, at {spacing}, {how}"] = found
                    seconds[f"again, at {spacing}, {how}"] = seconds[once] + again
            for name, found in results.items():
                scores = [dice(*pair) for pair in zip(found, reading.regions, strict=True)]
                rows.setdefault(name, []).append([*scores, float(np.mean(scores)), seconds[name]])
    print("| looked at | WT | TC | ET | mean | seconds |\n|---|---|---|---|---|---|")
    for name, values in rows.items():
        *scores, time_taken = np.mean(values, axis=0)
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} | {time_taken:.1f} |")


if __name__ == "__main__":
    main()

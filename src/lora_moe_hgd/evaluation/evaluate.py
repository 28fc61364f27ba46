"""Dice of a checkpoint over cases and subsets of the sequences, on each case's own grid."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.layouts import CaseFiles, find_cases
from ..data.nifti import read_image
from ..files import replacing
from ..inference.segment import segment
from ..loading import fastest_device, load_checkpoint
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import label_scheme
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from ..model.sliding_window import sliding_window_logits
from .metrics import dice
from .subsets import EVERY_SUBSET, Mask, parse_subset, subset_name


@dataclass(frozen=True)
class Score:
    """Dice of one case under one subset."""

    case_id: str
    subset: str
    wt: float
    tc: float
    et: float

    @property
    def mean(self) -> float:
        return (self.wt + self.tc + self.et) / 3


def predict(network: torch.nn.Module, pixel_values: Tensor, subset: Mask) -> Tensor:
    """Nested regions `(3, D, H, W)`, boolean, of one preprocessed case on the network's own grid.

    Fast, for use during training: nothing is resampled.

    Args:
        network: Called as the segmenter is.
        pixel_values: `(M, D, H, W)`.
        subset: Sequences to use.
    """
    mask = torch.tensor([subset], device=pixel_values.device)
    logits = sliding_window_logits(network, pixel_values[None], mask)[0]
    return (logits.sigmoid().cummin(dim=0).values > 0.5).cpu()


def evaluate(
    network: LoraMoeHgdForSegmentation,
    processor: LoraMoeHgdImageProcessor,
    cases: Sequence[CaseFiles],
    *,
    subsets: Iterable[Mask] = EVERY_SUBSET,
) -> list[Score]:
    """Score each case under each subset of which it has all sequences.

    Each subset is preprocessed by itself, as if the other sequences had never been acquired.

    Raises:
        BadInputError: If a case has no segmentation or a file is damaged.
    """
    scores = []
    subsets = list(subsets)
    for case in tqdm(cases, desc="cases", unit="case"):
        truth = label_scheme(case.label_scheme).decode(np.asarray(read_image(case.labelled()).dataobj))
        images = {name: read_image(path) for name, path in case.images.items()}
        for subset in subsets:
            wanted = [name for name, used in zip(MODALITIES, subset, strict=True) if used]
            if not set(wanted) <= set(images):
                continue
            chosen = {name: images[name] for name in wanted}
            predicted = segment(network, processor, chosen).regions
            values = [dice(region, target) for region, target in zip(predicted, truth, strict=True)]
            scores.append(Score(case.case_id, subset_name(subset), *values))
    return scores


def mean_table(scores: Sequence[Score]) -> list[dict[str, float | str | int]]:
    """One row a subset, and a last row `mean` over the subsets, each with Dice of the regions and their mean."""
    rows: list[dict[str, float | str | int]] = []
    for subset in dict.fromkeys(score.subset for score in scores):
        chosen = [score for score in scores if score.subset == subset]
        values = {name: float(np.mean([getattr(score, name) for score in chosen])) for name in (*REGIONS, "mean")}
        rows.append({"subset": subset, "cases": len(chosen), **values})
    means = {name: float(np.mean([row[name] for row in rows])) for name in (*REGIONS, "mean")}
    return [*rows, {"subset": "mean", "cases": max(int(row["cases"]) for row in rows), **means}]


def to_markdown(rows: Sequence[dict[str, float | str | int]]) -> str:
    """The table as Markdown."""
    lines = ["| sequences | cases | WT | TC | ET | mean |", "|---|---|---|---|---|---|"]
    for row in rows:
        values = " | ".join(f"{row[name]:.3f}" for name in (*REGIONS, "mean"))
        lines.append(f"| {row['subset']} | {row['cases']} | {values} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Score a checkpoint and write `scores.csv`, `table.md` and `table.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny", help="shipped name, folder or Hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--cases", help="only these, by name, separated by commas")
    parser.add_argument("--subsets", help="only these, such as all,t1c+flair; every subset when left out")
    args = parser.parse_args(argv)
    subsets = [parse_subset(name) for name in args.subsets.split(",")] if args.subsets else EVERY_SUBSET
    cases = find_cases(args.data)
    if args.cases:
        wanted = args.cases.split(",")
        unknown = sorted(set(wanted) - {case.case_id for case in cases})
        if unknown:
            raise ValueError(f"No case(s) {', '.join(unknown)} in {args.data}.")
        cases = [case for case in cases if case.case_id in wanted]
    for case in cases:
        case.labelled()
    network, processor = load_checkpoint(args.checkpoint, device=fastest_device())
    scores = evaluate(network, processor, cases, subsets=subsets)
    if not scores:
        raise ValueError(f"No case in {args.data} has all sequences of any subset of --subsets {args.subsets}.")
    rows = mean_table(scores)
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / "scores.csv") as scratch, open(scratch, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Score.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(score) for score in scores)
    with replacing(args.out / "table.json") as scratch:
        scratch.write_text(json.dumps(rows, indent=2))
    with replacing(args.out / "table.md") as scratch:
        scratch.write_text(to_markdown(rows) + "\n")
    print(to_markdown(rows))
    print(f"Tables are in {args.out}.")

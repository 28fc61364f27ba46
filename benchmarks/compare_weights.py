"""Compare checkpoints: Dice by subset and region on labelled cases, and false volume on cases without a tumour.

`python benchmarks/compare_weights.py --data ROOT --split ROOT/split.csv --weights tiny,runs/wide/last --no-tumour
FOLDER` scores each checkpoint on the cases with the role `fit`, on the network's own grid. Small parts of regions are
not removed. The cases in FOLDER have no tumour, so every region found there is false. For these cases, small parts are
removed, as in `lora-moe-hgd segment`. The scores of each case are stored in `--out`, in one JSON file per checkpoint
and kind of cases, and are reused.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.files import replacing
from lora_moe_hgd.loading import checkpoint_folder
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.subsets import parse_subset
from lora_moe_hgd.training.data.datasets import Case, CaseDataset
from lora_moe_hgd.training.objectives import predict

SUBSETS = "all,t1c+flair,t1+t2,flair,t1c"

# Values by case, then by subset: one value per region.
Values = dict[str, dict[str, list[float]]]
Measure = Callable[[np.ndarray, Case], list[float]]


def of_role(cases: Sequence[CaseFiles], split: Path | None, role: str) -> list[CaseFiles]:
    """Return the cases with this role in the split file, or all cases if `split` is `None`."""
    if split is None:
        return list(cases)
    with split.open() as file:
        chosen = {row["case"] for row in csv.DictReader(file) if row["role"] == role}
    return [case for case in cases if case.case_id in chosen]


def dices(regions: np.ndarray, case: Case) -> list[float]:
    return [dice(found, truth) for found, truth in zip(regions, case["labels"], strict=True)]


def false_ml(processor: LoraMoeHgdImageProcessor) -> Measure:
    """Return a function that measures the volume of each region in mL, without parts below `processor.least_part`."""
    voxel_ml = float(np.prod(processor.target_spacing_mm)) / 1000

    def measure(regions: np.ndarray, case: Case) -> list[float]:
        return [float(region.sum()) * voxel_ml for region in processor.regions_of(regions.astype(np.float32))]

    return measure


def score(network: nn.Module, cases: CaseDataset, subsets: Sequence[str], measure: Measure, kept: Path) -> Values:
    """Values of each case and subset, which are read from the file `kept` and written to it after each case."""
    values: Values = json.loads(kept.read_text()) if kept.is_file() else {}
    for index in range(len(cases)):
        case = cases[index]
        found = values.setdefault(case["case_id"], {})
        missing = [name for name in subsets if name not in found]
        for name in missing:
            regions = predict(network, case["pixel_values"], parse_subset(name)).numpy()
            found[name] = measure(regions, case)
        if missing:
            with replacing(kept) as scratch:
                scratch.write_text(json.dumps(values))
            print(
                kept.stem, case["case_id"], {name: np.round(found[name], 3).tolist() for name in subsets}, flush=True
            )
    return {case.case_id: values[case.case_id] for case in cases.cases}


def weights_key(checkpoint: str) -> str:
    """Name of a checkpoint with a digest of its weights, because a running training changes its weights."""
    content = b"".join(path.read_bytes() for path in sorted(checkpoint_folder(checkpoint).glob("*.safetensors")))
    return f"{checkpoint.strip('/').replace('/', '-')}-{hashlib.sha256(content).hexdigest()[:8]}"


def table_of_dice(rows: dict[str, Values], subsets: Sequence[str]) -> str:
    """Markdown table with one row per checkpoint: mean Dice by region, over everything, and by subset."""
    heads = [*(region.upper() for region in REGIONS), "mean", *subsets]
    lines = [f"| weights | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, values in rows.items():
        array = np.array([[by_subset[subset] for subset in subsets] for by_subset in values.values()])
        cells = [*array.mean(axis=(0, 1)), array.mean(), *array.mean(axis=(0, 2))]
        lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines)


def table_of_cases(rows: dict[str, Values], subset: str) -> str:
    """Markdown table with one row per case: Dice of the regions with one subset, for each checkpoint."""
    lines = [f"| case, {subset} | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for case in next(iter(rows.values())):
        cells = [" / ".join(f"{value:.2f}" for value in values[case][subset]) for values in rows.values()]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_false_ml(rows: dict[str, Values], subsets: Sequence[str]) -> str:
    """Markdown table with one row per checkpoint: false WT in mL of each case, by subset."""
    lines = [f"| weights, false WT in mL | {' | '.join(subsets)} |", "|---" * (len(subsets) + 1) + "|"]
    for name, values in rows.items():
        cells = [" / ".join(f"{case[subset][0]:.1f}" for case in values.values()) for subset in subsets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--split", type=Path, help="CSV file with the columns `case` and `role`")
    parser.add_argument("--role", default="fit", help="with --split: role of the cases to score")
    parser.add_argument("--no-tumour", type=Path, help="folder of cases without a tumour")
    parser.add_argument("--weights", default="tiny", help="checkpoints, separated by commas")
    parser.add_argument("--subsets", default=SUBSETS, help="subsets of the sequences to score")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/lora-moe-hgd"))
    parser.add_argument("--out", type=Path, default=Path("runs/compare_weights"), help="folder for the scores")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    subsets, cache_dir = args.subsets.split(","), args.cache_dir.expanduser()
    labelled = of_role(find_cases(args.data), args.split, args.role)
    healthy = find_cases(args.no_tumour) if args.no_tumour else []
    by_dice: dict[str, Values] = {}
    by_volume: dict[str, Values] = {}
    for name in args.weights.split(","):
        network, processor = load_checkpoint(name)
        nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        groups: list[tuple[str, dict[str, Values], list[CaseFiles], Any]] = [
            ("false", by_volume, healthy, false_ml(processor)),
            ("dice", by_dice, labelled, dices),
        ]
        for kind, rows, files, measure in groups:
            cases = CaseDataset(files, processor=processor, cache_dir=cache_dir)
            kept = args.out / f"{kind}-{weights_key(name)}.json"
            rows[name] = score(network, cases, subsets, measure, kept)
    print(f"\n{table_of_dice(by_dice, subsets)}\n\n{table_of_cases(by_dice, subsets[0])}")
    if healthy:
        print(f"\n{table_of_false_ml(by_volume, subsets)}")


if __name__ == "__main__":
    main()

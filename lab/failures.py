"""The worst segmentations of an evaluation as pictures: `python lab/failures.py --scores OUT --data ROOT`.

OUT is what `lora-moe-hgd evaluate --data ROOT --out OUT` wrote; of each case only its worst subset is shown, so that
one hard case does not fill the gallery. Prints a table with what is measured of each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.inference.segment import find_regions
from lora_moe_hgd.pictures import save_overlay


def worst(scores: pd.DataFrame, number: int, least_sequences: int) -> pd.DataFrame:
    """The cases whose worst subset of at least so many sequences has the lowest mean Dice, the lowest first."""
    enough = scores[scores["sequences"] >= least_sequences]
    means = enough.groupby(["case_id", "subset"], sort=False)["dice"].mean().reset_index()
    return means.loc[means.groupby("case_id")["dice"].idxmin()].nsmallest(number, "dice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True, help="folder of the evaluation")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluated cases")
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--number", type=int, default=4, help="how many cases")
    parser.add_argument("--least-sequences", type=int, default=2, help="leave out subsets of fewer")
    parser.add_argument("--out", type=Path, default=Path("outputs/failures"), help="folder for the pictures")
    args = parser.parse_args()
    scores = pd.read_csv(args.scores / "scores.csv")
    cases = {case.case_id: case for case in find_cases(args.data)}
    network, processor = load_checkpoint(args.checkpoint)
    mirror = json.loads((args.scores / "table.json").read_text())["about"]["mirror"]
    args.out.mkdir(parents=True, exist_ok=True)
    print("| case | sequences | Dice WT, TC, ET | expected Dice | true volume WT, TC, ET, mL |\n|---|---|---|---|---|")
    for row in worst(scores, args.number, args.least_sequences).itertuples():
        reading = read_case(cases[row.case_id], labels=True).checked()
        images = {name: reading.images[name] for name in row.subset.split("+")}
        regions, _ = find_regions(network, processor, processor(images), mirror=mirror)
        save_overlay(
            args.out / f"{row.case_id}.png",
            images,
            {"found": regions, "experts": reading.regions},
            title=f"{row.case_id}, segmented from {row.subset}",
        )
        own = scores[(scores["case_id"] == row.case_id) & (scores["subset"] == row.subset)]
        cells = [
            ", ".join(f"{value:.{digits}f}" for value in own[column])
            for column, digits in (("dice", 2), ("expected_dice", 2), ("true_volume_ml", 0))
        ]
        print(f"| {row.case_id} | {row.subset} | {' | '.join(cells)} |")
    print(f"\nPictures are in {args.out}.")


if __name__ == "__main__":
    main()

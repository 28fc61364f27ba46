"""Make one row of the benchmark: score a checkpoint, or the label maps of any tool, and write the row as JSON.

`python benchmarks/fifteen_subsets/row.py --name NAME --checkpoint CHECKPOINT --data FOLDER --out-path ROW.json`. The
scores come from `lora-moe-hgd evaluate`, whose output is the folder `ROW`. This output is reused when the command is
started again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from definition import (
    CONVENTION,
    LESION_RULES,
    NAME,
    REGIONS,
    SUBSETS,
    TRACKS,
    VERSION,
    cases_of,
    check_data,
    data_digest,
    find,
    run,
)

from lora_moe_hgd.evaluation.command import score
from lora_moe_hgd.evaluation.trained_on import trained_among
from lora_moe_hgd.files import listed, replacing
from lora_moe_hgd.loading import checkpoint_folder

# Metrics of a row, by subset and region. Networks are ranked by Dice; the other metrics are for information.
METRICS = ("dice", "lesion_dice", "hd95_mm", "lesion_hd95_mm")
PACKAGES = ("lora-moe-hgd", "torch", "transformers", "numpy", "scipy")
NOT_STATED = "not stated"


def make_row(
    name: str,
    what: Mapping[str, str],
    *,
    data: Path,
    track: str,
    names: Sequence[str],
    trained_on: str,
    scores: Path,
) -> dict[str, Any]:
    """Check the data, evaluate, and return the row.

    Args:
        name: Name of the row.
        what: Options of `lora-moe-hgd evaluate`: either `checkpoint`, or `predictions` and `prediction-scheme`.
        data: Folder that contains the folders of the cases.
        track: Key of `definition.TRACKS`.
        names: Cases of the track.
        trained_on: Training data of the network, in words.
        scores: Output folder of the evaluation.

    Raises:
        ValueError: If the checkpoint was trained on a case, if the data differ from those of the benchmark, if a case
            cannot be scored, or if a subset lacks a case.
    """
    cases = find(data, names)
    nested = [case.case_id for case in cases.values() if case.case_id not in names]
    if nested:
        raise ValueError(f"--data must be the folder that contains the folders of the cases, got {data}: {nested[0]}.")
    if "checkpoint" in what and (seen := trained_among(list(cases.values()), checkpoint_folder(what["checkpoint"]))):
        raise ValueError(
            f"{what['checkpoint']} was trained on {listed(seen)}. A row on these cases would be no evidence."
        )
    digests, confirmed = check_data(cases)
    options = {"in-path": str(data), "cases": ",".join(names), "out-path": str(scores), **what}
    options |= {"convention": CONVENTION, "lesion-rules": LESION_RULES}
    failed = score(["--quiet", *(word for name, value in options.items() for word in (f"--{name}", value))])
    if failed:
        raise ValueError(f"{failed} of {len(names)} cases could not be scored. A row needs all of them.")
    table = json.loads((scores / "table.json").read_text())
    about = table["about"]
    return {
        "benchmark": NAME,
        "version": VERSION,
        "name": name,
        "track": track,
        "cases": len(names),
        "data_sha256": data_digest(digests),
        "files_confirmed": confirmed,
        "files": len(digests),
        "trained_on": trained_on,
        "checkpoint_sha256": about["checkpoint"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "settings": {key: about[key] for key in ("convention", "lesion_rules", "mirror")},
        "scores": means(table["summary"], len(names)),
        "dice_by_case": by_case(pd.read_csv(scores / "scores.csv")),
    }


def means(summary: Sequence[dict[str, Any]], cases: int) -> dict[str, dict[str, Any]]:
    """Means over cases by metric, subset and region, from the `summary` of `table.json`.

    The subset `mean` is the mean over the 15 subsets. A subset without predictions is `None`, and in this case the
    subset `mean` is also `None`.

    Raises:
        ValueError: If a subset was scored on only some of the cases.
    """
    found = {(row["metric"], row["subset"], row["region"]): row for row in summary}
    present = {subset for metric, subset, _ in found if metric == "dice"}
    partial = [name for name in SUBSETS if name in present and found["dice", name, "wt"]["cases"] < cases]
    if partial:
        raise ValueError(f"Predictions of some of the {cases} cases are missing from {listed(partial)}.")
    complete = present.issuperset(SUBSETS)
    kept = {*present.intersection(SUBSETS), *(["mean"] if complete else [])}
    return {
        metric: {
            subset: {region: rounded(found[metric, subset, region]["mean"]) for region in (*REGIONS, "mean")}
            if subset in kept
            else None
            for subset in (*SUBSETS, "mean")
        }
        for metric in METRICS
    }


def rounded(value: float | None) -> float | None:
    """Round to six decimals. `None` stands for a metric that is undefined in every case."""
    return None if value is None else round(value, 6)


def by_case(scores: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Dice of WT, TC and ET by case and subset."""
    dice: dict[str, dict[str, list[float]]] = {}
    table = scores.pivot(index=["case_id", "subset"], columns="region", values="dice")
    for subset in SUBSETS:
        for (case_id, _), values in table[table.index.get_level_values("subset") == subset].iterrows():
            dice.setdefault(str(case_id), {})[subset] = [round(float(values[region]), 6) for region in REGIONS]
    assert not any(math.isnan(value) for rows in dice.values() for row in rows.values() for value in row)
    return dice


def main(argv: Sequence[str]) -> None:
    """Write a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="name of the row")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="shipped name, folder or Hub id")
    what.add_argument("--predictions", help="folder with one folder of label maps per subset, such as t1c+flair")
    parser.add_argument("--prediction-scheme", help="label scheme of the predictions, such as brats2023")
    parser.add_argument("--data", type=Path, required=True, help="folder that contains the folders of the cases")
    parser.add_argument("--track", choices=list(TRACKS), default="africa-3", help="cases (default: africa-3)")
    parser.add_argument("--trained-on", default=NOT_STATED, help="training data of the network, in words")
    parser.add_argument("--out-path", type=Path, required=True, help="JSON file of the row")
    args = parser.parse_args(argv)
    if args.out_path.suffix != ".json":
        parser.error(f"--out-path must be a file with the ending .json, got {args.out_path}")
    options = ("checkpoint", "predictions", "prediction-scheme")
    what_to_score = {name: getattr(args, name.replace("-", "_")) for name in options}
    row = make_row(
        args.name,
        {name: value for name, value in what_to_score.items() if value is not None},
        data=args.data,
        track=args.track,
        names=cases_of(*TRACKS[args.track]),
        trained_on=args.trained_on,
        scores=args.out_path.with_suffix(""),
    )
    with replacing(args.out_path) as scratch:
        scratch.write_text(json.dumps(row, indent=1) + "\n")
    print(args.out_path)


if __name__ == "__main__":
    run(main)

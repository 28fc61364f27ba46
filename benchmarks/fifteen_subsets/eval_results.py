"""Convert a row to the `.eval_results` of a model on the Hub, with one entry for each task of `eval.yaml`.

`python benchmarks/fifteen_subsets/eval_results.py --row ROW.json --dataset OWNER/NAME --out-path FILE.yaml`. Then
`hf upload OWNER/MODEL FILE.yaml .eval_results/fifteen_subsets.yaml` adds the file to the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from definition import REGIONS, SUBSETS, run, task_id
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from table import read_rows

from lora_moe_hgd.files import replacing

# The data set on the Hub contains only the cases of this track.
TRACK = "africa-3"


def entries(row: Mapping[str, Any], dataset: str) -> list[EvalResultEntry]:
    """One entry with the mean Dice for each subset of the row. The notes give the Dice of WT, TC and ET.

    Raises:
        ValueError: If the row belongs to another track.
    """
    if row["track"] != TRACK:
        raise ValueError(f"The data set on the Hub has the cases of {TRACK}, but this is a row of {row['track']}.")
    found = {subset: row["scores"]["dice"][subset] for subset in SUBSETS}
    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=task_id(subset),
            value=round(values["mean"], 4),
            date=row["date"],
            notes=", ".join([*(f"{name.upper()} {values[name]:.4f}" for name in REGIONS), f"{row['cases']} cases"]),
        )
        for subset, values in found.items()
        if values is not None
    ]


def main(argv: Sequence[str]) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", type=Path, required=True, help="JSON file that row.py wrote")
    parser.add_argument("--dataset", required=True, help="data set on the Hub, such as OWNER/NAME")
    parser.add_argument("--out-path", type=Path, required=True, help="YAML file")
    args = parser.parse_args(argv)
    (row,) = read_rows([args.row])
    content = eval_result_entries_to_yaml(entries(row, args.dataset))
    with replacing(args.out_path) as scratch:
        scratch.write_text(yaml.safe_dump(content, sort_keys=False))
    print(args.out_path)


if __name__ == "__main__":
    run(main)

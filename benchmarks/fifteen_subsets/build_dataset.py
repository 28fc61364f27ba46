"""Build the data set repository of the benchmark from a downloaded copy of BraTS-Africa.

`python benchmarks/fifteen_subsets/build_dataset.py --data FOLDER --out-path NEW`: FOLDER is the download of
BraTS-Africa from TCIA. Every file is checked before anything is written. `hf upload OWNER/NAME NEW --repo-type
dataset` publishes the result.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from definition import FOLDER, ROLES, SUBSETS, cases_of, check_data, files_of, find, run, task_id

from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.files import new_folder
from lora_moe_hgd.hub.checksums import write_sums

DATA = "brats-africa"
# Splits of the repository, and the parts in `splits.csv` that each split contains.
SPLITS = {"fit": ("fit",), "test": ("test3",)}
CONFIG = "default"


def check_tasks(path: Path) -> None:
    """Check that `eval.yaml` has the fields of the Hub's format, and exactly one task for each subset.

    https://huggingface.co/docs/hub/eval-results describes the format.

    Raises:
        ValueError: If a field is missing or unknown, or if the tasks are not those of the benchmark.
    """
    content = yaml.safe_load(path.read_text())
    expected = {"name": str, "description": str, "evaluation_framework": str, "tasks": list}
    if {key: type(value) for key, value in content.items()} != expected:
        raise ValueError(f"{path} must have the fields {', '.join(expected)}, got {', '.join(content)}.")
    tasks = [{"id": task_id(subset), "config": CONFIG, "split": "test"} for subset in SUBSETS]
    if content["tasks"] != tasks:
        raise ValueError(f"{path} must have one task for each of the {len(tasks)} subsets.")


def build(data: Path, out: Path, names: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """Check the files and write the repository; return the numbers of confirmed files and of all files.

    Args:
        data: Folder that contains the cases, at any depth.
        out: New folder for the repository.
        names: Cases of each split.

    Raises:
        ValueError: If a case is missing, or if a file differs from that of the benchmark. After an error, nothing is
            written.
    """
    check_tasks(FOLDER / "hub/eval.yaml")
    cases = find(data, [name for part in names.values() for name in part])
    digests, confirmed = check_data(cases)
    with new_folder(out) as scratch:
        for split, members in names.items():
            rows = [copy_case(name, cases[name], scratch / split) for name in members]
            (scratch / split / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for name in ("README.md", "eval.yaml"):
            shutil.copyfile(FOLDER / "hub" / name, scratch / name)
        write_sums(scratch)
    return confirmed, len(digests)


def copy_case(name: str, case: CaseFiles, folder: Path) -> dict[str, str]:
    """Copy the files of a case, and return its row of `metadata.jsonl`."""
    (folder / name).mkdir(parents=True)
    row = {"case_id": name}
    for role in ROLES:
        path = files_of(case)[role]
        shutil.copyfile(path, folder / name / path.name)
        row[f"{role}_file_name"] = f"{name}/{path.name}"
    return row


def main(argv: Sequence[str]) -> None:
    """Build the repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the downloaded package")
    parser.add_argument("--out-path", type=Path, required=True, help="new folder for the repository")
    args = parser.parse_args(argv)
    names = {split: cases_of(DATA, parts) for split, parts in SPLITS.items()}
    confirmed, total = build(args.data, args.out_path, names)
    print(
        f"{args.out_path}: {confirmed} of {total} files have the voxels of `digests.csv`, and all files have the "
        "listed shape."
    )


if __name__ == "__main__":
    run(main)

"""Read earlier scores from the folder of an evaluation, or from a CSV file of published Dice values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..files import MAX_LONG_JSON_BYTES, read_json
from ..model.task import BRAIN_TUMOUR, Task
from ..subsets import parse_subset, subset_name


def _about(folder: Path) -> dict[str, Any]:
    """Read the entry `about` of an evaluation's `table.json`: its checkpoint and its options.

    A CSV file has no such entry, so the result is empty.

    Raises:
        ValueError: If `table.json` lacks the entry `about`, which names the evaluated weights.
    """
    path = folder / "table.json"
    return dict(read_table(path)["about"]) if path.is_file() else {}


def read_table(path: Path) -> dict[str, Any]:
    """Read the `table.json` of an evaluation.

    Raises:
        ValueError: If `table.json` lacks the entry `about`, which names the evaluated weights.
    """
    remedy = "Run `lora-moe-hgd evaluate` again."
    content: dict[str, Any] = read_json(path, remedy=remedy, max_bytes=MAX_LONG_JSON_BYTES)
    if "about" not in content:
        raise ValueError(f"{path} does not name the evaluated weights, because the entry `about` is missing. {remedy}")
    return content


def task_of(folders: Sequence[Path]) -> Task:
    """Task of the first evaluation that records a task; brain tumour if none does. CSV files record no task."""
    tasks = (_about(folder).get("task") for folder in folders)
    found = next((task for task in tasks if task is not None), None)
    return BRAIN_TUMOUR if found is None else Task.from_dict(found)


def check_conventions(folders: Sequence[Path]) -> None:
    """Check that all evaluations score empty regions alike. CSV files record no convention and are not checked.

    Raises:
        ValueError: If two evaluations have different conventions.
    """
    used = {str(folder): about["convention"] for folder in folders if (about := _about(folder))}
    if len(set(used.values())) > 1:
        each = ", ".join(f"{folder}: {convention}" for folder, convention in used.items())
        raise ValueError(
            f"These evaluations score empty regions differently ({each}). Repeat the evaluations with "
            "the same --convention."
        )


def read_scores(place: Path, task: Task = BRAIN_TUMOUR) -> pd.DataFrame:
    """Read the rows of an evaluation, from its folder or from a CSV file of Dice values.

    A CSV file has one row per case, a column `case`, and a column with the Dice of each region. A column `subset`
    names the sequences, such as `t1c+flair`. Without this column, all rows count as scores from all sequences. Empty
    cells are undefined values.

    Raises:
        ValueError: If the folder contains no evaluation, or if the CSV file has wrong columns or values.
    """
    if place.is_file():
        return _read_csv(place, task)
    if not (place / "scores.csv").is_file():
        raise ValueError(
            f"{place} contains no scores.csv. Give the --out-path folder of a `lora-moe-hgd evaluate` run, or a CSV "
            "file with one row per case."
        )
    return pd.read_csv(place / "scores.csv", dtype={"case_id": str})


def _read_csv(path: Path, task: Task) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file with one row per case: {error}") from error
    table.columns = [name.strip().lower() for name in table.columns]
    regions = [region for region in task.regions if region in table.columns]
    others = sorted(set(table.columns) - {"case", "subset", *regions})
    if "case" not in table.columns or not regions or others or table.columns.has_duplicates:
        raise ValueError(
            f"{path} has the columns {', '.join(table.columns)}. The file must have the column case and a column of "
            f"Dice values for at least one region ({', '.join(task.regions)}). It may also have the column subset, "
            "but no other column."
        )
    subsets = table["subset"] if "subset" in table else ["all"] * len(table)
    table["subset"] = [subset_name(parse_subset(str(name), task.modalities), task.modalities) for name in subsets]
    if table["case"].isna().any() or table.duplicated(["case", "subset"]).any():
        raise ValueError(f"{path}: each row needs a case, and no case may have two rows for the same subset.")
    rows = table.melt(id_vars=["case", "subset"], value_vars=regions, var_name="region", value_name="dice")
    try:
        rows["dice"] = rows["dice"].astype(float)
    except ValueError as error:
        raise ValueError(f"{path}: a Dice value is not a number: {error}") from error
    if not rows["dice"].dropna().between(0, 1).all():
        raise ValueError(f"{path}: Dice must be between 0 and 1. Divide percentages by 100.")
    return rows.rename(columns={"case": "case_id"})

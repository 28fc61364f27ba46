"""Split of the cases into training and validation. Each run draws the split from a seed or reads it from a file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .files import MAX_LONG_JSON_BYTES, read_json, replacing
from .model.findings import BadInputError

FILE_NAME = "split.csv"

# Name of the column that assigns a case to training or validation: `role` in the user's files, `part` in a run's file.
PART_COLUMNS = ("role", "part")
TRAIN_NAMES = ("fit", "train")
VALIDATION_NAMES = ("validate", "validation")


@dataclass(frozen=True)
class Split:
    """Case ids of a cohort, split into training and validation.

    Attributes:
        train: Cases that a network is trained on.
        validation: Cases on which the network is scored during training.
        contents: Fingerprint of the images of each case, by case id. The mapping lacks cases without a recorded
            fingerprint. A fingerprint does not depend on the name of its case.
    """

    train: list[str]
    validation: list[str]
    contents: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def draw_split(case_ids: Sequence[str], *, seed: int, val_fraction: float) -> Split:
    """Draw random cases for validation: the fraction `val_fraction` of all cases, but at least one and never all.

    Example:
        >>> draw_split(["a", "b", "c", "d"], seed=0, val_fraction=0.25)
        Split(train=['b', 'c', 'd'], validation=['a'])
    """
    count = min(max(1, round(val_fraction * len(case_ids))), len(case_ids) - 1)
    return _split_off(case_ids, set(_shuffled(case_ids, seed)[:count]))


def draw_fold(case_ids: Sequence[str], *, seed: int, folds: int, fold: int) -> Split:
    """Draw fold `fold`, counted from 0, of a cross-validation. Every case is a validation case of exactly one fold.

    Example:
        >>> [draw_fold(["a", "b", "c"], seed=0, folds=2, fold=fold).validation for fold in (0, 1)]
        [['b', 'c'], ['a']]
    """
    return _split_off(case_ids, set(_shuffled(case_ids, seed)[fold::folds]))


def read_split(path: Path, fold: int | None) -> Split:
    """Read a split from a CSV file or from nnU-Net's `splits_final.json`.

    A CSV file has the columns `case` and `role`. If `fold` is `None`, the role `fit` means training and `validate`
    means validation. If `fold` is a number, the file also needs the column `fold`: the `fit` cases of that fold are
    used for validation, and the other `fit` cases for training. Cases of any other role are left out. The file
    `split.csv` of a run has the column `part` (`train`, `validation`) instead of `role`. The JSON file is a list with
    one object `{"train": [...], "val": [...]}` for each fold, counted from 0.

    Raises:
        BadInputError: If the file cannot be read, lacks a column or the fold, or names a case twice, or if there is no
            case for training or validation.
    """
    if not path.is_file():
        raise BadInputError(path, "There is no such split file. Check the path.")
    split = _read_folds(path, fold) if path.suffix == ".json" else _read_csv(path, fold)
    for use, names in (("training", split.train), ("validation", split.validation)):
        if not names:
            raise BadInputError(path, f"The file has no case for {use}{_of_fold(fold)}. Add at least one case.")
    if both := sorted(set(split.train) & set(split.validation)):
        raise BadInputError(
            path,
            f"The file uses cases for both training and validation{_of_fold(fold)}: {', '.join(both)}. Use each case "
            "for only one purpose.",
        )
    return split


def write_run_split(run_folder: Path, split: Split, *, fold: int | None) -> None:
    """Write the split of a run to `split.csv`: one row for each case, with the fold if one was chosen."""
    rows = [
        (case, part, split.contents.get(case, "")) for part in ("train", "validation") for case in getattr(split, part)
    ]
    with replacing(run_folder / FILE_NAME) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["case", "part", "content"]
        writer.writerow(columns if fold is None else [*columns, "fold"])
        writer.writerows(rows if fold is None else [(*row, fold) for row in rows])


def read_run_split(run_folder: Path) -> Split:
    """Read the training and validation cases of a run. A run that used only phantoms has no cases.

    `contents` is empty for runs of earlier versions, which did not record the fingerprints of the cases.

    Raises:
        BadInputError: If the folder has no `split.csv`, or if the file lacks a column.
    """
    path = run_folder / FILE_NAME
    if not path.is_file():
        raise BadInputError(
            run_folder, f"The folder has no {FILE_NAME}, so it is not the folder of a run. Give the folder of a run."
        )
    rows = _rows(path)
    columns = set(rows[0]) if rows else {"case", "part"}
    if not {"case", "part"} <= columns:
        raise BadInputError(
            path,
            f"The split of a run needs the columns case and part. The columns of this file are: {_listed(columns)}. "
            "Give the folder of a run.",
        )
    train, validation = ([row["case"] for row in rows if row["part"] == part] for part in ("train", "validation"))
    return Split(train, validation, {row["case"]: row["content"] for row in rows if row.get("content")})


def _shuffled(case_ids: Sequence[str], seed: int) -> list[str]:
    order = torch.randperm(len(case_ids), generator=torch.Generator().manual_seed(seed)).tolist()
    return [case_ids[index] for index in order]


def _split_off(case_ids: Sequence[str], validation: set[str]) -> Split:
    """Build a split. Its training and validation cases are in the order of `case_ids`."""
    return Split(
        train=[case for case in case_ids if case not in validation],
        validation=[case for case in case_ids if case in validation],
    )


def _read_csv(path: Path, fold: int | None) -> Split:
    rows = _rows(path)
    columns = set(rows[0]) if rows else set()
    part = next((name for name in PART_COLUMNS if name in columns), None)
    if part is None or "case" not in columns:
        raise BadInputError(
            path,
            f"A split file needs the columns case and role. The columns of this file are: {_listed(columns)}. Rename "
            "the columns.",
        )
    if repeated := sorted(name for name, times in Counter(row["case"] for row in rows).items() if times > 1):
        raise BadInputError(path, f"The file lists {', '.join(repeated)} more than once. Remove the repeated rows.")
    trains = [row for row in rows if row[part] in TRAIN_NAMES]
    if fold is None:
        validates = [row for row in rows if row[part] in VALIDATION_NAMES]
    else:
        if "fold" not in columns:
            raise BadInputError(
                path,
                f"`data.fold` needs the column fold. The columns of this file are: {_listed(columns)}. Add the "
                "column, or leave out `data.fold`.",
            )
        if part == "part":
            raise BadInputError(path, "This file is the split of a run, so it has no folds. Leave out `data.fold`.")
        validates = [row for row in trains if row["fold"] == str(fold)]
        if not validates:
            known = _listed({row["fold"] for row in trains if row["fold"]})
            raise BadInputError(path, f"The file has no fold {fold}. Choose one of its folds: {known}.")
        trains = [row for row in trains if row["fold"] != str(fold)]
    return Split([row["case"] for row in trains], [row["case"] for row in validates])


def _read_folds(path: Path, fold: int | None) -> Split:
    remedy = "Give the `splits_final.json` of nnU-Net, or a CSV file."
    folds = read_json(path, remedy=remedy, max_bytes=MAX_LONG_JSON_BYTES)
    if not isinstance(folds, list) or not folds or not all(_is_fold(item) for item in folds):
        raise BadInputError(
            path,
            'A JSON split file must be a list with one object {"train": [...], "val": [...]} for each fold. ' + remedy,
        )
    if fold is None:
        raise BadInputError(
            path, f"No fold was chosen. Choose one of the folds of this file with --fold 0 to {len(folds) - 1}."
        )
    if not 0 <= fold < len(folds):
        raise BadInputError(path, f"The file has no fold {fold}. Choose one of its folds: 0 to {len(folds) - 1}.")
    return Split(folds[fold]["train"], folds[fold]["val"])


def _is_fold(item: Any) -> bool:
    return isinstance(item, dict) and all(
        isinstance(item.get(part), list) and all(isinstance(name, str) for name in item[part])
        for part in ("train", "val")
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        # `utf-8-sig` skips the byte order mark that spreadsheet programs write at the beginning.
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [{name: value or "" for name, value in row.items() if name} for row in csv.DictReader(file)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInputError(
            path, f"The file is not valid CSV ({error}). Save the file again as CSV in UTF-8."
        ) from error


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _of_fold(fold: int | None) -> str:
    return "" if fold is None else f" in fold {fold}"

"""The table of published papers, in each format."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pandas as pd
import pytest

from lora_moe_hgd.evaluation.subset_table import subset_table
from lora_moe_hgd.subsets import EVERY_SUBSET, subset_name

REGIONS = ("wt", "tc", "et")
NAMES = [subset_name(subset) for subset in EVERY_SUBSET]


def rows_of(cases: str, dice: float, **others: float) -> pd.DataFrame:
    """Rows of all subsets and regions with one Dice, and `others` by the subset's name for WT."""
    return pd.DataFrame(
        {
            "case_id": case,
            "subset": name,
            "region": region,
            "dice": others.get(name.replace("+", "_"), dice) if region == "wt" else dice,
        }
        for case, name, region in itertools.product(cases, NAMES, REGIONS)
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_each_subset_is_a_row_of_dots_and_the_last_row_is_the_mean() -> None:
    lines = subset_table({"ours": rows_of("ab", 0.5, t1c=0.75)}, "markdown").splitlines()
    assert cells(lines[0]) == ["T1", "T1c", "T2", "FLAIR", "WT", "TC", "ET"]
    assert len(lines) == 2 + 15 + 1
    assert cells(lines[2 + NAMES.index("t1c")]) == ["○", "●", "○", "○", "75.0", "50.0", "50.0"]
    assert cells(lines[2 + NAMES.index("t1+flair")])[:4] == ["●", "○", "○", "●"]
    assert cells(lines[-1]) == ["mean", "", "", "", f"{(14 * 50 + 75) / 15:.1f}", "50.0", "50.0"]


def test_the_best_of_several_is_bold_and_so_is_what_ties_with_it() -> None:
    scores = {"a": rows_of("x", 0.5, t1=0.6), "b": rows_of("x", 0.50001, t1=0.7)}
    lines = subset_table(scores, "markdown").splitlines()
    assert cells(lines[0])[4:] == ["WT a", "WT b", "TC a", "TC b", "ET a", "ET b"]
    assert cells(lines[2])[4:] == ["60.0", "**70.0**", "**50.0**", "**50.0**", "**50.0**", "**50.0**"]


def test_only_cases_that_all_have_count() -> None:
    first, second = rows_of("ab", 0.5), rows_of("bc", 0.7)
    first.loc[first["case_id"] == "a", "dice"] = 0.0
    second.loc[(second["case_id"] == "b") & (second["region"] == "et"), "dice"] = np.nan
    lines = subset_table({"a": first, "b": second}, "markdown").splitlines()
    assert cells(lines[2])[4:] == ["50.0", "**70.0**", "50.0", "**70.0**", "-", "-"]
    with pytest.raises(ValueError, match="no case and subset in common"):
        subset_table({"a": rows_of("a", 0.5), "b": rows_of("c", 0.7)}, "markdown")


def test_latex_has_the_columns_that_it_announces_and_escapes_names() -> None:
    scores = {"a_b": rows_of("x", 0.5), "50%": rows_of("x", 0.7)}
    text = subset_table(scores, "latex")
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{cccccccccc}"
    body = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {9}
    assert r"a\_b" in text
    assert r"50\%" in text
    assert r"$\bullet$ & $\circ$ & $\circ$ & $\circ$ & 50.0 & \textbf{70.0}" in text
    assert text.count(r"\bullet") == sum(map(sum, EVERY_SUBSET))


def test_csv_has_the_numbers() -> None:
    text = subset_table({"ours": rows_of("ab", 0.5, t1c=0.75), "theirs": rows_of("ab", 0.25)}, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["sequences"] for row in rows] == [*NAMES, "mean"]
    assert float(rows[NAMES.index("t1c")]["wt ours"]) == 75
    assert float(rows[-1]["et theirs"]) == 25

"""Comparisons of evaluations with each other and with published Dice values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from lora_moe_hgd.evaluation.compare import write_comparison
from lora_moe_hgd.evaluation.score_files import read_scores
from lora_moe_hgd_cli import run

ALL = "t1+t1c+t2+flair"


def evaluation(folder: Path, dices: dict[str, float], subset: str = ALL, **about: object) -> Path:
    """Folder of an evaluation with one Dice per case."""
    folder.mkdir()
    rows = [
        {"case_id": case, "subset": subset, "sequences": 4, "region": region, "dice": dice}
        for case, dice in dices.items()
        for region in ("wt", "tc", "et")
    ]
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)
    (folder / "table.json").write_text(json.dumps({"about": {"task": None, "convention": "brats"} | about}))
    return folder


def csv(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "published.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_published_scores_are_compared_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = evaluation(tmp_path / "own", {"001": 0.5, "002": 0.7, "003": 0.9})
    published = csv(tmp_path, "Case, WT, TC, ET", "001, 0.6, 0.4, ", "002, 0.8, 0.6, 0.9", "004, 1, 1, 1")
    run("evaluate", ["--compare", str(published), str(own), "--out", str(tmp_path / "out"), "--format", "csv"])
    shown = capsys.readouterr().out
    assert "| mean | WT | 2 | 0.700 | 0.600 | -0.100" in shown
    assert "| mean | TC | 2 | 0.500 | 0.600 | +0.100" in shown
    # One value is missing, so there is one case.
    assert "| mean | ET | 1 | 0.900 | 0.700 | -0.200 | - | - |" in shown
    assert "These cases are left out, because only one evaluation has them: 003, 004." in shown
    table = pd.read_csv(tmp_path / "out/subset_table.csv").set_index("sequences")
    assert table.loc[ALL, ["wt published", "wt own"]].tolist() == [70, 60]


def test_a_column_names_the_sequences_of_published_scores(tmp_path: Path) -> None:
    rows = read_scores(csv(tmp_path, "case,subset,et", "a,flair+t1c,0.5", "a,all,0.75", "b,t1,"))
    assert rows.columns.tolist() == ["case_id", "subset", "region", "dice"]
    found = rows.set_index(["case_id", "subset", "region"])["dice"]
    assert found["a", "t1c+flair", "et"] == 0.5
    assert found["a", ALL, "et"] == 0.75
    assert math.isnan(found["b", "t1", "et"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["case,wt_mean,et", "a,0.5,0.5"],
            "has the columns case, wt_mean, et. The file must have the column case and a column of Dice",
        ),
        (["name,wt", "a,0.5"], "has the columns name, wt. The file must have the column case"),
        (["case,subset", "a,all"], "has the columns case, subset. The file must have"),
        (["case,wt,WT", "a,0.5,0.6"], "has the columns case, wt, wt. The file must have"),
        (["case,wt", "a,91.2"], "Dice must be between 0 and 1. Divide percentages by 100."),
        (["case,wt", "a,0.5", "a,0.6"], "no case may have two rows for the same subset"),
        (["case,wt", ",0.5"], "each row needs a case"),
        (["case,wt", "a,good"], "a Dice value is not a number"),
        (["case,subset,wt", "a,t3,0.5"], "Unknown sequence(s) t3"),
        (["case,wt", 'a,"0.5'], "is not a CSV file with one row per case"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the messages are compared below
        read_scores(csv(tmp_path, *lines))
    assert message in str(caught.value)


def test_evaluations_with_different_conventions_are_refused(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / name, {"a": 0.5}, convention=name) for name in ("brats", "nan")]
    with pytest.raises(ValueError, match=r"score empty regions differently \(.*/brats: brats, .*/nan: nan\)"):
        write_comparison(folders, tmp_path / "out")


def test_nothing_is_said_of_cases_if_both_have_the_same(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / name, {"a": 0.5, "b": 0.6}) for name in ("first", "second")]
    assert "left out" not in write_comparison(folders, tmp_path / "out")

"""Dice, the subsets, and the table of scores."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from lora_moe_hgd.cli import run
from lora_moe_hgd.evaluation.evaluate import Score, mean_table, to_markdown
from lora_moe_hgd.evaluation.metrics import dice
from lora_moe_hgd.evaluation.subsets import EVERY_SUBSET, parse_subset, subset_name


@pytest.mark.parametrize("seed", range(5))
def test_dice_equals_that_of_monai(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, 1, 1, 5, 6, 7, generator=generator) > 0.7
    expected = DiceMetric(ignore_empty=False)(prediction, target).item()
    assert dice(prediction, target) == pytest.approx(expected)


def test_dice_of_empty_masks() -> None:
    empty, full = np.zeros(5), np.ones(5)
    assert (dice(empty, empty), dice(empty, full), dice(full, empty)) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"one shape, got \(5,\) and \(4,\)"):
        dice(empty, empty[:4])


def test_there_are_fifteen_subsets_and_their_names_are_read_back() -> None:
    assert len(EVERY_SUBSET) == len(set(EVERY_SUBSET)) == 15
    assert [parse_subset(subset_name(mask)) for mask in EVERY_SUBSET] == list(EVERY_SUBSET)
    assert [sum(mask) for mask in EVERY_SUBSET] == sorted(sum(mask) for mask in EVERY_SUBSET)
    with pytest.raises(ValueError, match=r"Unknown sequence\(s\) t3 in 't1\+t3'"):
        parse_subset("t1+t3")


def test_the_mean_row_weighs_every_subset_alike() -> None:
    scores = [
        Score("a", "t1", 1.0, 0.5, 0.0),
        Score("b", "t1", 0.0, 0.5, 0.0),
        Score("a", "t2", 1.0, 1.0, 1.0),
    ]
    first, second, mean = mean_table(scores)
    assert (first["cases"], first["wt"], first["tc"], first["et"]) == (2, 0.5, 0.5, 0.0)
    assert (second["cases"], second["mean"]) == (1, 1.0)
    assert (mean["subset"], mean["wt"], mean["et"], mean["mean"]) == ("mean", 0.75, 0.5, pytest.approx(2 / 3))
    assert to_markdown([first]).splitlines()[-1] == "| t1 | 2 | 0.500 | 0.500 | 0.000 | 0.333 |"


def test_evaluating_writes_a_score_per_case_and_subset(dummy_root, tmp_path, capsys) -> None:
    arguments = ["--data", str(dummy_root), "--out", str(tmp_path / "scores"), "--cases", "case_000,case_002"]
    run("evaluate", [*arguments, "--subsets", "all,t1c+flair"])
    rows = json.loads((tmp_path / "scores/table.json").read_text())
    assert [row["subset"] for row in rows] == ["t1+t1c+t2+flair", "t1c+flair", "mean"]
    assert (tmp_path / "scores/scores.csv").read_text().count("\n") == 1 + 2 * 2
    assert (tmp_path / "scores/table.md").read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("evaluate", [*arguments[:-1], "case_9"])
    assert "No case(s) case_9" in capsys.readouterr().err


def test_a_case_without_ground_truth_is_found_before_any_is_scored(dummy_root, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree(dummy_root, tmp_path / "cases")
    (tmp_path / "cases/case_002/seg.nii.gz").unlink()
    monkeypatch.delattr("lora_moe_hgd.evaluation.evaluate.load_checkpoint")
    with pytest.raises(SystemExit):
        run("evaluate", ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "scores")])
    assert "case_002" in capsys.readouterr().err


def test_subsets_that_no_case_has_are_named(dummy_root, tmp_path, capsys) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "cases/case_000")
    (tmp_path / "cases/case_000/T2.nii.gz").unlink()
    with pytest.raises(SystemExit):
        run("evaluate", ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "scores"), "--subsets", "t1+t2"])
    assert "has all sequences of any subset of --subsets t1+t2" in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()

"""Evaluations: what is computed, what is kept, and the tables."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.data.layouts import find_case, find_cases
from lora_moe_hgd.data.nifti import read_image
from lora_moe_hgd.evaluation import evaluate as module
from lora_moe_hgd.evaluation.calibration import expected_calibration_error, reliability_counts
from lora_moe_hgd.evaluation.compare import paired_differences
from lora_moe_hgd.evaluation.evaluate import Rules, evaluate, prepared
from lora_moe_hgd.evaluation.report import dice_table, shapley_values, summarise, trust, worth_of_sequences
from lora_moe_hgd.evaluation.subsets import EVERY_SUBSET, subset_name
from lora_moe_hgd.inference.segment import segment
from lora_moe_hgd.inference.uncertainty import expected_dice, voxel_entropy
from lora_moe_hgd.model.case_rules import settle
from lora_moe_hgd.model.sources import volume_of
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
FILES = {"scores.csv", "table.md", "table.json", "heat_map.png", "by_count.png", "reliability.png", "cases"}


def rows_of(*values: tuple[str, str, float, float, float]) -> pd.DataFrame:
    """Rows of case, subset and the Dice of the three regions."""
    return pd.DataFrame(
        {"case_id": case, "subset": subset, "sequences": subset.count("+") + 1, "region": region, "dice": value}
        for case, subset, *dices in values
        for region, value in zip(("wt", "tc", "et"), dices, strict=True)
    )


def test_the_mean_row_weighs_every_subset_of_a_case_alike_and_every_case() -> None:
    rows = rows_of(("a", "t1", 1.0, 0.5, 0.0), ("b", "t1", 0.0, 0.5, 0.0), ("a", "t2", 0.5, 1.0, 1.0))
    summary = summarise(rows).set_index(["subset", "region"])
    assert summary.loc[("t1", "wt"), "mean"] == 0.5
    assert summary.loc[("t1", "mean"), "mean"] == pytest.approx((0.5 + 0.5 / 3) / 2)
    assert summary.loc[("mean", "wt"), "mean"] == pytest.approx((0.75 + 0.0) / 2)
    assert summary.loc[("t1", "wt"), "cases"] == 2
    assert dice_table(summarise(rows)).splitlines()[3].startswith("| t2 | 1 | 0.500 | 1.000 | 1.000 | 0.833 |")


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(100):
        values = rng.beta(4, 2, size=40)
        summary = summarise(rows_of(*((str(i), "t1", v, v, v) for i, v in enumerate(values))))
        low, high = summary.loc[0, ["low", "high"]]
        covered.append(low <= 4 / 6 <= high)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_one_case_has_no_interval() -> None:
    assert summarise(rows_of(("a", "t1", 1.0, 0.5, 0.0)))["low"].isna().all()


def test_shapley_values_are_those_of_all_orders() -> None:
    rng = np.random.default_rng(1)
    worth = {frozenset(subset_name(mask).split("+")): rng.random() for mask in EVERY_SUBSET}
    sums = dict.fromkeys(("t1", "t1c", "t2", "flair"), 0.0)
    orders = list(itertools.permutations(sums))
    for order in orders:
        for place, name in enumerate(order):
            before = worth[frozenset(order[:place])] if place else 0.0
            sums[name] += worth[frozenset(order[: place + 1])] - before
    found = shapley_values(worth)
    assert found == pytest.approx({name: value / len(orders) for name, value in sums.items()})
    assert sum(found.values()) == pytest.approx(worth[frozenset(sums)])


def test_the_worth_of_sequences_needs_all_subsets_of_a_case() -> None:
    rows = rows_of(*(("a", subset_name(mask), sum(mask) / 4, 0.0, 0.0) for mask in EVERY_SUBSET))
    assert worth_of_sequences(rows)["wt"] == pytest.approx(dict.fromkeys(("t1", "t1c", "t2", "flair"), 0.25))
    assert worth_of_sequences(rows[rows["subset"] != "t1"]) == {}


def test_paired_differences_know_better_from_worse() -> None:
    rng = np.random.default_rng(2)
    first = rows_of(*((f"case{i}", "t1", *rng.uniform(0.2, 0.6, 3)) for i in range(12)))
    better = first.assign(dice=first["dice"] + 0.1)
    found = paired_differences(first, better).iloc[0]
    assert (found["difference"], found["effect"]) == (pytest.approx(0.1), 1.0)
    assert found["p"] < 0.001
    assert found["low"] <= 0.1 + 1e-9
    assert paired_differences(better, first).iloc[0]["effect"] == -1.0
    same = paired_differences(first, first)
    assert (same["p"] == 1.0).all()
    assert (same["difference"] == 0).all()


def test_only_common_cases_and_subsets_are_compared() -> None:
    first = rows_of(("a", "t1", 0.1, 0.1, 0.1), ("b", "t1", 0.9, 0.9, 0.9), ("a", "t2", 0.5, 0.5, 0.5))
    second = rows_of(("a", "t1", 0.3, 0.3, 0.3), ("c", "t1", 0.0, 0.0, 0.0))
    found = paired_differences(first, second)
    assert set(found["cases"]) == {1}
    assert found["difference"].tolist() == pytest.approx([0.2] * len(found))
    with pytest.raises(ValueError, match="a case and a subset in common"):
        paired_differences(first, second[second["case_id"] == "c"])


def test_entropy_is_that_of_the_four_classes() -> None:
    rng = np.random.default_rng(3)
    classes = rng.dirichlet(np.ones(4), size=(2, 3, 4))
    nested = np.stack([classes[..., 1:].sum(-1), classes[..., 2:].sum(-1), classes[..., 3]])
    expected = torch.distributions.Categorical(torch.from_numpy(classes)).entropy().numpy() / math.log(2)
    np.testing.assert_allclose(voxel_entropy(nested), expected)


def test_expected_dice_is_right_where_voxels_are_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.beta(0.3, 0.9, size=(1, 30, 30, 30))
    chosen = probabilities > 0.5
    drawn = [rng.random(probabilities.shape) < probabilities for _ in range(20)]
    real = [2 * (chosen & truth).sum() / (chosen.sum() + truth.sum()) for truth in drawn]
    assert expected_dice(probabilities, probabilities > 0.5) == pytest.approx([np.mean(real)], abs=0.005)


def test_calibrated_probabilities_have_no_calibration_error_and_overconfident_ones_do() -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.random((1, 40, 40, 40))
    brain = np.ones((40, 40, 40), dtype=bool)
    truth = rng.random(probabilities.shape) < probabilities
    assert expected_calibration_error(reliability_counts(probabilities, truth, brain)[0]) < 0.01
    overconfident = (probabilities > 0.5).astype(float)
    error = expected_calibration_error(reliability_counts(overconfident, truth, brain)[0])
    assert error == pytest.approx(0.25, abs=0.01)
    assert reliability_counts(probabilities, truth, ~brain).sum() == 0


def test_trust_is_told_by_number_of_sequences() -> None:
    rows = rows_of(*((c, s, v, v, v) for c, v in (("a", 0.2), ("b", 0.5), ("c", 0.9)) for s in ("t1", "t1+t2")))
    rows["expected_dice"] = np.where(rows["sequences"] == 1, 1 - rows["dice"], rows["dice"])
    reliability = {(case, subset): np.ones((3, 3, 10)) for case in "abc" for subset in ("t1", "t1+t2")}
    assert trust(rows, reliability)["spearman"].tolist() == pytest.approx([-1, 1])


def test_subsets_that_share_a_brain_are_preprocessed_as_if_alone(dummy_root: Path) -> None:
    case = find_case(dummy_root / "case_000")
    images = {name: read_image(path).image for name, path in case.images.items()}
    # T2 covers less: subsets with it alone have another brain.
    data = np.array(images["t2"].dataobj)
    data[: data.shape[0] // 2] = 0
    images["t2"] = type(images["t2"])(data, images["t2"].affine)
    _, processor = load_checkpoint("tiny")
    settled = settle({name: volume_of(image, where=name) for name, image in images.items()})
    seen = 0
    for inputs, brain, subset in prepared(processor, settled, EVERY_SUBSET):
        names = subset_name(subset).split("+")
        own = processor({name: images[name] for name in names})
        mask = inputs["modality_mask"]
        assert torch.equal(mask, own["modality_mask"])
        assert torch.equal(inputs["pixel_values"][mask], own["pixel_values"][mask])
        assert inputs["geometry"][0].box == own["geometry"][0].box
        assert np.array_equal(inputs["geometry"][0].brain, own["geometry"][0].brain)
        assert np.array_equal(brain, np.logical_or.reduce([np.asarray(images[n].dataobj) != 0 for n in names]))
        seen += 1
    assert seen == 15


def test_scores_are_those_of_segmenting_each_subset_by_itself(dummy_root: Path, tmp_path: Path) -> None:
    network, processor = load_checkpoint("tiny")
    case = find_case(dummy_root / "case_001")
    subsets = [(True, True, True, True), (False, True, False, True)]
    scores = evaluate(network, processor, [case], out=tmp_path, subsets=subsets)
    images = {name: read_image(path).image for name, path in case.images.items() if name in ("t1c", "flair")}
    found = segment(network, processor, images)
    (row,) = (row for row in scores["case_001"].rows if row["subset"] == "t1c+flair" and row["region"] == "wt")
    volume = row["true_volume_ml"] + row["volume_error_ml"]
    assert found.volumes_ml()["wt"] == pytest.approx(volume)
    assert row["expected_dice"] == expected_dice(found.probabilities, found.regions)[0]


def test_evaluating_writes_tables_and_pictures(dummy_root: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(dummy_root), "--out", str(tmp_path / "scores"), "--cases", "case_000,case_002"]
    run("evaluate", [*arguments, "--subsets", "all,t1c+flair"])
    assert {path.name for path in (tmp_path / "scores").iterdir()} == FILES
    rows = pd.read_csv(tmp_path / "scores/scores.csv")
    assert len(rows) == 2 * 2 * 3
    assert rows["subset"].unique().tolist() == ["t1c+flair", "t1+t1c+t2+flair"]
    summary = pd.DataFrame(json.loads((tmp_path / "scores/table.json").read_text())["summary"])
    assert set(summary["subset"]) == {"t1c+flair", "t1+t1c+t2+flair", "mean"}
    assert (tmp_path / "scores/table.md").read_text().strip() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("evaluate", [*arguments[:-1], "case_9"])
    assert "No case(s) case_9" in capsys.readouterr().err


def test_what_is_known_is_not_computed_again_and_what_changed_is(
    dummy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "cases/case_000")
    shutil.copytree(dummy_root / "case_001", tmp_path / "cases/case_001")
    network, processor = load_checkpoint("tiny")
    cases = find_cases(tmp_path / "cases")
    scored = []

    def spy(network, processor, case, subsets, rules):
        scored.extend((case.case_id, subset_name(subset)) for subset in subsets)
        return score_case(network, processor, case, subsets, rules)

    score_case = module.score_case
    monkeypatch.setattr(module, "score_case", spy)
    flair, t1 = (False, False, False, True), (True, False, False, False)
    first = evaluate(network, processor, cases, out=tmp_path / "out", subsets=[flair])
    assert scored == [("case_000", "flair"), ("case_001", "flair")]
    scored.clear()
    assert evaluate(network, processor, cases, out=tmp_path / "out", subsets=[flair]) == first
    assert scored == []
    both = evaluate(network, processor, cases[:1], out=tmp_path / "out", subsets=[flair, t1])
    assert scored == [("case_000", "t1")]
    assert both["case_000"].rows[:3] == first["case_000"].rows
    scored.clear()
    (tmp_path / "cases/case_001/T2.nii.gz").unlink()
    changed = find_cases(tmp_path / "cases")[1:]
    for _ in range(2):
        evaluate(network, processor, changed, out=tmp_path / "out", subsets=[flair, (False, False, True, True)])
    assert scored == [("case_001", "flair")]
    scored.clear()
    mirrored = evaluate(network, processor, cases[:1], out=tmp_path / "out", subsets=[flair], rules=Rules(mirror=True))
    assert scored == [("case_000", "flair")]
    assert mirrored["case_000"] != first["case_000"]
    scored.clear()
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    evaluate(network, processor, cases[:1], out=tmp_path / "out", subsets=[flair])
    assert scored == [("case_000", "flair")]
    scored.clear()
    shutil.copy(dummy_root / "case_002/seg.nii.gz", tmp_path / "cases/case_000/seg.nii.gz")
    evaluate(network, processor, cases[:1], out=tmp_path / "out", subsets=[flair])
    assert scored == [("case_000", "flair")]


@pytest.mark.slow
def test_two_processes_share_the_cases_and_give_the_tables_of_one(dummy_root: Path, tmp_path: Path) -> None:
    words = ["--data", str(dummy_root), "--subsets", "flair", "--out"]
    run("evaluate", [*words, str(tmp_path / "one")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, str(ROOT / "evaluate.py"), *words, str(tmp_path / "two")], check=True, env=environment)
    one, two = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
    assert {path.name for path in (tmp_path / "two").iterdir()} == FILES


def test_evaluations_are_compared(tmp_path: Path, capsys) -> None:
    for name, gain in (("a", 0.0), ("b", 0.1)):
        (tmp_path / name).mkdir()
        rows = rows_of(*((f"case{i}", "flair", 0.5 + gain, 0.1 * i, 0.2) for i in range(4)))
        rows.to_csv(tmp_path / name / "scores.csv", index=False)
    run("evaluate", ["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    assert "| mean | WT | 4 | 0.500 | 0.600 | +0.100" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "c/comparison.csv")) == 5
    with pytest.raises(SystemExit):
        run("evaluate", ["--compare", str(tmp_path / "a"), str(tmp_path / "nothing"), "--out", str(tmp_path / "c")])
    assert "must be the folder of an evaluation" in capsys.readouterr().err


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

"""Evaluations: what is computed, what is kept, and the tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from lora_moe_hgd import fingerprints, load_checkpoint, pretrained_path
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import find_case, find_cases
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.evaluation import scoring
from lora_moe_hgd.evaluation.calibration import average_calibration_error, reliability_counts
from lora_moe_hgd.evaluation.compare import paired_differences, write_comparison
from lora_moe_hgd.evaluation.evaluate import evaluate
from lora_moe_hgd.evaluation.report import (
    dice_table,
    plot_reliability,
    pooled_reliability,
    shapley_values,
    summarise,
    to_markdown,
    trust,
    volume_agreement,
    worth_of_sequences,
)
from lora_moe_hgd.evaluation.scoring import CaseScores, Rules, prepared, score_regions
from lora_moe_hgd.evaluation.trained_on import trained_among
from lora_moe_hgd.fingerprints import images_fingerprint
from lora_moe_hgd.inference.segment import find_regions
from lora_moe_hgd.inference.uncertainty import voxel_entropy
from lora_moe_hgd.model.case_rules import settle
from lora_moe_hgd.model.confidence import expected_dice
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.sources import volume_of
from lora_moe_hgd.model.task import BRAIN_TUMOUR
from lora_moe_hgd.splits import Split, write_run_split
from lora_moe_hgd.subsets import EVERY_SUBSET, subset_name
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")

ROOT = Path(__file__).parents[1]
TABLES = {"scores.csv", "findings.csv", "table.md", "table.json"}
FILES = TABLES | {"heat_map.png", "by_count.png", "reliability.png", "cases"}


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


def test_undefined_values_neither_enter_a_mean_nor_are_counted() -> None:
    nan = math.nan
    defined = (("a", "t1", 1.0, 0.5, nan), ("b", "t1", 0.5, 0.5, nan), ("c", "t1", 0.75, 0.5, nan))
    rows = rows_of(*defined, ("d", "t1", nan, nan, nan))
    rows["hd95_mm"] = [1.0, 2.0] + 10 * [nan]
    summary = summarise(rows).set_index(["metric", "subset", "region"])[["cases", "mean"]]
    assert summary.loc[("dice", "t1", "wt")].tolist() == [3, 0.75]
    assert summary.loc[("dice", "t1", "mean")].tolist() == [3, 0.625]
    assert summary.loc[("hd95_mm", "t1", "wt")].tolist() == [1, 1.0]
    assert summary.loc[("dice", "t1", "et"), "cases"] == 0
    assert math.isnan(summary.loc[("dice", "t1", "et"), "mean"])
    row = dice_table(summarise(rows)).splitlines()[2]
    assert row.startswith("| t1 | 3 | 0.750 (0.500 to 1.000) | 0.500 (0.500 to 0.500) | nan, 0 cases | 0.625")


def test_undefined_values_are_left_out_of_both_sides_of_a_comparison() -> None:
    nan = math.nan
    first = rows_of(("a", "t1", 0.5, 0.5, nan), ("b", "t1", 0.5, 0.5, 0.5), ("c", "t1", 0.9, nan, nan))
    second = rows_of(("a", "t1", 0.6, 0.6, 1.0), ("b", "t1", 0.6, 0.6, nan), ("c", "t1", nan, 0.1, nan))
    found = paired_differences(first, second).set_index(["subset", "region"])
    assert found.loc[("mean", "mean"), "difference"] == pytest.approx(0.1)
    assert found["cases"].tolist() == [2, 2, 2, 2]
    assert ("mean", "et") not in found.index


def test_expected_and_real_dice_are_compared_where_both_are_defined() -> None:
    rows = rows_of(("a", "t1", 0.5, 0.5, math.nan), ("b", "t1", 0.7, 0.7, 0.7))
    rows["expected_dice"] = [0.5, 0.5, 1.0, 0.7, 0.7, 0.7]
    found = trust(rows, {(case, "t1"): np.ones((3, 3, 10)) for case in "ab"})
    assert found[["expected_dice", "dice"]].to_numpy().tolist() == [[pytest.approx(0.6)] * 2]


@pytest.mark.parametrize("cases", ["a", "ab"])
def test_one_or_two_cases_have_neither_intervals_nor_r2(cases: str) -> None:
    # The mean of six times 0.1 is not 0.1.
    names = ("t1", "t1c", "t2", "flair", "t1+t1c", "t1+t2")
    rows = rows_of(*((case, name, 1.0, 0.5, 0.0) for case in cases for name in names))
    rows = rows.assign(true_volume_ml=0.1, volume_error_ml=0.05, expected_dice=0.5)
    assert summarise(rows)["low"].isna().all()
    assert volume_agreement(rows.assign(sequences=1))["r2_wt"].isna().all()
    text = to_markdown(rows, {})
    assert "without intervals: an interval needs at least 3 cases." in text
    assert "R2 needs 3 cases." in text
    assert "| 1 | 0.050 | - | 0.050 | - | 0.050 | - |" in text
    assert " to " not in text
    assert "nan" not in text


def test_the_mean_over_an_infinite_distance_is_infinite_and_has_no_interval() -> None:
    rows = rows_of(*((name, "t1", 1.0, 0.5, 0.0) for name in "abc"))
    rows["lesion_hd95_mm"] = [1.0, 2.0, math.inf] * 3
    found = summarise(rows).set_index(["metric", "subset", "region"])
    assert found.loc[("lesion_hd95_mm", "t1", "et"), "mean"] == math.inf
    assert math.isnan(found.loc[("lesion_hd95_mm", "t1", "et"), "low"])
    assert found.loc[("lesion_hd95_mm", "t1", "wt"), "mean"] == 1


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


def test_the_worth_of_sequences_is_that_in_the_same_cases_for_every_subset() -> None:
    names = [subset_name(mask) for mask in EVERY_SUBSET]
    rows = rows_of(*((case, name, name.count("+") / 4 + 0.25, 0.0, 0.0) for case in "ab" for name in names))
    # Undefined in one subset of a case that is perfect in the others.
    rows.loc[(rows["case_id"] == "b") & (rows["region"] == "wt"), "dice"] = 1.0
    rows.loc[(rows["case_id"] == "b") & (rows["region"] == "wt") & (rows["subset"] == "t1"), "dice"] = math.nan
    rows.loc[rows["region"] == "et", "dice"] = math.nan
    found = worth_of_sequences(rows)
    assert found["wt"] == pytest.approx(dict.fromkeys(("t1", "t1c", "t2", "flair"), 0.25))
    assert list(found) == ["wt", "tc"]
    reliability = {(case, name): np.ones((3, 3, 10)) for case in "ab" for name in names}
    text = to_markdown(rows.assign(expected_dice=0.5, volume_error_ml=0.0, true_volume_ml=1.0), reliability)
    assert "| sequence | WT | TC |" in text
    paragraphs = text.split("\n\n")
    tables = [number for number, paragraph in enumerate(paragraphs) if paragraph.startswith("|")]
    assert len(tables) == 5
    for number in tables:
        rows_are = paragraphs[number].split("|")[1].strip()
        assert rows_are in paragraphs[number - 1], "The line above a table says what its rows are."


@pytest.mark.parametrize("lesions", ["gli2023", "gli2026"])
def test_each_metric_in_a_table_has_its_meaning_and_unit_beside_it(lesions: str) -> None:
    regions = np.zeros((3, 8, 9, 10), dtype=bool)
    regions[:, 2:5, 2:6, 2:7] = True
    rules = Rules(lesions=lesions)
    rows = score_regions("a", (True, True, True, True), regions, regions, np.eye(4), rules=rules, task=BRAIN_TUMOUR)
    table = to_markdown(pd.DataFrame(rows), {}).split("| metric |")[1].split("\n\n")[0].splitlines()[2:]
    meanings = {
        name: meaning for _, name, *_, meaning, _ in ([cell.strip() for cell in row.split("|")] for row in table)
    }
    assert set(meanings) == set(rows[0]) - {"case_id", "subset", "sequences", "region", "dice", "expected_dice"}
    for name, meaning in meanings.items():
        assert re.search(r"(higher|lower) is better|0 is best", meaning) or name in ("lesions", "true_volume_ml")
        unit = {"_mm": "in mm", "_ml": "in mL"}.get(name[-3:], "")
        assert unit in meaning


def test_paired_differences_know_better_from_worse() -> None:
    rng = np.random.default_rng(2)
    first = rows_of(*((f"case{i}", "t1", *rng.uniform(0.2, 0.6, 3)) for i in range(12)))
    # Differences that tie would cost `stats.wilcoxon` a permutation test, which takes seconds.
    better = first.assign(dice=first["dice"] + np.repeat(np.linspace(0.05, 0.15, 12), 3))
    found = paired_differences(first, better).iloc[0]
    assert (found["difference"], found["effect"]) == (pytest.approx(0.1), 1.0)
    assert found["p"] < 0.001
    assert found["low"] < 0.1
    assert paired_differences(better, first).iloc[0]["effect"] == -1.0
    same = paired_differences(first, first)
    assert (same["p"] == 1.0).all()
    assert (same["difference"] == 0).all()


def test_few_cases_get_no_p_value_and_many_tests_are_corrected(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for number, cases in (("five", 5), ("six", 6)):
        first = rows_of(
            *((f"case{i}", name, *rng.uniform(0.2, 0.6, 3)) for i in range(cases) for name in ("t1", "t2"))
        )
        for place, rows in enumerate((first, first.assign(dice=first["dice"] + rng.uniform(0.1, 0.2, len(first))))):
            (tmp_path / f"{number}{place}").mkdir()
            rows.to_csv(tmp_path / f"{number}{place}/scores.csv", index=False)
    few, enough = (
        write_comparison([tmp_path / f"{number}0", tmp_path / f"{number}1"], tmp_path / number)
        for number in ("five", "six")
    )
    assert "A row has a p value only if it has at least 6 cases" in few
    assert "The row with the fewest cases has 5 cases." in few
    assert pd.read_csv(tmp_path / "five/comparison.csv")["p"].isna().all()
    table = pd.read_csv(tmp_path / "six/comparison.csv")
    assert f"for {len(table)} tests" in enough
    # All differ in one direction: each p is the smallest there is, and Holm multiplies the smallest by their number.
    assert table["p"].tolist() == pytest.approx([2 / 2**6] * len(table))
    assert table["p_holm"].tolist() == pytest.approx([min(1, len(table) * 2 / 2**6)] * len(table))


def test_volumes_are_compared_by_their_median_error_and_by_what_they_explain() -> None:
    rows = rows_of(*((str(i), "t1", 0.5, 0.5, 0.5) for i in range(4)))
    rows["true_volume_ml"] = np.repeat([10.0, 20.0, 30.0, 40.0], 3)
    rows["volume_error_ml"] = np.tile([0.0, 15.0, 0.0], 4) + np.repeat([1.0, -1.0, 2.0, -4.0], 3)
    (found,) = volume_agreement(rows).to_dict("records")
    assert (found["error_wt"], found["error_tc"]) == (1.5, 15.0)
    assert found["r2_wt"] == pytest.approx(1 - (1 + 1 + 4 + 16) / 500)
    # A constant error counts, unlike in a correlation.
    assert found["r2_tc"] == pytest.approx(1 - (16**2 + 14**2 + 17**2 + 11**2) / 500)


def test_only_common_cases_and_subsets_are_compared() -> None:
    first = rows_of(("a", "t1", 0.1, 0.1, 0.1), ("b", "t1", 0.9, 0.9, 0.9), ("a", "t2", 0.5, 0.5, 0.5))
    second = rows_of(("a", "t1", 0.3, 0.3, 0.3), ("c", "t1", 0.0, 0.0, 0.0))
    found = paired_differences(first, second)
    assert set(found["cases"]) == {1}
    assert found["difference"].tolist() == pytest.approx([0.2] * len(found))
    with pytest.raises(ValueError, match="No case has a Dice score for the same subset"):
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
    assert average_calibration_error(reliability_counts(probabilities, truth, brain)[0]) < 0.01
    overconfident = (probabilities > 0.5).astype(float)
    error = average_calibration_error(reliability_counts(overconfident, truth, brain)[0])
    assert error == pytest.approx(0.25, abs=0.01)
    assert reliability_counts(probabilities, truth, ~brain).sum() == 0


def test_the_calibration_error_in_the_table_is_the_mean_distance_of_the_plotted_points_from_the_diagonal() -> None:
    rng = np.random.default_rng(7)
    rows = rows_of(*((case, subset, 0.5, 0.5, 0.5) for case in "ab" for subset in ("t1", "t1+t2"))).assign(
        expected_dice=0.5
    )
    brain = np.ones((20, 24, 28), dtype=bool)
    reliability = {}
    for case, subset in rows[["case_id", "subset"]].drop_duplicates().itertuples(index=False):
        # Most voxels are background with a probability near 0, as in a brain.
        probabilities = rng.random((3, *brain.shape)) ** 20
        truth = rng.random(probabilities.shape) < probabilities / 2
        reliability[case, subset] = reliability_counts(probabilities, truth, brain)
    table = trust(rows, reliability).set_index("sequences")
    panels = plot_reliability(pooled_reliability(rows, reliability)).axes
    for region, panel in zip(("wt", "tc", "et"), panels, strict=True):
        for count, line in zip((1, 2), panel.lines[1:], strict=True):
            probability, share = line.get_data()
            assert table.loc[count, f"ace_{region}"] == pytest.approx(np.abs(probability - share).mean())
            assert table.loc[count, f"ace_{region}"] > 0.2, "The probabilities are twice as high as the shares."


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


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_scores_are_those_of_segmenting_each_subset_by_itself(
    dummy_root: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    network, processor = load_checkpoint("tiny")
    case = find_case(dummy_root / "case_001")
    subsets = [(True, True, True, True), (False, True, False, True)]
    scores = evaluate(network, processor, [case], out=tmp_path, subsets=subsets, rules=Rules(**options))
    images = {name: read_image(path).image for name, path in case.images.items() if name in ("t1c", "flair")}
    inputs = processor(images)
    regions, probabilities = find_regions(network, processor, inputs, **options)
    (row,) = (row for row in scores.scores["case_001"].rows if row["subset"] == "t1c+flair" and row["region"] == "wt")
    volume = row["true_volume_ml"] + row["volume_error_ml"]
    assert regions[0].sum() * inputs["geometry"][0].voxel_ml == pytest.approx(volume)
    confidence = processor.confidence(
        probabilities, regions, voxel_ml=inputs["geometry"][0].voxel_ml, present=subsets[1]
    )
    assert row["expected_dice"] == confidence["wt"]


def test_evaluating_writes_tables_and_pictures(dummy_root: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(dummy_root), "--out", str(tmp_path / "scores"), "--cases", "case_000,case_002"]
    run("evaluate", [*arguments, "--subsets", "all,t1c+flair", "--format", "latex"])
    assert {path.name for path in (tmp_path / "scores").iterdir()} == FILES | {"subset_table.tex"}
    rows = pd.read_csv(tmp_path / "scores/scores.csv")
    assert len(rows) == 2 * 2 * 3
    assert rows["subset"].unique().tolist() == ["t1c+flair", "t1+t1c+t2+flair"]
    summary = pd.DataFrame(json.loads((tmp_path / "scores/table.json").read_text())["summary"])
    assert set(summary["subset"]) == {"t1c+flair", "t1+t1c+t2+flair", "mean"}
    assert (tmp_path / "scores/table.md").read_text().strip() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("evaluate", [*arguments[:-1], "case_9"])
    assert f"--cases names cases that {dummy_root} does not contain: case_9." in capsys.readouterr().err


def test_all_is_said_to_be_one_subset(dummy_root: Path, tmp_path: Path, capsys) -> None:
    words = ["--data", str(dummy_root), "--out", str(tmp_path / "scores"), "--cases", "case_000", "--subsets"]
    note = (
        "note: --subsets all means the one subset of all sequences (t1+t1c+t2+flair). Without --subsets, all 15 "
        "subsets are scored.\n"
    )
    run("evaluate", [*words, "all"])
    assert note in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "scores/scores.csv")["subset"].unique().tolist() == ["t1+t1c+t2+flair"]
    run("evaluate", [*words, "all,t1c"])
    run("evaluate", [*words, "all", "--quiet"])
    assert note not in capsys.readouterr().err


FLAIR, T1 = (False, False, False, True), (True, False, False, False)


class Scorer:
    """Stands in for `score_case`: records what it is asked for, and gives scores that differ from call to call."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.errors: dict[str, Exception] = {}

    def __call__(self, network, processor, case: CaseFiles, subsets, rules: Rules) -> CaseScores:
        if case.case_id in self.errors:
            raise self.errors[case.case_id]
        scores = CaseScores()
        for subset in subsets:
            name = subset_name(subset)
            self.asked.append((case.case_id, name))
            value = 1 / len(self.asked)
            scores.rows += [
                {"case_id": case.case_id, "subset": name, "sequences": sum(subset), "region": region, "dice": value}
                | {"expected_dice": value, "volume_error_ml": value, "true_volume_ml": 1.0}
                for region in ("wt", "tc", "et")
            ]
            scores.reliability[name] = np.ones((3, 3, 10)).tolist()
        return scores

    def news(self) -> list[tuple[str, str]]:
        """What was asked for since the last call."""
        asked, self.asked = self.asked[:], []
        return asked


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Scorer:
    stand_in = Scorer()
    monkeypatch.setattr(scoring, "score_case", stand_in)
    return stand_in


@pytest.fixture
def own_cases(dummy_root: Path, tmp_path: Path) -> Path:
    """Copies of two cases."""
    for name in ("case_000", "case_001"):
        shutil.copytree(dummy_root / name, tmp_path / "cases" / name)
    return tmp_path / "cases"


def test_scores_are_not_computed_again_and_further_subsets_alone_are(
    own_cases: Path, tmp_path: Path, scorer: Scorer
) -> None:
    network, processor = load_checkpoint("tiny")
    cases, out = find_cases(own_cases), tmp_path / "out"
    first = evaluate(network, processor, cases, out=out, subsets=[FLAIR])
    assert scorer.news() == [("case_000", "flair"), ("case_001", "flair")]
    assert evaluate(network, processor, cases, out=out, subsets=[FLAIR]) == first
    assert scorer.news() == []
    both = evaluate(network, processor, cases[:1], out=out, subsets=[FLAIR, T1, T1])
    assert scorer.news() == [("case_000", "t1")]
    assert len(both.scores["case_000"].rows) == 6
    assert both.scores["case_000"].rows[:3] == first.scores["case_000"].rows
    (own_cases / "case_001/T2.nii.gz").unlink()
    changed = find_cases(own_cases)[1:]
    for _ in range(2):
        evaluate(network, processor, changed, out=out, subsets=[FLAIR, (False, False, True, True)])
    assert scorer.news() == [("case_001", "flair")]
    assert evaluate(network, processor, changed, out=out, subsets=[(False, False, True, True)]).scores["case_001"] == (
        CaseScores()
    )


def test_scores_made_from_anything_else_are_computed_again(
    own_cases: Path, tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, processor = load_checkpoint("tiny")
    shown = [("case_000", "flair")]

    def again(rules: Rules | None = None, **change) -> list[tuple[str, str]]:
        case = dataclasses.replace(find_case(own_cases / "case_000"), **change)
        evaluate(network, processor, [case], out=tmp_path / "out", subsets=[FLAIR], rules=rules)
        return scorer.news()

    assert (again(), again()) == (shown, [])
    assert again(Rules(mirror=True)) == again(Rules(bf16=True)) == shown
    assert again(Rules(convention="nan")) == again(Rules(lesions="met2023")) == shown
    assert again(label_schemes=("brats2018",)) == shown
    assert again(channels={"t1": 0, "flair": 1}) == again(channels={"t1": 1, "flair": 0}) == shown
    again()
    path = own_cases / "case_000/seg.nii.gz"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (again(), again()) == (shown, [])
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    assert (again(), again()) == (shown, [])
    # The second time the values are the same, and the arithmetic is not.
    for precision in (torch.bfloat16, torch.float32):
        network.to(precision)
        assert (again(), again()) == (shown, [])
    # In no weight.
    network.config.num_experts_per_tok = 1
    assert (again(), again()) == (shown, [])
    processor.least_part = 0.3
    assert (again(), again()) == (shown, [])
    monkeypatch.setattr(fingerprints, "version", lambda name: "99")
    assert (again(), again()) == (shown, [])
    (tmp_path / "out/cases/case_000.json").write_text('{"rows": []}')
    assert (again(), again()) == (shown, [])


def test_scores_of_other_code_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, processor = load_checkpoint("tiny")
    before = scoring.scorer_fingerprint(network, processor, Rules())
    monkeypatch.setattr(scoring, "code_fingerprint", lambda *modules: "of other code")
    assert scoring.scorer_fingerprint(network, processor, Rules()) != before


@pytest.mark.parametrize("error", [TypeError("not ours"), MemoryError(), BadInputError("T2.nii.gz", "It is cut off.")])
def test_whatever_a_case_raises_the_others_are_scored(
    dummy_root: Path, tmp_path: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    scorer.errors["case_001"] = error
    words = ["--data", str(dummy_root), "--out", str(tmp_path / "out"), "--subsets", "flair"]
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", words)
    assert stopped.value.code == 1
    said = capsys.readouterr()
    reason = str(error) if isinstance(error, ValueError) else type(error).__name__
    assert f"failed: case_001: {reason}" in said.err
    assert "2 of 3 cases could be scored. These cases failed:\n  case_001: " in said.err
    note = "Not scored: 1 of 3 cases. findings.csv says why."
    assert note in said.out
    assert note in (tmp_path / "out/table.md").read_text()
    assert json.loads((tmp_path / "out/table.json").read_text())["about"]["failed"] == 1
    assert set(pd.read_csv(tmp_path / "out/scores.csv")["case_id"]) == {"case_000", "case_002"}
    (row,) = pd.read_csv(tmp_path / "out/findings.csv").to_dict("records")
    assert (row["case_id"], row["level"]) == ("case_001", "error")
    assert reason in row["message"]
    # Nothing of the others is lost, and once the case is mended it alone is scored.
    scorer.errors.clear()
    scorer.news()
    run("evaluate", words)
    assert scorer.news() == [("case_001", "flair")]
    assert "Not scored" not in (tmp_path / "out/table.md").read_text()
    assert len(pd.read_csv(tmp_path / "out/findings.csv")) == 0


def test_no_table_is_made_where_no_case_can_be_scored(dummy_root, tmp_path, scorer, capsys) -> None:
    scorer.errors = {f"case_{number:03d}": ValueError("bad") for number in range(3)}
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", ["--data", str(dummy_root), "--out", str(tmp_path / "out"), "--subsets", "flair"])
    assert stopped.value.code == 1
    assert "0 of 3 cases could be scored." in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.*"))


def test_what_is_odd_about_a_case_is_printed_and_recorded_also_when_its_scores_are_known(
    own_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_cases / "case_001/seg.nii.gz"
    seg = nib.load(path)
    moved = seg.affine.copy()
    moved[:3, 3] += 7
    nib.save(nib.Nifti1Image(np.asarray(seg.dataobj), moved), path)
    out = tmp_path / "out"
    for _ in range(2):
        run("evaluate", ["--data", str(own_cases), "--out", str(out), "--subsets", "flair"])
        said = capsys.readouterr()
        assert f"warning: case_001: {path}: " in said.err
        assert "With warnings: 1 of 2 cases. findings.csv lists the warnings." in said.out
    findings = pd.read_csv(out / "findings.csv")
    assert set(zip(findings["case_id"], findings["level"], findings["where"], strict=True)) == {
        ("case_001", "warning", str(path))
    }
    assert json.loads((out / "cases/case_001.json").read_text())["findings"][0]["where"] == str(path)
    # They are published with a checkpoint.
    for name in ("table.md", "table.json"):
        assert "case_001" not in (out / name).read_text()


def test_a_case_is_refused_for_what_check_calls_an_error(own_cases: Path, tmp_path: Path, capsys) -> None:
    path = own_cases / "case_001/T2.nii.gz"
    image = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[3, 4, 5] = math.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)
    with pytest.raises(SystemExit):
        run("check", [str(own_cases)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("error"))
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", ["--data", str(own_cases), "--out", str(tmp_path / "out"), "--subsets", "flair"])
    assert stopped.value.code == 1
    assert f"failed: case_001: {own_cases}/{line.removeprefix('error').strip()}" in capsys.readouterr().err


def test_a_case_whose_name_is_not_unicode_is_scored_like_any_other(
    dummy_root: Path, tmp_path: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [os.fsdecode(name.encode("latin-1")) for name in ("Müller", "Möller")]
    try:
        for name in names:
            shutil.copytree(dummy_root / "case_000", tmp_path / "cases" / name)
    except OSError:
        pytest.skip("This file system takes Unicode names only.")
    scorer.errors["Müller"] = ValueError(names[0])
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "out"), "--subsets", "flair"])
    assert stopped.value.code == 1
    assert r"failed: Müller: M\udcfcller" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "out/scores.csv")["case_id"]) == {"Möller"}
    (finding,) = pd.read_csv(tmp_path / "out/findings.csv").to_dict("records")
    assert (finding["case_id"], finding["message"]) == ("Müller", r"M\udcfcller")


@pytest.mark.slow
def test_two_processes_share_the_cases_and_give_the_tables_of_one(
    dummy_root: Path, small_weights: Path, tmp_path: Path
) -> None:
    # The names of what is shipped mean something else in the other processes.
    words = ["--checkpoint", str(small_weights / "tiny"), "--data", str(dummy_root), "--subsets", "flair", "--out"]
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
    assert "nothing contains no scores.csv" in capsys.readouterr().err


def test_checkpoints_are_compared_on_the_cases_that_could_be_scored(dummy_root, tmp_path, scorer, capsys) -> None:
    scorer.errors["case_001"] = ValueError("bad")
    words = ["compare", "tiny", "tiny", "--data", str(dummy_root), "--out", str(tmp_path), "--subsets", "flair"]
    with pytest.raises(SystemExit) as stopped:
        run("adapters", words)
    assert stopped.value.code == 1
    assert "| flair | mean | 2 |" in capsys.readouterr().out
    assert (tmp_path / "comparison.md").is_file()


def test_a_case_without_ground_truth_is_told_before_any_is_scored(dummy_root, tmp_path, capsys, scorer) -> None:
    shutil.copytree(dummy_root, tmp_path / "cases")
    (tmp_path / "cases/case_002/seg.nii.gz").unlink()
    scorer.errors["case_000"] = ValueError("bad")
    words = ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "scores"), "--subsets", "flair"]
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", words)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.index("failed: ") == said.index(f"failed: {tmp_path / 'cases/case_002'}: ")
    assert said.index("case_002: This case has no ground truth.") < said.index("failed: case_000: bad")
    assert scorer.news() == [("case_001", "flair")]
    # Others are none of what was asked for.
    run("evaluate", [*words, "--cases", "case_001"])


def test_a_folder_without_a_labelled_case_is_refused(dummy_root, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "cases/case_000")
    (tmp_path / "cases/case_000/seg.nii.gz").unlink()
    monkeypatch.delattr("lora_moe_hgd.evaluation.command.load_checkpoint")
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "scores")])
    assert stopped.value.code == 2
    assert f"No case in {tmp_path / 'cases'} can be scored. Problems:" in capsys.readouterr().err


def test_subsets_that_no_case_has_are_named(dummy_root, tmp_path, capsys) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "cases/case_000")
    (tmp_path / "cases/case_000/T2.nii.gz").unlink()
    with pytest.raises(SystemExit):
        run("evaluate", ["--data", str(tmp_path / "cases"), "--out", str(tmp_path / "scores"), "--subsets", "t1+t2"])
    assert "each case lacks a sequence of each of these subsets" in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Folder of a run that trained on `case_000`, was validated on `case_001`, and left `best` behind."""
    shutil.copytree(pretrained_path("tiny"), tmp_path / "run/best")
    (tmp_path / "run/run.json").write_text(json.dumps({"config": {"base": "tiny"}, "finished": True}))
    write_run_split(tmp_path / "run", Split(train=["case_000"], validation=["case_001"]), fold=None)
    return tmp_path / "run"


def words_of(trained: Path, data: Path, *options: str) -> list[str]:
    places = ["--checkpoint", str(trained / "best"), "--data", str(data), "--out", str(trained.parent / "out")]
    return [*places, "--subsets", "flair", *options]


@pytest.mark.parametrize(
    ("options", "case"),
    [((), "case_001"), (("--part", "validation"), "case_001"), (("--part", "train"), "case_000")],
)
def test_the_cases_of_a_run_are_scored(
    trained: Path, dummy_root: Path, scorer: Scorer, options: tuple[str, ...], case: str
) -> None:
    run("evaluate", words_of(trained, dummy_root, "--cases-of", str(trained), *options))
    assert scorer.news() == [(case, "flair")]


def test_cases_of_a_run_that_are_not_below_the_data_are_named(trained, dummy_root, tmp_path, capsys, scorer) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "cases/case_000")
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", words_of(trained, tmp_path / "cases", "--cases-of", str(trained)))
    assert stopped.value.code == 2
    said = f"{trained}/split.csv (validation) names cases that {tmp_path / 'cases'} does not contain: case_001."
    assert said in capsys.readouterr().err
    assert scorer.news() == []


def test_a_run_without_cases_of_its_own_is_refused(trained, dummy_root, capsys) -> None:
    write_run_split(trained, Split([], []), fold=None)
    with pytest.raises(SystemExit):
        run("evaluate", words_of(trained, dummy_root, "--cases-of", str(trained)))
    assert "split.csv (validation) lists no case." in capsys.readouterr().err


@pytest.mark.parametrize("place", ["best", "best/adapter", "next/best", "elsewhere"])
def test_cases_that_trained_a_checkpoint_or_its_base_are_told(
    trained: Path, dummy_root: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    checkpoint = trained / place
    if place == "next/best":
        # A later run over the first one's checkpoint.
        checkpoint = trained.parent / place
        shutil.copytree(trained / "best", checkpoint)
        (checkpoint.parent / "run.json").write_text(json.dumps({"config": {"base": str(trained / "best")}}))
        write_run_split(checkpoint.parent, Split(["case_002"], []), fold=None)
    elif place != "best":
        checkpoint = trained / place if "adapter" in place else trained.parent / place
        network, _ = load_checkpoint("tiny")
        base = trained / "best" if place == "elsewhere" else pretrained_path("tiny")
        add_adapter(network, "lora", base=str(base), options={"r": 1}).save_pretrained(checkpoint)
    run("evaluate", [*words_of(trained, dummy_root), "--checkpoint", str(checkpoint)])
    known = ["case_000", "case_002"] if place == "next/best" else ["case_000"]
    said = f"warning: This checkpoint was trained on {len(known)} of 3 cases to score: {', '.join(known)}."
    captured = capsys.readouterr()
    assert said in captured.err
    assert f"Used to train the checkpoint: {len(known)} of 3 cases. Scores on training cases" in captured.out
    about = json.loads((trained.parent / "out/table.json").read_text())["about"]
    assert about["trained_on"] == len(known)


def test_a_case_that_trained_a_checkpoint_is_recognised_under_another_name(
    trained: Path, dummy_root: Path, tmp_path: Path
) -> None:
    known = {case.case_id: images_fingerprint(case) for case in find_cases(dummy_root)}
    write_run_split(trained, Split(["case_000"], ["case_001"], known), fold=None)
    for name in ("case_000", "case_001"):
        renamed = tmp_path / "cases" / f"patient_{name[-1]}"
        renamed.mkdir(parents=True)
        for file, word in (("T1", "t1"), ("T1c", "t1ce"), ("T2", "t2"), ("FLAIR", "flair"), ("seg", "seg")):
            shutil.copy(dummy_root / name / f"{file}.nii.gz", renamed / f"x_{word}.nii.gz")
    assert trained_among(find_cases(tmp_path / "cases"), trained / "best") == ["patient_0"]


def test_cases_that_did_not_train_a_checkpoint_are_scored_without_a_warning(
    trained: Path, dummy_root: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    run("evaluate", words_of(trained, dummy_root, "--cases", "case_001,case_002"))
    assert "trained on" not in capsys.readouterr().err
    run("evaluate", [*words_of(trained, dummy_root), "--checkpoint", "tiny"])
    assert "trained on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--data", "d", "--part", "train"],
            "--part chooses training or validation cases of a run. Name the run with --cases-of",
        ),
        (["--compare", "a", "b", "--subsets", "all", "--mirror"], "Leave out --mirror, --subsets, which"),
        (["--compare", "a", "b", "--cases-of", "r"], "Leave out --cases-of, which"),
        (["--compare", "a"], "--compare needs at least two folders of evaluations, but got only a."),
    ],
)
def test_options_without_effect_are_refused(words: list[str], said: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("evaluate", [*words, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err

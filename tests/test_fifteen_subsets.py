"""The benchmark of 15 subsets: rows say what `evaluate` says, tasks are the subsets, and wrong data are refused."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, parse_eval_result_entries
from scipy import ndimage

from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.splits import Split, write_run_split
from lora_moe_hgd.subsets import EVERY_SUBSET, subset_name

FOLDER = Path(__file__).parents[1] / "benchmarks/fifteen_subsets"
NAMES = ["case_000", "case_001"]
SUBSETS = [subset_name(subset) for subset in EVERY_SUBSET]


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The scripts of the benchmark by name. Their folder is on the path while the tests of this file run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield lambda name: importlib.import_module(name)


@pytest.fixture(scope="module")
def cohort(dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms."""
    folder = tmp_path_factory.mktemp("cohort")
    for name in NAMES:
        (folder / name).symlink_to(dummy_root / name)
    return folder


@pytest.fixture(scope="module")
def predictions(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps from all 15 subsets: the truth moved by one voxel for each absent sequence."""
    folder = tmp_path_factory.mktemp("predictions")
    for case in find_cases(cohort):
        truth = read_image(case.labelled()).image
        labels = np.asarray(truth.dataobj).astype(np.uint8)
        for subset in EVERY_SUBSET:
            place = folder / subset_name(subset)
            place.mkdir(exist_ok=True)
            moved = ndimage.shift(labels, (4 - sum(subset), 0, 0), order=0)
            nib.save(nib.Nifti1Image(moved, truth.affine), place / f"{case.case_id}.nii.gz")
    return folder


def make_row(scripts: Any, cohort: Path, predictions: Path, out: Path, **options: Any) -> dict[str, Any]:
    facts = {"track": "africa-3", "names": NAMES, "trained_on": "nothing"}
    what = options.pop("what", {"predictions": str(predictions), "prediction-scheme": "msd"})
    return scripts("row").make_row("made up", what, data=cohort, scores=out, **{**facts, **options})


@pytest.fixture(scope="module")
def scored(
    scripts: Any, cohort: Path, predictions: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A row of the two phantoms, and the output of its evaluation."""
    out = tmp_path_factory.mktemp("scores")
    return make_row(scripts, cohort, predictions, out), out


def test_a_row_has_the_means_of_the_evaluation(scored: tuple[dict[str, Any], Path]) -> None:
    row, out = scored
    scores = pd.read_csv(out / "scores.csv")
    for metric, found in row["scores"].items():
        assert list(found) == [*SUBSETS, "mean"]
        for subset in SUBSETS:
            own = scores[scores["subset"] == subset].groupby("region")[metric].mean()
            # Rows have six decimals.
            assert {name: found[subset][name] for name in own.index} == pytest.approx(own.to_dict(), abs=1e-6)
        overall = scores.groupby("region")[metric].mean()
        assert {name: found["mean"][name] for name in overall.index} == pytest.approx(overall.to_dict(), abs=1e-6)
    assert row["cases"] == 2
    assert 0.2 < row["scores"]["dice"]["t1"]["wt"] < row["scores"]["dice"]["t1+t1c+t2+flair"]["wt"] == 1


def test_the_means_of_a_row_are_those_of_its_cases(scored: tuple[dict[str, Any], Path]) -> None:
    row, _ = scored
    assert list(row["dice_by_case"]) == NAMES
    for subset in SUBSETS:
        means = np.mean([row["dice_by_case"][name][subset] for name in NAMES], axis=0)
        expected = [row["scores"]["dice"][subset][name] for name in ("wt", "tc", "et")]
        assert list(means) == pytest.approx(expected, abs=1e-6)


def test_a_subset_without_predictions_has_no_score_and_no_mean(
    scripts: Any, cohort: Path, predictions: Path, tmp_path: Path
) -> None:
    (tmp_path / "maps").mkdir()
    for name in ("t1", "t1+t1c+t2+flair"):
        (tmp_path / "maps" / name).symlink_to(predictions / name)
    dice = make_row(scripts, cohort, tmp_path / "maps", tmp_path / "out")["scores"]["dice"]
    assert [name for name, values in dice.items() if values] == ["t1", "t1+t1c+t2+flair"]


def test_a_subset_with_predictions_of_some_cases_is_refused(
    scripts: Any, cohort: Path, predictions: Path, tmp_path: Path
) -> None:
    for name, cases in (("t1", NAMES[:1]), ("t1c", NAMES)):
        (tmp_path / "maps" / name).mkdir(parents=True)
        for case in cases:
            (tmp_path / "maps" / name / f"{case}.nii.gz").symlink_to(predictions / name / f"{case}.nii.gz")
    with pytest.raises(ValueError, match="Predictions of some of the 2 cases are missing from t1"):
        make_row(scripts, cohort, tmp_path / "maps", tmp_path / "out")


def test_a_checkpoint_that_saw_a_case_gets_no_row(
    scripts: Any, cohort: Path, predictions: Path, small_weights: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_weights / "tiny", tmp_path / "checkpoint")
    write_run_split(tmp_path / "checkpoint", Split(train=NAMES[:1], validation=NAMES[1:]), fold=None)
    with pytest.raises(ValueError, match="was trained on case_000"):
        make_row(scripts, cohort, predictions, tmp_path, what={"checkpoint": str(tmp_path / "checkpoint")})
    assert not (tmp_path / "cases").exists()


def test_a_case_that_is_not_there_is_named(scripts: Any, cohort: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks 1 of 2 cases: BraTS-SSA-00041-000"):
        make_row(scripts, cohort, predictions, tmp_path, names=["case_000", "BraTS-SSA-00041-000"])


def test_compression_and_data_type_do_not_change_the_digest(scripts: Any, cohort: Path, tmp_path: Path) -> None:
    path = next(iter(find_cases(cohort))).labelled()
    image = nib.load(path)
    again = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float64), image.affine)
    nib.save(again, tmp_path / "again.nii")
    digest = scripts("definition").voxels_digest
    assert digest(tmp_path / "again.nii") == digest(path)


def test_the_hub_has_one_task_for_each_subset(scripts: Any, tmp_path: Path) -> None:
    path = FOLDER / "hub/eval.yaml"
    scripts("build_dataset").check_tasks(path)
    content = yaml.safe_load(path.read_text())
    assert len({task["id"] for task in content["tasks"]}) == len(content["tasks"]) == 15
    content["tasks"].pop()
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="one task for each of the 15 subsets"):
        scripts("build_dataset").check_tasks(tmp_path / "eval.yaml")


def test_entries_for_the_hub_are_read_by_its_client(scripts: Any, scored: tuple[dict[str, Any], Path]) -> None:
    results = scripts("eval_results")
    data = results.eval_result_entries_to_yaml(results.entries(scored[0], "me/cases"))
    again = parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(data)))
    tasks = [task["id"] for task in yaml.safe_load((FOLDER / "hub/eval.yaml").read_text())["tasks"]]
    assert [entry.task_id for entry in again] == tasks
    assert again[-1].value == 1


@pytest.fixture
def listed(scripts: Any, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], dict[str, str]]:
    """The phantoms are the data of the benchmark: `digests.csv` lists them, without the digest of one file."""
    definition: ModuleType = scripts("definition")
    known = {}
    for name, case in definition.find(cohort, NAMES).items():
        for role, path in definition.files_of(case).items():
            shape, digest = definition.voxels_digest(path)
            known[name, role] = {"shape": definition.shape_text(shape), "sha256": digest}
    known["case_000", "t1"]["sha256"] = ""
    monkeypatch.setattr(definition, "known_digests", lambda: known)
    return known


SPLITS = {"fit": NAMES[:1], "test": NAMES[1:]}


def test_the_data_set_is_built_from_confirmed_files(scripts: Any, cohort: Path, listed: Any, tmp_path: Path) -> None:
    assert scripts("build_dataset").build(cohort, tmp_path / "built", SPLITS) == (9, 10)
    card = DatasetCard.load(tmp_path / "built/README.md")
    assert (card.data.license, card.data.configs[0]["config_name"]) == ("cc-by-4.0", "default")
    for split, names in SPLITS.items():
        cases = load_dataset(str(tmp_path / "built"), split=split, cache_dir=str(tmp_path / "cache"))
        assert cases["case_id"] == names
        assert {"t1", "t1c", "t2", "flair", "seg"} < set(cases.column_names)
        assert cases[0]["flair"].shape == cases[0]["seg"].shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "has other voxels than the file of this benchmark"),
        ({"shape": "1x2x3"}, "not 1x2x3"),
    ],
)
def test_a_wrong_file_stops_the_build_and_nothing_is_written(
    scripts: Any, cohort: Path, listed: Any, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    listed["case_001", "seg"].update(change)
    with pytest.raises(ValueError, match=message):
        scripts("build_dataset").build(cohort, tmp_path / "built", SPLITS)
    assert not list(tmp_path.iterdir())


def test_the_lists_agree(scripts: Any) -> None:
    definition = scripts("definition")
    counts = {name: len(definition.cases_of(*track)) for name, track in definition.TRACKS.items()}
    assert counts == {"africa-3": 3, "africa": 75, "brats2021": 125}
    every = definition.cases_of("brats-africa", ("fit", "test", "test3"))
    assert len(set(every)) == 95
    checked = {case for case, _ in definition.known_digests()}
    assert checked == set(definition.cases_of("brats-africa", ("fit", "test3")))
    # Every file of the three test cases has a digest.
    three = definition.cases_of(*definition.TRACKS["africa-3"])
    assert all(row["sha256"] for (case, _), row in definition.known_digests().items() if case in three)


def test_the_page_shows_the_rows_and_what_is_missing(scripts: Any, scored: tuple[dict[str, Any], Path]) -> None:
    text = scripts("table").page([scored[0]])
    assert "| t1+t1c+t2+flair | 1.000 / 1.000 / 1.000 | 0.916 / 0.629 / 0.710 | 0.914 / 0.615 / 0.813 |" in text
    (line,) = [line for line in text.split("## Track africa\n")[0].splitlines() if line.startswith("| t1c+flair |")]
    assert line.endswith("| - | - | - |")


def test_rows_of_other_data_are_refused(scripts: Any, scored: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    for name, change in (("a", {}), ("b", {"name": "other", "data_sha256": "0"})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**scored[0], **change}))
    with pytest.raises(ValueError, match="was made with other data than made up"):
        scripts("table").read_rows(tmp_path.glob("*.json"))


def test_the_shipped_page_is_that_of_the_shipped_rows(scripts: Any) -> None:
    table = scripts("table")
    rows = table.read_rows((FOLDER / "rows").glob("*.json"))
    assert (FOLDER / "RESULTS.md").read_text() == table.page(rows)

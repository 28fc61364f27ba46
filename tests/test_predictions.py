"""Label maps of any tool are scored as a network's own segmentations are."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.label_schemes import label_scheme
from lora_moe_hgd_cli import run

SUBSETS = ["t1c+flair", "t1"]
BRATS = ["--prediction-scheme", "brats2023"]
# What the phantoms are labelled in.
OWN = "msd"


@pytest.fixture(scope="module")
def cohort(dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the phantoms."""
    folder = tmp_path_factory.mktemp("cohort")
    for case in ("case_000", "case_001"):
        (folder / case).symlink_to(dummy_root / case)
    return folder


@pytest.fixture(scope="module")
def segmented(cohort: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segmentations of each case from two subsets, in the folders of `segment`, and `scores`: those of `evaluate`."""
    folder = tmp_path_factory.mktemp("predictions")
    checkpoint = ["--checkpoint", str(small_weights / "tiny")]
    for subset in SUBSETS:
        words = ["--in-path", str(cohort), "--out-path", str(folder / "maps" / subset), "--quiet", *checkpoint]
        run("segment", [*words, "--sequences", subset.replace("+", ",")])
    evaluated(cohort, folder / "scores", *checkpoint, "--subsets", ",".join(SUBSETS))
    return folder


def evaluated(data: Path, out: Path, *options: str) -> pd.DataFrame:
    run("evaluate", ["--in-path", str(data), "--out-path", str(out), "--quiet", *options])
    return pd.read_csv(out / "scores.csv")


def test_predictions_have_the_scores_of_the_network_that_made_them(
    cohort: Path, segmented: Path, tmp_path: Path
) -> None:
    found = evaluated(cohort, tmp_path, "--predictions", str(segmented / "maps"), *BRATS)
    expected = pd.read_csv(segmented / "scores/scores.csv")
    keys = ["case_id", "subset", "region"]
    columns = [name for name in expected.columns if name != "expected_dice"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys)[columns].reset_index(drop=True),
        expected.sort_values(keys)[columns].reset_index(drop=True),
    )
    # A label map has no probabilities.
    assert found["expected_dice"].isna().all()
    assert not (tmp_path / "reliability.png").exists()


@pytest.mark.parametrize("name", ["{}.nii.gz", "{}-seg.nii", "{}/seg.nii.gz", "{0}/{0}-seg.nii.gz", "{}_pred.nii.gz"])
def test_the_true_label_maps_are_perfect_under_each_name(cohort: Path, tmp_path: Path, name: str) -> None:
    for case in find_cases(cohort):
        path = tmp_path / "maps" / name.format(case.case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(read_image(case.labelled()).image, path)
    found = evaluated(cohort, tmp_path / "out", "--predictions", str(tmp_path / "maps"), "--prediction-scheme", OWN)
    assert set(found["subset"]) == {"t1+t1c+t2+flair"}
    assert (found["dice"] == 1).all()


def test_it_is_said_which_sequences_predictions_without_folders_count_for(
    cohort: Path, segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = segmented / "maps/t1"
    evaluated(cohort, tmp_path / "flat", "--predictions", str(flat), *BRATS)
    said = f"note: {flat} has no folders named after subsets, such as t1c+flair, so its predictions count as"
    assert f"{said} predictions from all sequences (t1+t1c+t2+flair).\n" in capsys.readouterr().err
    evaluated(cohort, tmp_path / "folders", "--predictions", str(segmented / "maps"), *BRATS)
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("rules", ["gli2026", "met2026"])
def test_the_rules_of_2026_are_scored_and_tabulated(cohort: Path, segmented: Path, tmp_path: Path, rules: str) -> None:
    words = ["--predictions", str(segmented / "maps"), *BRATS, "--lesion-rules", rules]
    found = evaluated(cohort, tmp_path, *words)
    assert {"lesion_dice", "lesion_hd95_mm", "lesion_nsd"} <= set(found.columns)
    assert "| lesion_nsd | " in (tmp_path / "table.md").read_text()


def test_predictions_may_have_another_label_scheme_and_another_orientation(cohort: Path, tmp_path: Path) -> None:
    for case in find_cases(cohort):
        reading = read_case(case, labels=True).checked()
        other = label_scheme("msd").encode(reading.regions)
        image = nib.Nifti1Image(other, reading.images[reading.reference].affine)
        nib.save(image.as_reoriented([[0, -1], [1, 1], [2, -1]]), tmp_path / f"{case.case_id}.nii.gz")
    words = ["--predictions", str(tmp_path), "--prediction-scheme", "msd"]
    assert (evaluated(cohort, tmp_path / "out", *words)["dice"] == 1).all()


def test_a_case_without_prediction_is_told_and_the_others_are_scored(
    dummy_root: Path, segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(segmented / "maps", tmp_path / "maps")
    shutil.rmtree(tmp_path / "maps/t1/case_000")
    with pytest.raises(SystemExit) as stopped:
        evaluated(dummy_root, tmp_path / "out", "--predictions", str(tmp_path / "maps"), *BRATS)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert (
        "only 1 of 2 cases can be scored for the subset t1. The other cases have no prediction from this subset.\n"
        in said
    )
    assert f"case_002: {tmp_path / 'maps'} contains no prediction of this case." in said
    rows = pd.read_csv(tmp_path / "out/scores.csv")
    assert set(zip(rows["case_id"], rows["subset"], strict=True)) == {
        *(("case_000", "t1c+flair"), ("case_001", "t1c+flair"), ("case_001", "t1"))
    }
    # `case_000` has a prediction, but not from T1.
    with pytest.raises(SystemExit):
        evaluated(dummy_root, tmp_path / "t1", "--predictions", str(tmp_path / "maps"), *BRATS, "--subsets", "t1")
    said = capsys.readouterr().err
    assert f"case_000: {tmp_path / 'maps'} contains no prediction of this case for --subsets t1." in said


def test_a_changed_prediction_is_scored_again(cohort: Path, tmp_path: Path) -> None:
    words = ["--predictions", str(tmp_path / "maps"), "--cases", "case_000", "--prediction-scheme", OWN]
    path = tmp_path / "maps/case_000.nii.gz"
    path.parent.mkdir()
    truth = read_image(cohort / "case_000/seg.nii.gz").image
    nib.save(truth, path)
    assert (evaluated(cohort, tmp_path / "out", *words)["dice"] == 1).all()
    nib.save(nib.Nifti1Image(np.zeros(truth.shape, np.uint8), truth.affine), path)
    assert (evaluated(cohort, tmp_path / "out", *words)["dice"] < 1).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "{empty}", *BRATS], "{empty} contains no prediction of case_000"),
        (["--predictions", "{empty}/nowhere", *BRATS], "{empty}/nowhere is not a folder"),
        (["--predictions", "{twice}", *BRATS], "{twice}/case_000-seg.nii.gz are both predictions of case_000"),
        (["--predictions", "{empty}", "--mirror"], "Leave out --mirror, which would have no effect"),
        (["--predictions", "{twice}", "--cases", "case_001", "--prediction-scheme", "mine"], "mine"),
        (["--predictions", "{twice}"], "brats2018 (0 background, 1 core, 2 oedema, 4 enhancing)"),
        (["--prediction-scheme", "msd"], "--prediction-scheme works only with --predictions"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_word(
    cohort: Path, tmp_path: Path, capsys, words: list[str], message: str
) -> None:
    places = {"empty": tmp_path / "empty", "twice": tmp_path / "twice"}
    for place in places.values():
        place.mkdir()
    for name in ("case_000.nii.gz", "case_000-seg.nii.gz", "case_001.nii.gz"):
        shutil.copy(cohort / "case_000/seg.nii.gz", tmp_path / "twice" / name)
    with pytest.raises(SystemExit) as stopped:
        evaluated(cohort, tmp_path / "out", *(word.format(**places) for word in words))
    assert stopped.value.code == 2
    assert message.format(**places) in capsys.readouterr().err


def test_a_prediction_with_an_unknown_label_is_refused_by_its_name(cohort: Path, tmp_path: Path, capsys) -> None:
    truth = read_image(cohort / "case_000/seg.nii.gz").image
    nib.save(nib.Nifti1Image(np.full(truth.shape, 4, np.uint8), truth.affine), tmp_path / "case_000.nii.gz")
    with pytest.raises(SystemExit):
        evaluated(cohort, tmp_path / "out", "--predictions", str(tmp_path), "--cases", "case_000", *BRATS)
    said = capsys.readouterr().err
    assert f"{tmp_path}/case_000.nii.gz: " in said
    assert "`--prediction-scheme`" in said
    assert "--label-scheme" not in said

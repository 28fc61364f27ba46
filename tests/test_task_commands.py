"""The commands take the task from the checkpoint: its sequences are options, its regions are in every report."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from peft import PeftModel
from small import small_network
from small_runs import ROOT
from test_task_cases import TEXT, make_case

import lora_moe_hgd as lmh
from lora_moe_hgd.hub.card import make_card
from lora_moe_hgd.inference.command import build_parser
from lora_moe_hgd.inference.uncertainty import voxel_entropy
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline
from lora_moe_hgd.model.task import BRAIN_TUMOUR, RESERVED, make_task
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import build_network
from lora_moe_hgd_cli import run

TASK = make_task(yaml.safe_load(TEXT), where="test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    small_network(modalities=TASK.modalities, regions=TASK.regions).save_pretrained(folder)
    LoraMoeHgdImageProcessor(task=TASK.to_dict(), target_spacing_mm=(5.0, 5.0, 5.0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    make_case(root / "p1", {"t2f": 0, "dwi": 1, "t1c": 2})
    make_case(root / "p2", {"flair": 3})
    return root


def test_sequences_are_options_and_regions_in_the_report(
    checkpoint: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--out-path", str(tmp_path / "out")]
    written = ["--html", "--uncertainty", "--probabilities"]
    run("segment", [*words, *written, "--dwi", str(cohort / "p1/p1_dwi.nii.gz")])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/report.json").read_text())
    labels = np.asarray(nib.load(tmp_path / "out/seg.nii.gz").dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert list(report["volumes_ml"]) == list(report["confidence"]) == ["old", "new"]
    assert report["infarct_found"] == bool(labels.any())
    assert (report["sequences_used"], report["sequences_not_used"]) == (["dwi"], ["flair"])
    assert report["label_scheme"] == {"name": "stroke", "old": 1, "new": 2}
    assert report["not_written"] == []
    assert "old" in printed or "No infarct was found." in printed
    assert "stroke (0 background, 1 old, 2 new, 9 no infarct)" in printed
    assert nib.load(tmp_path / "out/probabilities.nii.gz").shape == (*labels.shape, 2)
    assert "not used</th><td>flair" in (tmp_path / "out/report.html").read_text()
    with pytest.raises(SystemExit):
        run("segment", [*words, "--t1c", "x.nii.gz"])
    with pytest.raises(SystemExit):
        run("segment", [*words, "--in-path", str(cohort), "--sequences", "t1c"])
    assert "Unknown sequence t1c. The names are flair, dwi." in capsys.readouterr().err


def test_all_roads_segment_alike(checkpoint: Path, cohort: Path, tmp_path: Path) -> None:
    run("segment", ["--checkpoint", str(checkpoint), "--in-path", str(cohort), "--out-path", str(tmp_path), "--html"])
    summary = pd.read_csv(tmp_path / "summary.csv")
    numbers = ["old_ml", "new_ml", "old_confidence", "new_confidence"]
    assert list(summary.columns) == ["case", "status", "sequences", *numbers, "warnings", "message"]
    assert list(summary["sequences"]) == ["flair+dwi", "flair"]
    assert "New infarcts show on DWI alone." in summary["warnings"][1]
    assert "old_ml" not in (tmp_path / "index.html").read_text()
    expected = np.asarray(nib.load(tmp_path / "p1/seg.nii.gz").dataobj)
    found = lmh.segment(cohort / "p1", checkpoint)
    np.testing.assert_array_equal(found.label_map.dataobj, expected)
    files = {name: cohort / f"p1/p1_{end}.nii.gz" for name, end in (("flair", "t2f"), ("dwi", "dwi"))}
    np.testing.assert_array_equal(lmh.segment(files, checkpoint).label_map.dataobj, expected)
    network, processor = lmh.load_checkpoint(checkpoint)
    pipeline = BrainTumorSegmentationPipeline(model=network, image_processor=processor, device=-1)
    for case in (cohort / "p1", files):
        result = pipeline(case)
        np.testing.assert_array_equal(result["segmentation"], expected)
    assert list(result["volumes_ml"]) == ["old", "new"]
    with pytest.raises(ValueError, match=r"Unknown sequence t1c\. The names are flair, dwi"):
        lmh.segment(files, checkpoint, sequences=["t1c"])


def test_an_evaluation_has_the_subsets_and_regions_of_the_task(
    checkpoint: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--out-path", str(tmp_path)]
    run("evaluate", [*words, "--in-path", str(cohort)])
    printed = capsys.readouterr()
    assert "| sequences | cases | old | new | mean |" in printed.out
    assert "Contribution of each sequence to the mean Dice with all two sequences (Shapley values)." in printed.out
    assert (
        "warning: only 1 of 2 cases can be scored for the subset flair+dwi. The other cases lack a sequence of"
        in printed.err
    )
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert list(dict.fromkeys(zip(rows["subset"], rows["region"], strict=True))) == [
        (subset, region) for subset in ("flair", "dwi", "flair+dwi") for region in ("old", "new")
    ]
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["about"]["task"]["name"] == "stroke"
    assert {"heat_map.png", "by_count.png", "reliability.png"} <= {path.name for path in tmp_path.iterdir()}
    run("evaluate", ["--compare", str(tmp_path), str(tmp_path), "--out-path", str(tmp_path / "compared")])
    assert "| mean | old |" in capsys.readouterr().out
    card = str(make_card("me/net", license="mit", training_data="Few.", evaluation=tmp_path, task=TASK))
    for words_of_card in (
        "regions old, new of the task `stroke`",
        "Segmentation of stroke",
        "Without dwi: New infarcts",
    ):
        assert words_of_card in card
    assert "tumour" not in card
    assert '{"flair": "flair.nii.gz", "dwi": "dwi.nii.gz"}' in card


def test_lora_is_fitted_over_a_network_of_the_task(checkpoint: Path, cohort: Path) -> None:
    words = ["--config", str(ROOT / "configs/lora_finetune.yaml"), "--data", str(cohort), "--base", str(checkpoint)]
    config = read_config([*words, "--subsets", "[dwi]"])
    network, processor = build_network(config)
    assert isinstance(network, PeftModel)
    assert processor.segmentation_task == TASK
    config.fit_to(processor.segmentation_task)
    with pytest.raises(ValueError, match=r"Unknown sequence.* t1c in 't1c'"):
        read_config([*words, "--subsets", "[t1c]"]).fit_to(TASK)


def test_no_sequence_can_have_the_name_of_another_option() -> None:
    options = (option for action in build_parser()._actions for option in action.option_strings)
    taken = {option.lstrip("-").replace("-", "_") for option in options}
    assert taken - set(BRAIN_TUMOUR.modalities) <= RESERVED | {"h"}


@pytest.mark.parametrize(
    ("regions", "chains"),
    [
        ({"a": [1], "b": [2]}, [[0], [1]]),
        ({"whole": [1, 2, 3], "left": [1], "right": [2]}, [[0, 1], [0, 2]]),
    ],
)
def test_entropy_of_regions_beside_each_other_is_that_of_independent_ones(
    regions: dict[str, list[int]], chains: list[list[int]]
) -> None:
    task = make_task({"name": "x", "target": "y", "sequences": {"flair": None}, "regions": regions}, where="test")
    probabilities = np.array([[0.8], [0.5], [0.1]][: len(regions)])

    def binary(share: float) -> float:
        return -share * np.log2(share) - (1 - share) * np.log2(1 - share)

    if len(regions) == 2:
        expected = binary(0.8) + binary(0.5)
    else:
        expected = binary(0.8) + 0.8 * (binary(0.5 / 0.8) + binary(0.1 / 0.8))
    assert voxel_entropy(probabilities, task)[0] == pytest.approx(expected)
    assert [[*task.around[chain[-1]], chain[-1]] for chain in chains] == chains

"""The reference has every field that the program writes, every option of training and every naming convention."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands import ROOT

from lora_moe_hgd.evaluation.report import FINDING_COLUMNS
from lora_moe_hgd.evaluation.scoring import Rules, score_regions
from lora_moe_hgd.inference import cohort
from lora_moe_hgd.inference.report import make_report
from lora_moe_hgd.model.label_schemes import label_scheme
from lora_moe_hgd.model.task import BRAIN_TUMOUR
from lora_moe_hgd.scans.prepare import ScanOptions, prepare
from lora_moe_hgd.splits import Split, write_run_split
from lora_moe_hgd.training.config import build_parser, read_config
from lora_moe_hgd.training.engine import _made_from
from lora_moe_hgd.training.run_folder import RunFolder

PAGE = (ROOT / "docs/reference/results.md").read_text()


def named(file: str) -> set[str]:
    """Everything that the section of a file puts between backticks."""
    (section,) = re.findall(rf"^## {re.escape(file)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return {*re.findall(r"`([^`]+)`", section)}


def keys_of(content: Any) -> set[str]:
    """The keys of a dictionary and of the dictionaries in it."""
    return {str(key) for key in content} | {
        below for value in content.values() if isinstance(value, dict) for below in keys_of(value)
    }


def test_the_fields_of_a_report_are_explained() -> None:
    report = make_report(
        case_id="a",
        checkpoint="tiny",
        mirror=False,
        bf16=False,
        made_from=None,
        sequences=["t1"],
        files={},
        left_out=[],
        scheme=label_scheme("brats2023"),
        volumes_ml=dict.fromkeys(BRAIN_TUMOUR.regions, 1.0),
        confidence=dict.fromkeys(BRAIN_TUMOUR.regions, None),
        image=nib.Nifti1Image(np.zeros((2, 2, 2), dtype=np.float32), np.eye(4)),
        reference="t1",
        interpolated=[],
        warnings=[],
        seconds=1.0,
    )
    assert keys_of(report) <= named("report.json") | {*BRAIN_TUMOUR.regions}


def test_the_columns_of_a_summary_are_explained(tmp_path: Path) -> None:
    cohort._write_summary([], tmp_path, BRAIN_TUMOUR)
    assert {*(tmp_path / "summary.csv").read_text().strip().split(",")} <= named("summary.csv")


def test_the_fields_of_a_prepared_case_are_explained(dicom: Path, quickened: None, tmp_path: Path) -> None:
    report = prepare(dicom, ScanOptions(), tmp_path, say=lambda line: None).report
    assert "motion" in report["sequences"]["flair"]
    assert keys_of(report) - {"t1c", "flair"} <= named("prepare.json")


@pytest.mark.parametrize("lesions", ["gli2023", "gli2026"])
def test_the_columns_of_scores_are_explained(lesions: str) -> None:
    masks = np.zeros((3, 16, 16, 16), dtype=bool)
    masks[:, 4:10, 4:10, 4:10] = True
    rows = score_regions("a", (True,) * 4, masks, masks, np.eye(4), rules=Rules(lesions=lesions), task=BRAIN_TUMOUR)
    assert {*rows[0], *FINDING_COLUMNS} <= named("scores.csv")


def test_the_fields_of_a_run_are_explained(tmp_path: Path) -> None:
    config = read_config(
        ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(tmp_path), "--tracker", "none"]
    )
    processes: Any = SimpleNamespace(num_processes=1)
    data: Any = SimpleNamespace(content="content")
    run = RunFolder(config)
    run.made_from, run.task = _made_from(config, processes, data, BRAIN_TUMOUR), BRAIN_TUMOUR
    run._write_run(finished=False)
    written = json.loads((tmp_path / "run.json").read_text())
    write_run_split(tmp_path, Split([], []), fold=0)
    columns = {*(tmp_path / "split.csv").read_text().strip().split(",")}
    assert {*written, *written["made_from"], *columns} <= named("run.json")
    # The options have a page of their own.
    assert {*written["config"]} - {"continue_run"} <= {action.dest.split(".")[0] for action in build_parser()._actions}


def test_the_pages_that_are_made_have_every_training_option_and_naming_convention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    pages = import_module("docs_pages")
    training, names = pages.training_page(), pages.file_names_page()
    assert all(line.endswith("|") for line in training.splitlines() if line.startswith("|"))
    for action in build_parser()._actions:
        if "." in action.dest:
            assert f"| `--{action.dest.rpartition('.')[2].replace('_', '-')}` |" in training
    assert "| `--num-workers` | whole number | `2` | Number of processes that load samples. |" in training
    assert (
        "| `brats2018` | BraTS 2017 to 2021 | `*_t1` | `*_t1ce` | `*_t2` | `*_flair` | `*_seg` | `brats2018` |"
        in names
    )

"""A subset of the sequences is scored on the validation cases that have all of it, and on no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small import small_network
from small_runs import ROOT, small_run

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.splits import Split
from lora_moe_hgd.training import objectives
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.data.datasets import Case
from lora_moe_hgd.training.objectives import SegmentationObjective
from lora_moe_hgd.training.run_folder import RunFolder
from lora_moe_hgd.training.sources import RunData
from lora_moe_hgd.training.validation import scored_subsets

ALL, NO_FLAIR, T1 = (True, True, True, True), (True, True, True, False), (True, False, False, False)


def case(name: str, acquired: tuple[bool, ...]) -> Case:
    generator = torch.Generator().manual_seed(len(name))
    mask = torch.tensor(acquired)
    volume = torch.randn(4, 32, 32, 32, generator=generator) * mask[:, None, None, None]
    labels = (torch.rand(3, 32, 32, 32, generator=generator) > 0.5).to(torch.uint8)
    return {"case_id": name, "pixel_values": volume, "modality_mask": mask, "labels": labels}


@pytest.fixture(autouse=True)
def forget_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def objective(cases: list[Case], folder: Path, *options: str) -> SegmentationObjective:
    config = read_config(["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(folder), *options])
    data = RunData(train=cases, validation=cases, split=Split([], []), content="")
    return SegmentationObjective(config, Accelerator(cpu=True), LoraMoeHgdImageProcessor(), data, RunFolder(config))


def test_a_case_without_flair_does_not_score_a_subset_with_flair(tmp_path: Path, monkeypatch, capsys) -> None:
    cases = [case("complete", ALL), case("lacking", NO_FLAIR)]
    scoring = objective(cases, tmp_path, "--subsets", "[t1c, t1c+flair]")
    used = []
    monkeypatch.setattr(
        objectives,
        "predict",
        lambda network, volume, subset, task: used.append(subset) or torch.zeros(3, 32, 32, 32).bool(),
    )
    logged: dict[str, float] = {}
    scoring.validate(small_network(), epoch=1, log=logged.update)
    assert used == [(False, True, False, False), (False, True, False, True), (False, True, False, False)]
    assert {name: value for name, value in logged.items() if name.startswith("validation_cases")} == {
        "validation_cases/t1c": 2,
        "validation_cases/t1c+flair": 1,
    }
    shown = capsys.readouterr().out
    assert "Validation on t1c: 2 of 2 cases.\n" in shown
    assert "Validation on t1c+flair: 1 of 2 cases, without lacking.\n" in shown
    assert "epoch 1, t1c+flair, 1 case: Dice wt" in shown


def test_default_subsets_that_no_case_has_are_said_and_do_not_count(tmp_path: Path, capsys) -> None:
    scoring = objective([case("lacking", NO_FLAIR)], tmp_path)
    logged: dict[str, float] = {}
    assert 0 <= scoring.validate(small_network(), epoch=1, log=logged.update) <= 1
    assert {name.split("/")[0] for name in logged if name.startswith("dice_")} == {"dice_t1+t2", "dice_t1c"}
    assert logged["validation_cases/all"] == 0
    assert "Validation on flair: 0 of 1 case, without lacking.\n" in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_is_said_in_one_line_and_ends_no_run(tmp_path, monkeypatch, capsys) -> None:
    scoring = objective([case("complete", ALL)], tmp_path, "--subsets", "[t1c]")

    def fails(*args, **options) -> None:
        raise RuntimeError("no font\nfound")

    monkeypatch.setattr(objectives, "save_overlay", fails)
    assert 0 <= scoring.validate(small_network(), epoch=3, log=lambda values: None) <= 1
    said = [line for line in capsys.readouterr().err.splitlines() if "picture" in line]
    assert [line.rpartition("\r")[2] for line in said] == [
        "warning: epoch 3 has no picture: RuntimeError: no font found"
    ]


@pytest.mark.parametrize(
    ("subsets", "acquired", "missing"),
    [
        (["t1c+flair", "t1"], {"a": NO_FLAIR, "b": T1}, r"t1c\+flair"),
        (["t2+flair", "t1c", "t1"], {"b": T1}, r"t2\+flair or of t1c"),
        (None, {"b": T1}, r"all or of t1c\+flair or of t1\+t2 or of flair or of t1c"),
    ],
)
def test_a_subset_that_no_case_has_is_refused_with_its_name_and_the_cases(
    subsets: list[str] | None, acquired: dict, missing: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"No validation case has all sequences of the subset {missing} \(.*b has t1\)\."
    ):
        scored_subsets(subsets, acquired)


def test_it_is_refused_before_the_output_folder_is_made(dummy_root: Path, tmp_path: Path) -> None:
    for name in ("case_000", "case_001"):
        shutil.copytree(dummy_root / name, tmp_path / "data" / name)
        (tmp_path / "data" / name / "FLAIR.nii.gz").unlink()
    options = ["--data", str(tmp_path / "data"), "--phantoms", "0", "--val-phantoms", "null", "--subsets", "[flair]"]
    with pytest.raises(ValueError, match=r"all sequences of the subset flair .*case_00\d has t1\+t1c\+t2\)\."):
        small_run(tmp_path / "run", tmp_path / "cache", *options)
    assert not (tmp_path / "run").exists()

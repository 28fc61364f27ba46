"""How a batch is split, over processes or over steps, does not change a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
# Eight crops, four a step; float32, so that only the order of sums differs.
OPTIONS = ["--epochs", "3", "--subsets", "[flair]", "--num-workers", "0", "--precision", "no"]


def launch(folder: Path, launcher: list[str], *options: str, script: Path = ROOT / "train.py") -> tuple[int, str]:
    words = [*launcher, str(script), "--config", str(ROOT / "configs/smoke.yaml"), *OPTIONS, *options]
    words += ["--output-dir", str(folder), "--cache-dir", str(folder.parent / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=600
    )
    return done.returncode, done.stdout


def accelerate(config: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, "--config_file", str(ROOT / f"configs/accelerate/{config}.yaml"), "--main_process_port", "0"]


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "whole"
    code, shown = launch(folder, [sys.executable], "--batch-size", "4")
    assert code == 0, shown
    return folder


def assert_same_training(actual: Path, expected: Path) -> None:
    rows, expected_rows = (
        [row for row in read_metrics(folder) if "loss/total" in row] for folder in (actual, expected)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows] == [1, 2, 3, 4, 5, 6]
    for row, other in zip(rows, expected_rows, strict=True):
        for name in (*(name for name in other if name.startswith("loss/")), "gradient_norm", "lr"):
            # The balance counts choices, and a near tie of two experts may fall either way.
            tolerance = 2e-2 if name == "loss/load_balance" else 2e-3
            assert row[name] == pytest.approx(other[name], rel=tolerance), (name, row["step"])
    weights, expected_weights = (load_file(folder / "last/model.safetensors") for folder in (actual, expected))
    # Adam divides by the gradient's own size, so where it is nearly zero rounding alone decides; a step is about 1e-3.
    difference = torch.cat([(weights[name] - value).abs().flatten() for name, value in expected_weights.items()])
    assert difference.median() < 5e-6
    assert (difference > 1e-4).float().mean() < 1e-2


def test_accumulated_batches_are_one_batch(whole_batch: Path) -> None:
    folder = whole_batch.with_name("accumulated")
    code, shown = launch(folder, [sys.executable], "--batch-size", "1", "--accumulate", "4")
    assert code == 0, shown
    assert_same_training(folder, whole_batch)


def test_two_processes_are_one_with_the_doubled_batch(whole_batch: Path) -> None:
    folder = whole_batch.with_name("two")
    code, shown = launch(folder, accelerate("cpu_two_processes"), "--batch-size", "2")
    assert code == 0, shown
    assert_same_training(folder, whole_batch)


def test_weights_in_parts_on_two_processes_train_as_whole_ones(whole_batch: Path) -> None:
    folder = whole_batch.with_name("fsdp")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("fsdp_on_cpu.py")
    code, shown = launch(folder, launcher, "--batch-size", "2", script=script)
    assert code == 0, shown
    assert_same_training(folder, whole_batch)


def test_processes_that_were_asked_for_and_not_started_are_missed(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    code, shown = launch(tmp_path / "run", launcher)
    assert code != 0
    assert "asked for several processes but started one" in shown
    assert not (tmp_path / "run").exists()


# Prepares for longer than the processes of this group wait for each other, and stops before the first step.
SLOW_PREPARING = """
import sys, time
from datetime import timedelta
import torch
from lora_moe_hgd.training.data.datasets import PhantomDataset
from lora_moe_hgd.training.loop import TrainingLoop
from lora_moe_hgd_cli import run

make = PhantomDataset._preprocess

def slow(self, index):
    if index == 0:
        time.sleep(4)
    return make(self, index)

PhantomDataset._preprocess = slow
TrainingLoop.run_epochs = lambda self: print(f"process {self.accelerator.process_index} is ready")
torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=6))
run("train", sys.argv[1:])
"""


def test_processes_wait_for_preparing_longer_than_for_each_other(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_PREPARING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    code, shown = launch(tmp_path / "run", launcher, script=script)
    assert code == 0, shown
    for process in (0, 1):
        assert f"process {process} is ready" in shown


def test_what_is_wrong_is_said_by_one_process_alone(tmp_path: Path) -> None:
    options = ["--phantoms", "0", "--val-phantoms", "null", "--data", "nowhere"]
    code, shown = launch(tmp_path / "run", accelerate("cpu_two_processes"), *options)
    assert code != 0
    # What follows is the launcher's own traceback.
    assert shown.split("torch/distributed/elastic")[0].count("error: nowhere") == 1
    assert shown.count("error: ") == 1
    assert "RuntimeError" not in shown


def test_deepspeed_is_refused_with_what_to_use_instead(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        run("train", ["--config", str(ROOT / "configs/smoke.yaml")])
    assert "fsdp2.yaml" in capsys.readouterr().err

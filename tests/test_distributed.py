"""How a batch is split, over processes or over steps, does not change a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import Fork, accelerate_launch, fork_ranks
from safetensors.torch import load_file
from small_runs import ROOT, prepare_slowly, train_small

from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd_cli import run

# Eight crops, four a step, and the second step sees what the first has changed; float32, so that only the order of
# sums differs.
OPTIONS = ["--epochs", "1", "--subsets", "[flair]", "--val-phantoms", "null", "--precision", "no"]


def words_of(folder: Path, *options: str) -> list[str]:
    words = ["--config", str(ROOT / "configs/smoke.yaml"), *OPTIONS, *options]
    return [*words, "--output-dir", str(folder), "--cache-dir", str(folder.parent / "cache")]


def finish(forks: list[Fork]) -> None:
    for code, shown in [fork.wait() for fork in forks]:
        assert code == 0, shown


def launched(folder: Path, *options: str) -> list[dict[str, str]]:
    """Start `accelerate launch` with a program of one line; return the environment of each process that it starts."""
    script = folder / "environment.py"
    # In a single write, so that the lines of two processes do not mix.
    script.write_text("import json, os\nos.write(1, ('STARTED ' + json.dumps(dict(os.environ)) + chr(10)).encode())\n")
    code, shown = Fork(accelerate_launch, [*options, str(script)]).wait()
    assert code == 0, shown
    return [json.loads(line.removeprefix("STARTED ")) for line in shown.splitlines() if line.startswith("STARTED ")]


def set_by_a_launcher(environment: dict[str, str]) -> dict[str, str]:
    known = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in environment.items() if name in known or name.startswith("ACCELERATE_")}


@pytest.fixture(scope="module")
def whole_batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "whole"
    finish([Fork(train_small, words_of(folder, "--batch-size", "4"))])
    return folder


def assert_same_training(actual: Path, expected: Path) -> None:
    rows, expected_rows = (
        [row for row in read_metrics(folder) if "loss/total" in row] for folder in (actual, expected)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows] == [1, 2]
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
    finish([Fork(train_small, words_of(folder, "--batch-size", "1", "--accumulate", "4"))])
    assert_same_training(folder, whole_batch)


def test_two_processes_are_one_with_the_doubled_batch(whole_batch: Path, tmp_path: Path) -> None:
    """As `accelerate launch` starts them with the configuration for the CPU."""
    config = ["--config_file", str(ROOT / "configs/accelerate/cpu_two_processes.yaml"), "--main_process_port", "0"]
    environments = [set_by_a_launcher(environment) for environment in launched(tmp_path, *config)]
    assert sorted(environment["RANK"] for environment in environments) == ["0", "1"]
    folder = whole_batch.with_name("two")
    finish(fork_ranks(train_small, words_of(folder, "--batch-size", "2"), environments=environments))
    assert_same_training(folder, whole_batch)


def test_weights_in_parts_on_two_processes_train_as_whole_ones(whole_batch: Path) -> None:
    folder = whole_batch.with_name("fsdp")
    finish(fork_ranks(train_small, words_of(folder, "--batch-size", "2"), 0.0, True, environments=[{}, {}]))
    assert_same_training(folder, whole_batch)


@pytest.mark.slow
def test_the_launcher_of_the_repository_trains_in_two_processes(tmp_path: Path) -> None:
    """Run `accelerate launch train.py` as a whole; the tests above cover its parts."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launcher += ["--config_file", str(ROOT / "configs/accelerate/cpu_two_processes.yaml"), str(ROOT / "train.py")]
    subprocess.run([*launcher, *words_of(tmp_path / "run")], check=True, timeout=600)
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"]


def test_processes_that_were_asked_for_and_not_started_are_missed(tmp_path: Path, monkeypatch, capsys) -> None:
    (environment,) = launched(tmp_path, "--cpu", "--num_processes", "2")
    for name, value in set_by_a_launcher(environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        run("train", words_of(tmp_path / "run"))
    assert stopped.value.code == 2
    assert "Several processes were requested, but `accelerate launch` started only one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_wait_for_preparing_longer_than_for_each_other(tmp_path: Path) -> None:
    forks = fork_ranks(prepare_slowly, words_of(tmp_path / "run"), environments=[{}, {}])
    for rank, (code, shown) in enumerate([fork.wait() for fork in forks]):
        assert code == 0, shown
        assert f"process {rank} is ready" in shown


def test_what_is_wrong_is_said_by_one_process_alone(tmp_path: Path) -> None:
    words = words_of(tmp_path / "run", "--phantoms", "0", "--val-phantoms", "null", "--data", "nowhere")
    ends = [fork.wait() for fork in fork_ranks(train_small, words, environments=[{}, {}])]
    assert [code for code, _ in ends] == [2, 2]
    shown = "".join(shown for _, shown in ends)
    assert shown.count("error: nowhere") == 1
    assert shown.count("error: ") == 1
    assert "RuntimeError" not in shown


def test_deepspeed_is_refused_with_what_to_use_instead(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit):
        run("train", ["--config", str(ROOT / "configs/smoke.yaml")])
    assert "fsdp2.yaml" in capsys.readouterr().err

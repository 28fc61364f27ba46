"""A run that was killed is resumed to the same weights, moving average, optimizer and log, bit for bit."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_moe_hgd.training.metrics_log import read_metrics

ROOT = Path(__file__).parents[1]
STEPS = 12


class Runner:
    """Starts the same run in different folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, output_dir: Path, *options: str, processes: int = 1, sharded: bool = False) -> subprocess.Popen:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = ROOT / ("tests/fsdp_on_cpu.py" if sharded else "train.py")
        words = [*launcher, str(script), "--config", str(ROOT / "configs/smoke.yaml")]
        words += ["--output-dir", str(output_dir), "--cache-dir", str(self.folder / "cache")]
        words += ["--epochs", "3", "--subsets", "[flair]", "--save-every", "1", "--num-workers", "2", *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def finish(self, output_dir: Path, *options: str, processes: int = 1, sharded: bool = False) -> str:
        process = self.start(output_dir, *options, processes=processes, sharded=sharded)
        shown, _ = process.communicate(timeout=600)
        assert process.returncode == 0, shown
        return shown


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(runner: Runner) -> Path:
    runner.finish(runner.folder / "whole")
    return runner.folder / "whole"


def wait_for_step(process: subprocess.Popen, output_dir: Path, step: int) -> None:
    """Wait until the run has logged a step."""
    while not any(row["step"] >= step for row in (read_metrics(output_dir) if written(output_dir) else [])):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def written(output_dir: Path) -> bool:
    return (output_dir / "metrics.jsonl").is_file()


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def last_state(output_dir: Path) -> Path:
    return sorted((output_dir / "resume").glob("step-*"))[-1]


def same_for_every_machine(output_dir: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "memory/"))}
        for row in read_metrics(output_dir)
    ]


def assert_same_run(actual: Path, expected: Path) -> None:
    assert last_state(actual).name == f"step-{STEPS:08d}"
    # The manifest holds a hash of weights, moving average, optimizer and progress.
    manifests = [json.loads((last_state(path) / "manifest.json").read_text()) for path in (actual, expected)]
    assert manifests[0] == manifests[1]
    assert same_for_every_machine(actual) == same_for_every_machine(expected)
    for name in ("best", "last"):
        weights = [(path / name / "model.safetensors").read_bytes() for path in (actual, expected)]
        assert weights[0] == weights[1]


def test_killed_at_random_steps_and_started_again_it_ends_the_same(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "killed"
    for step in sorted(random.Random(0).sample(range(1, STEPS), 2)):
        process = runner.start(output_dir)
        wait_for_step(process, output_dir, step)
        kill(process)
    assert "Resuming after step" in runner.finish(output_dir)
    assert_same_run(output_dir, uninterrupted)


def test_options_that_do_not_change_the_result_may_change_between_kill_and_resume(
    runner: Runner, uninterrupted: Path
) -> None:
    output_dir = runner.folder / "changed"
    process = runner.start(output_dir)
    wait_for_step(process, output_dir, 5)
    kill(process)
    others = ["--num-workers", "0", "--save-every", "4", "--tracker", "none", "--gradient-checkpointing", "true"]
    others += ["--cache-dir", str(runner.folder / "another-cache")]
    assert "Resuming after step" in runner.finish(output_dir, *others)
    assert_same_run(output_dir, uninterrupted)


def test_a_damaged_state_is_named_and_the_one_before_is_used(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "damaged"
    process = runner.start(output_dir)
    wait_for_step(process, output_dir, 6)
    kill(process)
    broken = last_state(output_dir) / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert f"{broken} is damaged or missing. The state before it is used." in runner.finish(output_dir)
    assert_same_run(output_dir, uninterrupted)


def test_ctrl_c_saves_and_says_how_to_go_on(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "stopped"
    # No state but those that the signal asks for, and those after an epoch.
    process = runner.start(output_dir, "--save-every", "1000")
    wait_for_step(process, output_dir, 2)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The same command resumes the run." in shown
    stopped = int(last_state(output_dir).name.removeprefix("step-"))
    assert f"Stopped after step {stopped}." in shown
    assert f"Resuming after step {stopped}," in runner.finish(output_dir, "--save-every", "1000")
    assert_same_run(output_dir, uninterrupted)


def test_a_full_disk_stops_with_a_word_and_the_state_before(runner: Runner, tmp_path: Path) -> None:
    output_dir = runner.folder / "full"
    process = runner.start(output_dir)
    wait_for_step(process, output_dir, 2)
    # A file may not grow beyond this: like a full disk, for the larger files only.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, 2**20))
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "could not be written" in shown
    assert f"it resumes from {last_state(output_dir).name}" in shown
    assert not list((output_dir / "resume").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_killed_and_started_again_end_the_same(runner: Runner, sharded: bool) -> None:
    whole, killed = runner.folder / f"two-whole-{sharded}", runner.folder / f"two-killed-{sharded}"
    options = ("--batch-size", "1")
    runner.finish(whole, *options, processes=2, sharded=sharded)
    for step in (3, 7):
        process = runner.start(killed, *options, processes=2, sharded=sharded)
        wait_for_step(process, killed, step)
        kill(process)
    runner.finish(killed, *options, processes=2, sharded=sharded)
    assert_same_run(killed, whole)

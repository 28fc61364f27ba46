"""A run that was killed is resumed to the same weights, moving average, optimizer and log, bit for bit."""

from __future__ import annotations

import json
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from forks import Fork, fork_ranks
from small_runs import ROOT, train_small

from lora_moe_hgd.training.metrics_log import read_metrics

STEPS = 6


class Runner:
    """Starts the same run in different folders, in processes that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(
        self, output_dir: Path, *options: str, processes: int = 1, sharded: bool = False, pause: float = 0.1
    ) -> list[Fork]:
        """Start a run; the pause after each step leaves time to kill it."""
        words = ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(output_dir)]
        words += ["--cache-dir", str(self.folder / "cache"), "--epochs", "2", "--subsets", "[flair]"]
        words += ["--phantoms", "6", "--crops-per-case", "1", "--save-every", "1", "--tracker", "none", *options]
        if processes == 1:
            return [Fork(train_small, words, pause)]
        return fork_ranks(train_small, words, pause, sharded, environments=[{}] * processes)

    def finish(self, output_dir: Path, *options: str, processes: int = 1, sharded: bool = False) -> str:
        ends = [
            fork.wait() for fork in self.start(output_dir, *options, processes=processes, sharded=sharded, pause=0)
        ]
        shown = "".join(shown for _, shown in ends)
        assert [code for code, _ in ends] == [0] * processes, shown
        return shown


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(runner: Runner) -> Path:
    runner.finish(runner.folder / "whole")
    return runner.folder / "whole"


def wait_for_step(forks: list[Fork], output_dir: Path, step: int) -> None:
    """Wait until the run has logged a step."""
    while not any(row["step"] >= step for row in (read_metrics(output_dir) if written(output_dir) else [])):
        assert all(fork.is_running() for fork in forks), [fork.wait() for fork in forks]
        time.sleep(0.01)


def written(output_dir: Path) -> bool:
    return (output_dir / "metrics.jsonl").is_file()


def kill_after_step(forks: list[Fork], output_dir: Path, step: int) -> None:
    wait_for_step(forks, output_dir, step)
    for fork in forks:
        fork.kill()


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


@pytest.mark.slow
def test_killed_at_random_steps_and_started_again_it_ends_the_same(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "killed"
    for step in sorted(random.Random(0).sample(range(1, STEPS), 2)):
        kill_after_step(runner.start(output_dir, "--num-workers", "2"), output_dir, step)
    assert "Resuming after step" in runner.finish(output_dir)
    assert_same_run(output_dir, uninterrupted)


def test_options_that_do_not_change_the_result_may_change_between_kill_and_resume(
    runner: Runner, uninterrupted: Path
) -> None:
    output_dir = runner.folder / "changed"
    kill_after_step(runner.start(output_dir, "--tracker", "tensorboard"), output_dir, 3)
    others = ["--save-every", "2", "--gradient-checkpointing", "true"]
    others += ["--cache-dir", str(runner.folder / "another-cache")]
    assert "Resuming after step" in runner.finish(output_dir, *others)
    assert_same_run(output_dir, uninterrupted)


def test_a_damaged_state_is_named_and_the_one_before_is_used(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "damaged"
    kill_after_step(runner.start(output_dir), output_dir, 3)
    broken = last_state(output_dir) / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert f"{broken} is damaged or missing. An older state is used instead." in runner.finish(output_dir)
    assert_same_run(output_dir, uninterrupted)


def test_ctrl_c_saves_and_says_how_to_go_on(runner: Runner, uninterrupted: Path) -> None:
    output_dir = runner.folder / "stopped"
    # No state but those that the signal asks for, and those after an epoch.
    (fork,) = runner.start(output_dir, "--save-every", "1000")
    wait_for_step([fork], output_dir, 2)
    fork.send_signal(signal.SIGINT)
    code, shown = fork.wait(120)
    assert code == 130
    assert "The same command resumes the run." in shown
    stopped = int(last_state(output_dir).name.removeprefix("step-"))
    assert f"Stopped after step {stopped}." in shown
    assert f"Resuming after step {stopped}," in runner.finish(output_dir, "--save-every", "1000")
    assert_same_run(output_dir, uninterrupted)


def test_a_full_disk_stops_with_a_word_and_the_state_before(runner: Runner, tmp_path: Path) -> None:
    output_dir = runner.folder / "full"
    # The disk is full before the epoch ends.
    (fork,) = runner.start(output_dir, "--crops-per-case", "2")
    wait_for_step([fork], output_dir, 2)
    # A file may not grow beyond this: like a full disk, for the larger files only.
    most = (last_state(output_dir) / "weights.safetensors").stat().st_size // 2
    resource.prlimit(fork.pid, resource.RLIMIT_FSIZE, (most, most))
    code, shown = fork.wait(120)
    assert code == 2
    assert "could not be written" in shown
    assert f"The run then resumes from {last_state(output_dir).name}" in shown
    assert not list((output_dir / "resume").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_two_processes_killed_and_started_again_end_the_same(runner: Runner, sharded: bool) -> None:
    whole, killed = runner.folder / f"two-whole-{sharded}", runner.folder / f"two-killed-{sharded}"
    options = ("--batch-size", "1")
    runner.finish(whole, *options, processes=2, sharded=sharded)
    for step in (2, 4):
        kill_after_step(runner.start(killed, *options, processes=2, sharded=sharded), killed, step)
    runner.finish(killed, *options, processes=2, sharded=sharded)
    assert_same_run(killed, whole)

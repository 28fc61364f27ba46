"""What a step is made of: its batches, their seeds, and the size of its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small_run

from lora_moe_hgd.training.loop import batch_seed
from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd.training.objectives import SegmentationObjective


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [row for row in read_metrics(folder) if "loss/total" in row]


def test_a_last_step_of_fewer_batches_has_the_loss_and_gradient_of_one_big_batch(tmp_path: Path, cache: Path) -> None:
    # Four crops: one step of four, against one that would take seven but gets four.
    common = ("--subsets", "[t1]")
    small_run(tmp_path / "one", cache, *common, "--batch-size", "4")
    small_run(tmp_path / "many", cache, *common, "--batch-size", "1", "--accumulate", "7")
    (one,), (many,) = steps_of(tmp_path / "one"), steps_of(tmp_path / "many")
    assert many["lr"] == one["lr"]
    # The balance of the experts is that of a batch, and the order of sums differs.
    for name, tolerance in (("loss/dice", 1e-4), ("loss/cross_entropy", 1e-4), ("gradient_norm", 1e-2)):
        assert many[name] == pytest.approx(one[name], rel=tolerance), name


def test_each_batch_has_a_seed_of_its_own_which_is_the_same_after_resuming(
    tmp_path: Path, cache: Path, monkeypatch
) -> None:
    seeds: list[int] = []
    forward = SegmentationObjective.forward

    def noting(self: Any, *given: Any, **named: Any) -> Any:
        seeds.append(torch.initial_seed())
        return forward(self, *given, **named)

    monkeypatch.setattr(SegmentationObjective, "forward", noting)
    options = ("--subsets", "[t1]", "--batch-size", "1", "--accumulate", "2", "--save-every", "1", "--epochs", "2")
    small_run(tmp_path / "whole", cache, *options)
    expected = seeds.copy()
    assert len(set(expected)) == len(expected) == 8

    def stopping(self: Any, *given: Any, **named: Any) -> Any:
        if len(seeds) == 3:
            raise InterruptedError
        return noting(self, *given, **named)

    seeds.clear()
    monkeypatch.setattr(SegmentationObjective, "forward", stopping)
    with pytest.raises(InterruptedError):
        small_run(tmp_path / "stopped", cache, *options)
    monkeypatch.setattr(SegmentationObjective, "forward", noting)
    del seeds[2:]  # The third batch began the step that was not finished.
    small_run(tmp_path / "stopped", cache, *options)
    assert seeds == expected


def test_no_two_batches_processes_or_epochs_share_a_seed() -> None:
    drawn = {
        batch_seed(seed, epoch, batch, process)
        for seed in range(3)
        for epoch in range(5)
        for batch in range(20)
        for process in range(4)
    }
    assert len(drawn) == 3 * 5 * 20 * 4
    # NumPy refuses larger seeds.
    assert max(drawn) < 2**32

"""States are written completely or not at all, checked when read, and only the newest are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_moe_hgd.training.states import (
    KEPT_STATES,
    Progress,
    RunState,
    StateError,
    keep_newest_state,
    newest_progress,
    read_state,
    write_state,
)


def state_of(step: int) -> RunState:
    """Weights, average and optimizer of a layer after one real step of AdamW."""
    torch.manual_seed(step)
    layer = nn.Conv3d(2, 3, kernel_size=2).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(1, 2, 4, 4, 4)).sum().backward()
    optimizer.step()
    return RunState(
        progress=Progress(epoch=1, batch=2, step=step, best_score=0.25),
        weights=dict(layer.named_parameters()),
        average={name: value.detach() / 2 for name, value in layer.named_parameters()},
        optimizer=optimizer.state_dict(),
        others={"overlap": torch.arange(4.0)},
        scaler={"scale": 65536.0},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = state_of(7)
    write_state(tmp_path, written)
    read, complaints = read_state(tmp_path)
    assert read is not None
    assert complaints == []
    assert (read.progress, read.scaler) == (written.progress, written.scaler)
    for part in ("weights", "average", "others"):
        assert_close(getattr(read, part), dict(getattr(written, part)), rtol=0, atol=0)
    for index, values in written.optimizer["state"].items():
        assert_close(read.optimizer["state"][index], values, rtol=0, atol=0)
    fresh = torch.optim.AdamW([nn.Parameter(value) for value in written.weights.values()], lr=1.0)
    fresh.load_state_dict(read.optimizer)
    assert fresh.param_groups[0]["lr"] == 0.1


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write_state(tmp_path, state_of(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]
    assert KEPT_STATES == 2


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    for step in (1, 2):
        write_state(tmp_path, state_of(step))
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        file.unlink()
    read, (complaint,) = read_state(tmp_path)
    assert read is not None
    assert read.progress.step == 1
    assert str(file) in complaint


def test_without_an_intact_state_nothing_is_guessed(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none") == (None, [])
    write_state(tmp_path / "resume", state_of(1))
    (tmp_path / "resume/step-00000001/progress.json").unlink()
    with pytest.raises(StateError, match=f"Remove {tmp_path} to start from the beginning"):
        read_state(tmp_path / "resume")


def test_a_manifest_that_is_too_large_is_damaged(tmp_path: Path) -> None:
    write_state(tmp_path, state_of(1))
    manifest = tmp_path / "step-00000001/manifest.json"
    manifest.write_text(manifest.read_text() + 1_000_000 * " ")
    assert newest_progress(tmp_path) is None
    with pytest.raises(StateError, match=r"All states in .* are damaged"):
        read_state(tmp_path)


def test_an_intact_state_of_any_size_is_read(tmp_path: Path) -> None:
    written = replace(state_of(1), scaler={"text": 1_000_000 * "a"})
    write_state(tmp_path, written)
    assert newest_progress(tmp_path) == written.progress
    read, _ = read_state(tmp_path)
    assert read is not None
    assert read.scaler == written.scaler


def test_a_write_that_fails_leaves_the_older_states_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    write_state(tmp_path, state_of(1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    rule = r"step 2 could not be written .*No space left.* then resumes from step-00000001"
    with pytest.raises(StateError, match=rule):
        write_state(tmp_path, state_of(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_the_state_of_a_step_can_be_written_again(tmp_path: Path) -> None:
    write_state(tmp_path, state_of(1))
    write_state(tmp_path, replace(state_of(1), progress=Progress(epoch=5, step=1)))
    read, _ = read_state(tmp_path)
    assert read is not None
    assert read.progress.epoch == 5


def test_the_last_state_of_a_finished_run_is_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        write_state(tmp_path, state_of(step))
    keep_newest_state(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_progress_is_that_of_the_newest_intact_state(tmp_path: Path) -> None:
    assert newest_progress(tmp_path) is None
    for step in (1, 2):
        write_state(tmp_path, state_of(step))
    assert newest_progress(tmp_path) == state_of(2).progress
    (tmp_path / "step-00000002/weights.safetensors").unlink()
    assert newest_progress(tmp_path) == state_of(1).progress

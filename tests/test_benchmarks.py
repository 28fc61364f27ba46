"""The benchmark scripts run, small."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import build_small

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.export.command import export
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.splits import Split
from lora_moe_hgd.subsets import EVERY_SUBSET
from lora_moe_hgd.training import engine
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import train
from lora_moe_hgd.training.sources import RunData

ROOT = Path(__file__).parents[1]


def run_script(name: str, *options: str) -> list[str]:
    words = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_memory_is_measured_for_each_variant() -> None:
    rows = run_script("memory.py", "--sizes", "tiny", "--edges", "32")
    assert len(rows) == 2 + 4
    assert all(" | 32^3 | " in row and "no room" not in row for row in rows[2:])


@pytest.mark.slow
def test_memory_is_measured_for_a_case() -> None:
    (_, _, row) = run_script("memory.py", "--cases", "64x64x48x3")
    assert 0 < float(row.split("|")[2]) < 1


@pytest.mark.slow
def test_speed_is_measured_beside_the_peers() -> None:
    rows = run_script("speed.py", "--edge", "32", "--rounds", "1", "--networks", "tiny,SegResNet-16,DynUNet")
    assert len(rows) == 2 * (2 + 3 + 2 + 2) + 2 + 3
    assert "| SegResNet-16, 4 sequences, forward and backward |" in "\n".join(rows)
    assert not any("nan" in row for row in rows)


@pytest.mark.slow
def test_the_script_for_the_gpu_runs_small_on_the_cpu() -> None:
    small = ["--device", "cpu", "--edge", "64", "--case-shape", "64", "64", "48"]
    rows = run_script("gpu.py", *small, "--rounds", "1", "--sizes", "tiny", "--phantoms", "2")
    cases = [row for row in rows if row.startswith(("| 1 mm", "| 2 mm"))]
    assert len(cases) == 2 * 2 * 4
    (trained,) = (row for row in rows if re.fullmatch(r"\| tiny \| [0-9.]+ \| [0-9.]+ \|", row))
    assert float(trained.split("|")[2]) > 0
    assert not any("nan" in row for row in rows)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("peers")


@pytest.fixture
def peer(peers: Any) -> Any:
    return peers.PeerForSegmentation(peers.PeerConfig(name="SegResNet-16", edge=32)).eval()


def test_a_peer_never_sees_absent_sequences(peer: Any) -> None:
    volume = torch.randn(2, 4, 32, 32, 32)
    mask = torch.tensor([[True, False, True, True], [False, False, False, True]])
    filled = volume.masked_fill(~mask[..., None, None, None], torch.nan)
    with torch.no_grad():
        assert torch.equal(peer(volume, mask).logits, peer(filled, mask).logits)


def test_a_saved_peer_gives_the_same_logits(peer: Any, tmp_path: Path) -> None:
    peer.save_pretrained(tmp_path)
    reloaded = type(peer).from_pretrained(tmp_path).eval()
    volume = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(peer(volume).logits, reloaded(volume).logits)


@pytest.mark.parametrize(
    "name", ["SegResNet-16", pytest.param("UNETR", marks=pytest.mark.slow), "DynUNet", "SwinUNETR-24"]
)
def test_weights_of_each_peer_are_saved_as_they_are_trained_channels_last(
    peers: Any, name: str, tmp_path: Path
) -> None:
    network, other = peers.make_network(name, 64), peers.make_network(name, 64)
    network.save_pretrained(tmp_path)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_the_training_engine_takes_a_peer(peer: Any, tmp_path: Path) -> None:
    _, processor = load_checkpoint("tiny")
    words = ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(tmp_path / "run"), "--epochs", "1"]
    words += ["--cache-dir", str(tmp_path / "cache"), "--subsets", "[flair]", "--tracker", "none"]
    processor.target_spacing_mm = [4.0] * 3
    best = train(read_config(words), build=lambda config: (peer, processor))
    reloaded = type(peer).from_pretrained(best)
    assert not torch.equal(next(reloaded.parameters()), next(type(peer)(peer.config).parameters()))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return pytest.importorskip("trials")


def test_a_trial_is_scored_on_each_subset_equally_often(trials: Any) -> None:
    scored: list[tuple[bool, ...]] = []

    def network(pixel_values: torch.Tensor, modality_mask: torch.Tensor) -> SimpleNamespace:
        scored.append(tuple(modality_mask[0].tolist()))
        return SimpleNamespace(logits=torch.full((1, 3, 64, 64, 64), -10.0))

    case = {"pixel_values": torch.ones(4, 16, 16, 16), "labels": torch.zeros(3, 16, 16, 16, dtype=torch.uint8)}
    assert trials.mean_dice(network, [case] * 8, every=4) == [1.0, 1.0, 1.0]
    assert Counter(scored) == dict.fromkeys(EVERY_SUBSET, 2)


@pytest.mark.parametrize("steps", [2, 5])
def test_an_epoch_has_as_many_steps_as_a_trial_asks_for(
    trials: Any, steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = read_config(["--config", str(ROOT / "configs/smoke.yaml"), "--batch-size", "2", "--seed", "3"])
    cases: Any = ["a", "b", "c", "d", "e", "f"]
    monkeypatch.setattr(trials, "build_data", lambda *_, **__: RunData(cases, cases, Split([], []), ""))
    with trials.with_steps(steps):
        train_cases = engine.build_data(config, LoraMoeHgdImageProcessor(), show=False).train
    assert len(train_cases) == 2 * steps
    counts = Counter(train_cases[index] for index in range(len(train_cases)))
    assert max(counts.values()) == math.ceil(2 * steps / len(cases))


def test_in_equal_minutes_a_slow_network_takes_fewer_steps(
    trials: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "step_seconds.json").write_text(json.dumps({"fast": 1.0, "slow": 3.0}))
    for number in range(2):
        (tmp_path / f"{number}-0").mkdir()
    lengths: list[int] = []
    monkeypatch.setattr(trials, "with_steps", lambda steps: nullcontext(lengths.append(steps)))
    scores = {"seconds": 60.0, "steps": 1, "phantoms": [0.0] * 3, "real": [0.0] * 3}
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: scores)
    words = ["script", "--data", "data", "--out", str(tmp_path), "--seeds", "0", "--minutes", "1"]
    monkeypatch.setattr(sys, "argv", words)
    trials.main({name: trials.Trial(build_small) for name in ("fast", "slow")}, about="", out="")
    assert lengths == [60, 20]


def test_a_training_step_of_each_trial_is_timed(trials: Any) -> None:
    config = read_config(["--config", str(ROOT / "configs/smoke.yaml"), "--precision", "no"])
    seconds = trials.step_seconds({"one": trials.Trial(build_small), "other": trials.Trial(build_small)}, config)
    assert 0 < seconds["one"] < 60
    assert 0 < seconds["other"] < 60


@pytest.mark.slow
def test_exported_networks_are_timed_and_quantised(tmp_path: Path, small_weights: Path) -> None:
    # The names of what is shipped mean something else in the script's process, so the folder is named.
    checkpoint = str(small_weights / "tiny")
    export(checkpoint, tmp_path / "out", form="onnx")
    rows = run_script(
        "exported.py", "--folder", str(tmp_path / "out"), "--edge", "32", "--rounds", "1", "--threads", "1"
    )
    assert {row.split(" | ")[0] for row in rows[2:]} >= {"| eager", "| onnxruntime", "| onnxruntime int8"}

"""The benchmark scripts run, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import train

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
def test_adapters_are_compared(dummy_root: Path, tmp_path: Path) -> None:
    small = ["--crop-size", "[32, 32, 32]", "--steps", "10", "--num-workers", "0", "--cases", "1,2", "--folds", "2"]
    places = ["--data", str(dummy_root), "--out", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache")]
    small += ["--score-subsets", "all,flair"]
    variants = ["lora", "lora, and convolutions", "from scratch"]
    rows = run_script("compare_adapters.py", *places, *small, "--variants", ";".join(variants), "--scales", "0,1")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]
    assert [row[:3] for row in cells] == [
        ["nothing", "0", "0"],
        *([name, number, scale] for name in variants[:2] for number in "12" for scale in "01"),
        *(["from scratch", number, "1"] for number in "12"),
    ]
    # At scale 0 everything is the base.
    assert cells[1][3:] == cells[0][3:]


@pytest.mark.slow
def test_adapters_are_judged_on_cases_kept_out_by_their_draw(dummy_root: Path, tmp_path: Path) -> None:
    for name, numbers in {"own": (0, 1), "out": (2, 3)}.items():
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"case_{number:03d}").symlink_to(dummy_root / f"case_{number:03d}")
    small = ["--crop-size", "[32, 32, 32]", "--steps", "10", "--num-workers", "0", "--cases", "1", "--draws", "2"]
    places = ["--data", str(tmp_path / "own"), "--out", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache")]
    held_out = ["--held-out", str(tmp_path / "out"), "--score-subsets", "flair", "--variants", "lora", "--scales", "1"]
    rows = run_script("compare_adapters.py", *places, *small, *held_out)
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["nothing", "lora"]
    assert rows[3].rstrip("| ").rsplit("|", 1)[1].count(",") == 1
    drawn = {next((run / "data").iterdir()).name for run in (tmp_path / "runs").iterdir()}
    assert drawn <= {"case_000", "case_001"}


@pytest.mark.slow
def test_phantoms_that_lack_a_property_and_drawn_ones_are_trained_on(dummy_root: Path, tmp_path: Path) -> None:
    words = ["--data", str(dummy_root), "--cache-dir", str(tmp_path / "cache"), "--score-subsets", "flair"]
    words += ["--steps", "4", "--crop-size", "[32, 32, 32]", "--lr", "1.0e-2"]

    def cells(*options: str) -> list[list[str]]:
        rows = run_script("phantom_changes.py", *words, *options)
        return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]

    some = "as they are;no mass effect;tumours of half the size"
    untrained, unchanged, *changed = cells("--out", str(tmp_path / "changes"), "--changes", some)
    assert (untrained[0], unchanged[0], unchanged[-1]) == ("(not trained on)", "as they are", "+0.000, +0.000")
    assert [row[0] for row in changed] == some.split(";")[1:]
    assert all(row[1:4] != unchanged[1:4] for row in (untrained, *changed))
    # What is not changed gives the same scores in another run, bit for bit.
    assert cells("--out", str(tmp_path / "again"), "--changes", "as they are")[1] == unchanged
    search = ["--search", "3", "--held-out", str(dummy_root), "--out", str(tmp_path / "search")]
    rows = run_script("phantom_changes.py", *words, *search)
    names = [row.split("|")[1].strip() for row in rows]
    assert names[-3:] == ["(not trained on)", "by hand", "mean of the best third"]


@pytest.mark.slow
def test_small_parts_and_mirror_images_are_weighed(dummy_root: Path, tmp_path: Path) -> None:
    places = ["--data", str(dummy_root), "--cache-dir", str(tmp_path / "cache")]
    rows = run_script("small_parts.py", *places, "--subsets", "flair")
    assert len(rows) == 2 + 2 * 6


@pytest.mark.slow
def test_cases_are_looked_at_once_and_again_at_finer_spacings(dummy_root: Path) -> None:
    rows = run_script("coarse_to_fine.py", "--data", str(dummy_root), "--subsets", "flair", "--spacings-mm", "1.5")
    names = [row.split("|")[1].strip() for row in rows[2:]]
    again = ["again, at 1.5 mm, around the tumour", "again, at 1.5 mm, mean of both"]
    assert names == ["whole, at 2.0 mm", "whole, at 1.5 mm", *again]


@pytest.mark.slow
def test_speed_is_measured_beside_the_peers() -> None:
    rows = run_script("speed.py", "--edge", "32", "--rounds", "1", "--networks", "tiny,SegResNet-16,DynUNet")
    assert len(rows) == 2 * (2 + 3 + 2 + 2) + 2 + 3
    assert "| SegResNet-16, 4 sequences, forward and backward |" in "\n".join(rows)
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


@pytest.mark.parametrize("name", ["SegResNet-16", "UNETR", "DynUNet", "SwinUNETR-24"])
def test_weights_of_each_peer_are_saved_as_they_are_trained_channels_last(
    peers: Any, name: str, tmp_path: Path
) -> None:
    network, other = peers.make_network(name, 64), peers.make_network(name, 64)
    network.save_pretrained(tmp_path)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_the_training_engine_takes_a_peer(peer: Any, tmp_path: Path) -> None:
    _, processor = load_checkpoint("tiny")
    words = ["--config", str(ROOT / "configs/smoke.yaml"), "--output-dir", str(tmp_path / "run"), "--epochs", "1"]
    words += ["--cache-dir", str(tmp_path / "cache"), "--subsets", "[flair]", "--tracker", "none"]
    processor.target_spacing_mm = [4.0] * 3
    best = train(read_config(words), build=lambda config: (peer, processor))
    reloaded = type(peer).from_pretrained(best)
    assert not torch.equal(next(reloaded.parameters()), next(type(peer)(peer.config).parameters()))

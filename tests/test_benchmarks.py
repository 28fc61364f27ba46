"""The benchmark scripts run, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    small = ["--epochs", "1", "--crop-size", "[32, 32, 32]", "--crops-per-case", "1", "--subsets", "[flair]"]
    places = ["--data", str(dummy_root), "--out", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache")]
    rows = run_script("compare_adapters.py", *places, *small, "--num-workers", "0", "--tracker", "none")
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == [
        "base, not fitted",
        "lora, rank 8",
        "lora, rank 16",
        "lora, rank 8, DoRA",
        "lora, rank 8, and Conv3d",
        "lora+decoder, rank 8",
        "all weights",
    ]

"""The reference run learns what it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_longer_run_overfits_the_four_dummy_cases(tmp_path: Path) -> None:
    # The threshold below was measured on these cases.
    run("phantom", ["--root", str(tmp_path / "data"), "--n", "4", "--seed", "1000000"])
    config = str(ROOT / "configs/brats2018.yaml")
    options = [
        "--data",
        str(tmp_path / "data"),
        "--cache-dir",
        str(tmp_path / "cache"),
        "--val-on-train",
        "true",
        "--subsets",
        "[all]",
        # At the rate of the configuration 40 epochs end at .898.
        "--lr",
        "1.0e-3",
    ]
    run("train", ["--config", config, "--output-dir", str(tmp_path / "run"), *options])
    paths = ["--checkpoint", str(tmp_path / "run/best"), "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    run("evaluate", [*paths, "--subsets", "all"])
    rows = json.loads((tmp_path / "table.json").read_text())["summary"]
    (mean,) = (
        row["mean"] for row in rows if (row["subset"], row["region"], row["metric"]) == ("mean", "mean", "dice")
    )
    assert mean >= 0.9

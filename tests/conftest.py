"""Made-up cases and a run, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_moe_hgd.cli import run


@pytest.fixture(scope="session")
def dummy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled phantoms on a coarse grid, `case_000` to `case_002`."""
    root = tmp_path_factory.mktemp("dummy") / "brats2018"
    run("phantom", ["--root", str(root), "--n", "3", "--spacing-mm", "4"])
    return root

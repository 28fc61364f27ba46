"""Made-up cases and a Hub on loopback, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server.server import LocalHub
from small_runs import save_small_checkpoint, ship_small_network

from lora_moe_hgd_cli import run


@pytest.fixture(scope="session")
def dummy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled phantoms on a coarse grid, `case_000` to `case_002`."""
    root = tmp_path_factory.mktemp("dummy") / "brats2018"
    run("phantom", ["--root", str(root), "--n", "3", "--spacing-mm", "4"])
    return root


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub with the users `me` and `guest`; `hub.requests` has a line for each request."""
    requests: list[str] = []
    tokens = {"me": "hf_me", "guest": "hf_guest"}
    with LocalHub(tmp_path_factory.mktemp("hub"), users=tokens, log=requests.append) as running:
        running.requests = requests
        yield running


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of random weights with its processor for voxels of 4 mm, in a folder called `tiny`."""
    return save_small_checkpoint(tmp_path_factory.mktemp("shipped") / "tiny")


@pytest.fixture(scope="module")
def small_shipped(small_checkpoint: Path) -> Iterator[None]:
    """The name `tiny` means the small network, where what the weights are worth does not matter."""
    with ship_small_network(small_checkpoint):
        yield

"""Made-up cases and a Hub on loopback, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server.server import LocalHub
from small_runs import save_shipped, shipping

from lora_moe_hgd_cli import run

# Files that take long. Each runs on one worker, where its tests share what they have made. Started last, one of them
# would keep a worker busy alone.
LONG = (
    *(
        "test_distributed.py",
        "test_app.py",
        "test_hub_server.py",
        "test_resume.py",
        "test_cohort.py",
        "test_adapters.py",
    ),
    *("test_docs.py", "test_evaluate.py", "test_training.py", "test_readme.py", "test_training_continue.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long files first."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def dummy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled phantoms on a coarse grid, `case_000` to `case_002`."""
    root = tmp_path_factory.mktemp("dummy") / "brats2018"
    # Thresholds of tests were measured on these cases.
    run("phantom", ["--root", str(root), "--n", "3", "--spacing-mm", "4", "--seed", "1000000"])
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
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DICOM files of a study with T1c, a sagittal FLAIR and a localiser. Tests do not change them."""
    # Only now, because most tests need no packages for DICOM.
    from small_scans import write_study

    folder = tmp_path_factory.mktemp("dicom")
    write_study(folder)
    return folder


@pytest.fixture
def quickened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparation without what takes seconds."""
    from small_scans import quicken

    quicken(monkeypatch)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of what is shipped: a small network of random weights, and a small adapter over it."""
    return save_shipped(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="module")
def small_shipped(small_weights: Path) -> Iterator[None]:
    """The names of what is shipped mean a small network, where what the weights are worth does not matter."""
    with shipping(small_weights):
        yield

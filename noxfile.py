"""Tests in other environments than the pinned one: the oldest and the newest packages, and official programs: `nox`.

The floor is what pyproject.toml says, so that it is tested and not guessed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

HUB_SUITE = [
    f"tests/test_{name}.py"
    for name in ("auto_classes", "pipeline", "modeling", "image_processing", "push", "hub_server", "adapters")
]
WITH_A_FLOOR = ("transformers", "peft", "accelerate", "huggingface_hub", "datasets")


def floors() -> list[str]:
    """The lowest version of each package that files of a repository depend on, such as `peft==0.19.0`."""
    dependencies = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(dependency.split(",")[0].split(">=") for dependency in dependencies)
    return [f"{name}=={lowest[name]}" for name in WITH_A_FLOOR]


@nox.session(python="3.11")
def floor(session: nox.Session) -> None:
    """The oldest packages."""
    session.install(".[test]", *floors())
    session.run("pytest", *HUB_SUITE, *session.posargs)


@nox.session(python=["3.11", "3.13"])
def newest(session: nox.Session) -> None:
    """The newest packages, on the oldest and the newest Python."""
    session.install("--upgrade", "--upgrade-strategy", "eager", ".[test]")
    session.run("pytest", *HUB_SUITE, *session.posargs)


@nox.session(python="3.11")
def official_metrics(session: nox.Session) -> None:
    """Lesion-wise scores against the official program of BraTS 2026 and panoptica.

    `brats-evaluation` is under AGPL-3.0, so it is no dependency of the package or of its extras.
    """
    session.install(".[test]", "brats-evaluation==0.0.10", "panoptica==2.1.7")
    session.run("pytest", "tests/test_official_metrics.py", *session.posargs)

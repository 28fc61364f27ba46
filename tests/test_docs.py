"""Every code block of the pages that show how to use, fine-tune and publish runs, in the order of the page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from commands import MAKE_DATA, ROOT, execute, execute_cheaply, workspace
from small_runs import shipping


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the data have been made and an adapter has been fitted."""
    folder = workspace(tmp_path_factory.mktemp("workspace"))
    execute_cheaply(MAKE_DATA, folder)
    return folder


def run_page(page: str, folder: Path, **variables: str) -> None:
    """The commands of a page, then its Python as one program."""
    for block in blocks(page, "bash"):
        for command in block.splitlines():
            execute_cheaply(command, folder, **variables)
    program = folder / "program.py"
    program.write_text("\n".join(blocks(page, "python")))
    execute(f"python {program}", folder, **variables)


def test_every_page_is_run() -> None:
    shown = {path.name for path in (ROOT / "docs").glob("*.md") if re.search("```(bash|python)", path.read_text())}
    assert shown == {"use.md", "evaluate.md", "train.md", "finetune.md", "publish.md", "tasks.md", "export.md"}


def test_the_page_on_use_runs(used: Path, small_weights: Path) -> None:
    # The README is run with the weights that are shipped.
    with shipping(small_weights):
        run_page("use.md", used)
    assert (used / "outputs/use/seg.nii.gz").is_file()
    assert (used / "segmentation.nii.gz").is_file()


def test_the_page_on_evaluation_runs(used: Path, small_weights: Path) -> None:
    with shipping(small_weights):
        run_page("evaluate.md", used)
    assert (used / "outputs/comparison/comparison.csv").is_file()


@pytest.mark.slow
def test_the_page_on_export_runs(used: Path, small_weights: Path) -> None:
    with shipping(small_weights):
        run_page("export.md", used)
    assert (used / "exported/two.nii.gz").is_file()


@pytest.mark.slow
def test_the_page_on_training_runs(used: Path) -> None:
    run_page("train.md", used)
    assert (used / "checkpoints/curves.png").is_file()


@pytest.mark.slow
def test_the_page_on_adapters_runs(used: Path) -> None:
    run_page("finetune.md", used)
    assert (used / "outputs/merged/model.safetensors").is_file()


@pytest.mark.slow
def test_the_page_on_publishing_runs(used: Path, hub) -> None:
    assert (used / "runs/lora_finetune/best/adapter").is_dir(), "The page on adapters makes what this one publishes."
    run_page("publish.md", used, **hub.environment("me"))
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=used / "outputs/pulled")
    assert done.returncode == 0

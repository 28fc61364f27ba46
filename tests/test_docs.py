"""Every code block of the pages that show how to use, fine-tune and publish runs, in the order of the page."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import symtable
import sys
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
from commands import MAKE_DATA, ROOT, execute, execute_cheaply, workspace
from small_runs import shipping
from small_scans import write_study

from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.label_schemes import label_scheme

MAKE_DATA_IN_DOCS = "lora-moe-hgd phantom --root data/brats2018 --n 4"


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
    assert shown == {
        "use.md",
        "evaluate.md",
        "train.md",
        "finetune.md",
        "publish.md",
        "tasks.md",
        "tutorial.md",
        "export.md",
        "scans.md",
    }


PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_where_its_inputs_come_from(page: Path) -> None:
    """The page names the command that makes the cases. What a block takes from another one is named before it."""
    text = page.read_text()
    commands = "\n".join(blocks(page.name, "bash") + blocks(page.name, "python"))
    assert "data/brats2018" not in commands or MAKE_DATA_IN_DOCS in text
    for before, block in re.findall(r"([^\n]*)\n+```python\n(.*?)```", text, re.DOTALL):
        names = symtable.symtable(block, page.name, "exec").get_symbols()
        taken = {name.get_name() for name in names if not (name.is_assigned() or name.is_imported())}
        for name in taken - set(dir(builtins)):
            assert f"`{name}`" in before, f"{name} in\n{block}"


def test_the_command_of_the_docs_makes_the_cases_of_the_readme(tmp_path: Path) -> None:
    folders = []
    for command in (MAKE_DATA, MAKE_DATA_IN_DOCS):
        (tmp_path / f"{len(folders)}").mkdir()
        folders.append(workspace(tmp_path / f"{len(folders)}"))
        execute_cheaply(command.replace("--n 4", "--n 1"), folders[-1])
    first, second = (
        {path.name: path.read_bytes() for path in (folder / "data/brats2018/case_000").iterdir()} for folder in folders
    )
    assert first == second


def test_the_tutorial_runs(used: Path, small_weights: Path) -> None:
    with shipping(small_weights):
        run_page("tutorial.md", used)
    for folder in ("first", "without_t1c", "mine"):
        assert (used / "outputs" / folder / "overlay.png").is_file()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    """A page outside the navigation, a missing page and a dead link stop the build."""
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=600)
    assert "lora-moe-hgd segment" in (tmp_path / "reference/commands/index.html").read_text()
    assert "brats2023" in (tmp_path / "reference/label_schemes/index.html").read_text()
    # A link to a page in another folder stays a link. A link to a file outside the site becomes its name.
    assert 'href="../../use/"' in (tmp_path / "reference/results/index.html").read_text()
    assert "<code>lab/2026-11-27.md</code> in the repository" in (tmp_path / "failures/index.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?https?://", page.read_text()), page


def test_the_page_on_use_runs(used: Path, small_weights: Path) -> None:
    # The README is run with the weights that are shipped.
    with shipping(small_weights):
        run_page("use.md", used)
    assert (used / "outputs/use/seg.nii.gz").is_file()
    assert (used / "segmentation.nii.gz").is_file()


def test_the_page_on_evaluation_runs(used: Path, small_weights: Path) -> None:
    # nnU-Net's output: label maps beside files about the run.
    (used / "nnunet_output").mkdir()
    (used / "nnunet_output/predict_from_raw_data_args.json").write_text("{}")
    for case in find_cases(used / "data/brats2018"):
        truth = read_case(case, labels=True).checked()
        labels = label_scheme("brats2023").encode(truth.regions)
        image = nib.Nifti1Image(labels, truth.settled.affine)
        nib.save(image, used / "nnunet_output" / f"{case.case_id}.nii.gz")
    (used / "published.csv").write_text(*blocks("evaluate.md", "csv"))
    with shipping(small_weights):
        run_page("evaluate.md", used)
    assert (used / "outputs/comparison/comparison.csv").is_file()
    assert (pd.read_csv(used / "outputs/nnunet_adapted/comparison.csv")["first"] == 1).all()
    published = pd.read_csv(used / "outputs/published_adapted/comparison.csv").set_index(["subset", "region"])
    assert published.loc[("mean", "wt"), "first"] == pytest.approx((0.912 + 0.887) / 2)
    assert published["cases"].to_dict()[("mean", "et")] == 1


def test_the_page_on_images_from_the_scanner_runs(used: Path, small_weights: Path, quickened: None) -> None:
    write_study(used / "data/dicom")
    with shipping(small_weights):
        run_page("scans.md", used)
    assert (used / "outputs/scan/seg.dcm").is_file()
    assert (used / "outputs/prepared/seg.nii.gz").is_file()


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

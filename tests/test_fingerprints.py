"""Fingerprints: they differ whenever anything differs that counts, and only then."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lora_moe_hgd import fingerprints
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.fingerprints import case_fingerprint, code_fingerprint, file_fingerprint, fingerprint
from lora_moe_hgd.training.data import datasets


@pytest.fixture
def case(tmp_path: Path) -> CaseFiles:
    folder = tmp_path / "here/case"
    folder.mkdir(parents=True)
    paths = {name: folder / f"{name}.nii.gz" for name in ("t1", "flair", "seg")}
    for name, path in paths.items():
        path.write_bytes(name.encode())
    return CaseFiles("case", folder, "plain", ("msd",), {"t1": paths["t1"], "flair": paths["flair"]}, paths["seg"])


def replaced(path: Path, content: bytes) -> None:
    """Replace a file by one of the same time."""
    state = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_file_of_equal_size_and_time_is_another_file_if_its_content_is(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"before")
    first, state = file_fingerprint(path), path.stat()
    replaced(path, b"behind")
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert file_fingerprint(path) != first
    replaced(path, b"before")
    path.touch()
    assert file_fingerprint(path) == first


@pytest.mark.parametrize(
    "change",
    [
        {"label_schemes": ("brats2018",)},
        {"label_schemes": ("msd", "brats2018")},
        {"channels": {"t1": 0, "flair": 1}},
        {"channels": {"t1": 1, "flair": 0}},
        {"segmentation": None},
    ],
    ids=str,
)
def test_a_case_read_in_another_way_is_another_case(case: CaseFiles, change: dict) -> None:
    assert case_fingerprint(replace(case, **change), labels=True) != case_fingerprint(case, labels=True)


def test_the_order_of_channels_counts(case: CaseFiles) -> None:
    orders = ({"t1": 0, "flair": 1}, {"t1": 1, "flair": 0})
    assert len({case_fingerprint(replace(case, channels=order), labels=True) for order in orders}) == 2


def test_each_file_of_a_case_and_its_role_count(case: CaseFiles) -> None:
    first = case_fingerprint(case, labels=True)
    swapped = {"t1": case.images["flair"], "flair": case.images["t1"]}
    assert case_fingerprint(replace(case, images=swapped), labels=True) != first
    assert case_fingerprint(case.only(["t1"]), labels=True) != first
    for path in (*case.images.values(), case.labelled()):
        content = path.read_bytes()
        replaced(path, content[::-1])
        assert case_fingerprint(case, labels=True) != first
        replaced(path, content)
    assert case_fingerprint(case, labels=True) == first


def test_labels_count_only_where_they_are_read(case: CaseFiles) -> None:
    first = case_fingerprint(case, labels=False)
    case.labelled().write_bytes(b"other")
    assert case_fingerprint(case, labels=False) == first


def test_a_case_that_was_moved_or_renamed_is_the_same(case: CaseFiles) -> None:
    first = case_fingerprint(case, labels=True)
    there = case.folder.parent.rename(case.folder.parent.with_name("there")) / "case"
    images = {name: there / path.name for name, path in case.images.items()}
    moved = CaseFiles("other", there, "plain", ("msd",), images, there / "seg.nii.gz")
    assert case_fingerprint(moved, labels=True) == first


def test_the_version_counts_in_every_fingerprint(case: CaseFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (fingerprint(), case_fingerprint(case, labels=True), code_fingerprint.__wrapped__("lora_moe_hgd.files"))
    monkeypatch.setattr(fingerprints, "version", lambda name: "99")
    after = (fingerprint(), case_fingerprint(case, labels=True), code_fingerprint.__wrapped__("lora_moe_hgd.files"))
    assert not set(before) & set(after)


SOURCES = {
    "top": "from .wing.first import one\n",
    "wing/first": "from . import second\nfrom ..deep import *\ndef one():\n  'What it does.'\n  return second.two()\n",
    "wing/second": "import os\ndef two():\n    return os.sep\n",
    "deep": "def three():\n    import toy.last\n",
    "last": "four = 4\n",
    "other": "five = 5\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "toy"
    for name, source in {**SOURCES, "wing/__init__": "", "__init__": "from . import other\n"}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.setattr(fingerprints, "_PACKAGE_FOLDER", folder)
    monkeypatch.setattr(fingerprints, "_PACKAGE", "toy")
    return folder


def test_code_counts_wherever_a_module_imports_it_from(package: Path) -> None:
    first = code_fingerprint.__wrapped__("toy.top")
    for name, source in SOURCES.items():
        (package / f"{name}.py").write_text(source + "six = 6\n")
        assert (code_fingerprint.__wrapped__("toy.top") == first) == (name == "other"), name
        (package / f"{name}.py").write_text(source)


def test_comments_docstrings_and_formatting_do_not_count(package: Path) -> None:
    first = code_fingerprint.__wrapped__("toy.top")
    path = package / "wing/first.py"
    source = SOURCES["wing/first"].replace("What it does.", "Other words.")
    path.write_text(source.replace("second.two()", "(  # Why.\n        second.two()\n    )"))
    assert code_fingerprint.__wrapped__("toy.top") == first


def test_prepared_cases_depend_on_the_code_that_reads_normalises_and_makes_them_and_on_no_other() -> None:
    modules = {name.removeprefix("lora_moe_hgd.") for name in fingerprints._code_of([datasets.__name__])}
    reads = ("cases.nifti", "cases.reading", "training.data.datasets")
    makes = tuple(f"phantoms.{name}" for name in ("anatomy", "contrast", "brain_maps", "noise", "phantom", "tumour"))
    normalises = ("image_processing_lora_moe_hgd", "case_rules", "brain", "grids", "geometry", "label_schemes")
    assert modules >= {*reads, *makes} | {f"model.{name}" for name in normalises}
    assert {name.partition(".")[0] for name in modules} <= {
        *("cases", "phantoms", "training", "model", "files", "fingerprints", "sequence_names")
    }

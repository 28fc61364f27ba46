"""The cases of a run: split as the options say, and refused before any long work."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from small_runs import ROOT, small_run

from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.fingerprints import images_fingerprint
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.splits import Split, read_run_split, read_split
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.data.datasets import CaseDataset
from lora_moe_hgd.training.sources import RunData, build_data

BRATS_AFRICA = ROOT.parent / "shared/data/brats-africa"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def data_of(root: Path, cache: Path, *options: str) -> RunData:
    words = ["--config", str(ROOT / "configs/brats2018.yaml"), "--data", str(root), "--num-workers", "0"]
    config = read_config([*words, "--cache-dir", str(cache), *options])
    return build_data(config, LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)), show=True)


def ids(data: RunData) -> Split:
    train, validation = (
        [source[index]["case_id"] for index in range(len(source))] for source in (data.train, data.validation)
    )
    return Split(train, validation)


def split_file(folder: Path, **roles: str) -> str:
    path = folder / "roles.csv"
    path.write_text("\n".join(["case,role", *(f"{case},{role}" for case, role in roles.items())]))
    return str(path)


def test_each_case_validates_in_one_of_the_folds(dummy_root: Path, cache: Path) -> None:
    folds = [data_of(dummy_root, cache, "--folds", "3", "--fold", str(fold)) for fold in range(3)]
    assert sorted(case for data in folds for case in data.split.validation) == ["case_000", "case_001", "case_002"]
    for data in folds:
        assert ids(data) == data.split
        assert len(data.split.train) == 2


def test_a_split_file_decides_and_unused_cases_are_said(dummy_root: Path, cache: Path, tmp_path: Path, capsys) -> None:
    path = split_file(tmp_path, case_002="fit", case_000="validate")
    data = data_of(dummy_root, cache, "--split-file", path)
    assert ids(data) == data.split == Split(train=["case_002"], validation=["case_000"])
    shown = capsys.readouterr().out
    assert f"The split file {path} leaves out 1 case of {dummy_root}: case_001." in shown
    assert "The run uses 1 case for training and 1 for validation." in shown


def test_the_order_of_a_split_file_does_not_matter(dummy_root: Path, cache: Path, tmp_path: Path) -> None:
    path = split_file(tmp_path, case_002="fit", case_000="fit", case_001="validate")
    assert data_of(dummy_root, cache, "--split-file", path).split.train == ["case_000", "case_002"]


def test_a_case_of_a_split_file_that_is_not_there_is_an_error_before_any_case_is_read(
    dummy_root: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.delattr(CaseDataset, "_preprocess")
    path = split_file(tmp_path, case_000="fit", case_001="validate", case_777="fit", case_888="incomplete")
    with pytest.raises(
        BadInputError, match=f"{path}: The split uses cases that {dummy_root} does not contain: case_777"
    ):
        data_of(dummy_root, tmp_path / "cache", "--split-file", path)


def test_a_bad_case_that_a_split_file_does_not_use_is_no_error(dummy_root: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(dummy_root, tmp_path / "data")
    (tmp_path / "data/case_001/seg.nii.gz").unlink()
    path = split_file(tmp_path, case_000="fit", case_002="validate")
    assert data_of(tmp_path / "data", cache, "--split-file", path).split == Split(["case_000"], ["case_002"])
    with pytest.raises(ValueError, match=r"cannot be used \(errors: 1\)"):
        data_of(tmp_path / "data", cache)


def test_a_part_without_usable_cases_is_refused(dummy_root: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(dummy_root, tmp_path / "data")
    (tmp_path / "data/case_001/seg.nii.gz").unlink()
    path = split_file(tmp_path, case_000="fit", case_001="validate")
    with pytest.raises(ValueError, match=r"No usable case is left for training or for validation in .*split"):
        data_of(tmp_path / "data", cache, "--split-file", path, "--skip-bad", "true")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--folds", "4", "--fold", "0"],
            "only 3 usable cases, but training needs at least 4 cases. Each of the 4 folds",
        ),
        (
            ["--val-fraction", "0.5"],
            "only 1 usable case, but training needs at least 2 cases. At least one case must be for training",
        ),
    ],
)
def test_too_few_cases_are_refused(
    dummy_root: Path, cache: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    root = dummy_root
    if "3 usable" not in reason:
        root = tmp_path / "data"
        shutil.copytree(dummy_root / "case_000", root / "case_000")
    with pytest.raises(ValueError, match=reason):
        data_of(root, cache, *options)


def test_a_run_records_its_cases_and_another_takes_them(dummy_root: Path, cache: Path, tmp_path: Path) -> None:
    common = ["--data", str(dummy_root), "--phantoms", "0", "--val-phantoms", "null", "--subsets", "[t1]"]
    small_run(tmp_path / "run", cache, *common, "--folds", "3", "--fold", "1", "--seed", "5")
    split = read_run_split(tmp_path / "run")
    assert (len(split.train), len(split.validation)) == (2, 1)
    assert split.contents == {case.case_id: images_fingerprint(case) for case in find_cases(dummy_root)}
    with open(tmp_path / "run/split.csv") as file:
        assert {(row["part"], row["fold"]) for row in csv.DictReader(file)} == {("train", "1"), ("validation", "1")}
    assert data_of(dummy_root, cache, "--split-file", str(tmp_path / "run/split.csv")).split == split


@pytest.mark.skipif(not BRATS_AFRICA.is_dir(), reason="The real cases are not there.")
def test_the_split_of_a_real_cohort_is_read() -> None:
    path = BRATS_AFRICA / "split.csv"
    there = {folder.name for folder in BRATS_AFRICA.iterdir() if folder.is_dir()}
    whole = read_split(path, None)
    assert whole.validation == [f"BraTS-SSA-{number}-000" for number in ("00041", "00046", "00047")]
    folds = [read_split(path, fold) for fold in range(1, 6)]
    assert sorted(case for fold in folds for case in fold.validation) == sorted(whole.train)
    assert {case for fold in folds for case in fold.train} <= there

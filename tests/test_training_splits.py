"""Which cases train and which validate: drawn, read from a file, recorded, and read again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.splits import Split, draw_fold, draw_split, read_run_split, read_split, write_run_split

CASES = [f"case_{number:03d}" for number in range(11)]
# As in BraTS-Africa's `split.csv`: roles, folds of the cases to fit, and a column of its own.
ROLES = """case,role,fold,bits
a,fit,1,16
b,fit,1,8
c,fit,2,16
d,validate,,16
e,incomplete,,16
"""


def written(tmp_path: Path, text: str, name: str = "split.csv") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_every_case_validates_in_exactly_one_fold_and_folds_are_equally_large() -> None:
    splits = [draw_fold(CASES, seed=3, folds=4, fold=fold) for fold in range(4)]
    assert Counter(case for split in splits for case in split.validation) == Counter(CASES)
    assert {len(split.validation) for split in splits} == {2, 3}
    for split in splits:
        assert sorted(split.train + split.validation) == CASES


def test_the_seed_alone_decides_what_is_drawn() -> None:
    assert draw_fold(CASES, seed=1, folds=5, fold=2) == draw_fold(CASES, seed=1, folds=5, fold=2)
    assert draw_fold(CASES, seed=1, folds=5, fold=2) != draw_fold(CASES, seed=2, folds=5, fold=2)
    assert draw_split(CASES, seed=1, val_fraction=0.3) != draw_split(CASES, seed=2, val_fraction=0.3)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.3, 3), (0.999, 10)])
def test_a_share_of_the_cases_validates_but_never_none_nor_all(fraction: float, count: int) -> None:
    split = draw_split(CASES, seed=0, val_fraction=fraction)
    assert len(split.validation) == count
    assert sorted(split.train + split.validation) == CASES


def test_roles_say_what_trains_and_validates_and_others_are_not_touched(tmp_path: Path) -> None:
    assert read_split(written(tmp_path, ROLES), None) == Split(train=["a", "b", "c"], validation=["d"])


def test_a_fold_of_the_fit_cases_validates_in_place_of_the_validation_cases(tmp_path: Path) -> None:
    path = written(tmp_path, ROLES)
    assert read_split(path, 1) == Split(train=["c"], validation=["a", "b"])
    assert read_split(path, 2) == Split(train=["a", "b"], validation=["c"])


def test_a_file_of_a_spreadsheet_program_is_read(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ROLES.replace("\n", "\r\n").encode())
    assert read_split(path, None) == Split(train=["a", "b", "c"], validation=["d"])


def test_the_folds_of_nnunet_are_counted_from_zero(tmp_path: Path) -> None:
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    path = written(tmp_path, json.dumps(folds), "splits_final.json")
    assert read_split(path, 0) == Split(train=["a", "b"], validation=["c"])
    assert read_split(path, 1) == Split(train=["c"], validation=["a", "b"])


def test_the_split_of_a_run_is_read_as_it_was_written_and_chooses_that_of_another(tmp_path: Path) -> None:
    split = Split(train=["a", "c, with a comma"], validation=["b"], contents={"a": "0f", "b": "1e"})
    write_run_split(tmp_path, split, fold=None)
    assert (tmp_path / "split.csv").read_text().splitlines()[:2] == ["case,part,content", "a,train,0f"]
    assert read_run_split(tmp_path).contents == split.contents
    assert read_run_split(tmp_path) == read_split(tmp_path / "split.csv", None) == split
    write_run_split(tmp_path, split, fold=4)
    assert (tmp_path / "split.csv").read_text().splitlines()[:2] == ["case,part,content,fold", "a,train,0f,4"]
    assert read_run_split(tmp_path) == split


def test_a_split_without_contents_as_earlier_versions_wrote_is_read(tmp_path: Path) -> None:
    written(tmp_path, "case,part\na,train\nb,validation\n")
    found = read_run_split(tmp_path)
    assert (found, found.contents) == (Split(["a"], ["b"]), {})


def test_a_run_that_validates_on_what_it_trains_on_records_both(tmp_path: Path) -> None:
    split = Split(train=["a", "b"], validation=["a", "b"])
    write_run_split(tmp_path, split, fold=None)
    assert read_run_split(tmp_path) == split


def test_a_run_on_phantoms_alone_has_no_cases(tmp_path: Path) -> None:
    write_run_split(tmp_path, Split([], []), fold=None)
    assert read_run_split(tmp_path) == Split([], [])


def test_a_folder_without_a_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=rf"{tmp_path}: The folder has no split\.csv"):
        read_run_split(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "fold", "message"),
    [
        ("s.csv", "name,role\na,fit\n", None, r"case and role\. The columns of this file are: name, role\."),
        ("s.csv", "case,fold\na,1\n", 1, r"case and role\. The columns of this file are: case, fold\."),
        ("s.csv", "", None, r"case and role\. The columns of this file are: none\."),
        (
            "s.csv",
            "case,role\na,fit\nb,validate\n",
            1,
            r"the column fold\. The columns of this file are: case, role\.",
        ),
        ("s.csv", ROLES, 3, r"has no fold 3\. Choose one of its folds: 1, 2\."),
        ("s.csv", ROLES + "a,fit,2,16\n", None, r"lists a more than once"),
        ("s.csv", "case,role\na,fit\n", None, r"has no case for validation\."),
        ("s.csv", "case,role,fold\na,fit,1\n", 1, r"has no case for training in fold 1\."),
        ("s.csv", "case,part,fold\na,train,1\nb,validation,1\n", 1, r"so it has no folds\. Leave out `data\.fold`"),
        ("s.json", "[", None, r"not valid JSON .*\. Give the `splits_final\.json` of nnU-Net, or a CSV file\."),
        ("s.json", '{"train": []}', 0, r"a list with .* for each fold"),
        ("s.json", '[{"train": ["a"]}]', 0, r"a list with .* for each fold"),
        (
            "s.json",
            '[{"train": ["a"], "val": ["b"]}]',
            None,
            r"No fold was chosen\. Choose one of the folds of this file with --fold 0 to 0\.",
        ),
        ("s.json", '[{"train": ["a"], "val": ["b"]}]', 1, r"has no fold 1\. Choose one of its folds: 0 to 0\."),
        ("s.json", '[{"train": ["a", "b"], "val": ["b"]}]', 0, r"both training and validation in fold 0: b\."),
    ],
)
def test_a_file_that_says_too_little_is_refused(
    tmp_path: Path, name: str, text: str, fold: int | None, message: str
) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(BadInputError, match=message) as refused:
        read_split(path, fold)
    assert refused.value.finding.where == path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no such split file\. Check the path"):
        read_split(tmp_path / "none.csv", None)

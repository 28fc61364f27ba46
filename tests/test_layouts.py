"""Finding cases by file name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_moe_hgd.data.layouts import find_case, find_cases
from lora_moe_hgd.data.nifti import BadInputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (("T1.nii.gz", "T1c.nii.gz", "T2.nii.gz", "FLAIR.nii.gz", "seg.nii.gz"), "msd"),
        (("T1.npy", "T1c.npy", "T2.npy", "FLAIR.npy", "seg.npy"), "msd"),
        (tuple(f"Brats18_X_1_{end}.nii.gz" for end in ("t1", "t1ce", "t2", "flair", "seg")), "brats2018"),
        (tuple(f"BraTS2021_00006_{end}.nii" for end in ("T1", "t1ce", "t2", "FLAIR", "seg")), "brats2018"),
        (tuple(f"BraTS-GLI-00002-000-{end}.nii.gz" for end in ("t1n", "t1c", "t2W", "t2f", "seg")), "brats2023"),
    ],
    ids=["plain", "npy", "2018", "upper case", "2023"],
)
def test_each_family_gives_its_sequences_and_scheme(tmp_path: Path, names: tuple[str, ...], scheme: str) -> None:
    case = find_case(touch(tmp_path / "case", *names))
    assert [path.name for path in case.images.values()] == list(names[:4])
    assert list(case.images) == ["t1", "t1c", "t2", "flair"]
    assert case.labelled().name == names[4]
    assert case.label_scheme == scheme


def test_an_incomplete_case_has_what_is_there(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path / "a", "x-t1n.nii.gz", "x-t1c.nii.gz", "notes.txt"))
    assert list(case.images) == ["t1", "t1c"]
    with pytest.raises(BadInputError, match="must hold a segmentation"):
        case.labelled()


def test_two_families_in_one_folder_are_refused_with_their_files(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"one naming family, got x-t2f.nii.gz, x_flair.nii.gz"):
        find_case(touch(tmp_path / "a", "x_flair.nii.gz", "x-t2f.nii.gz"))


def test_one_sequence_twice_is_refused_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"one file for flair, got x_flair.nii, x_flair.nii.gz"):
        find_case(touch(tmp_path / "a", "x_flair.nii.gz", "x_flair.nii"))


def test_a_folder_without_sequences_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"at least one sequence.*\*_t1ce.*\*-t2f"):
        find_case(touch(tmp_path / "a", "mask.nii.gz"))
    with pytest.raises(BadInputError, match="must be the folder of a case, got nothing there"):
        find_case(tmp_path / "b")


def test_cases_below_a_root_come_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        touch(tmp_path / name, "T1.nii.gz")
    touch(tmp_path / "no_case", "readme.txt")
    assert [case.case_id for case in find_cases(tmp_path)] == ["a", "b", "c"]
    assert [case.case_id for case in find_cases(tmp_path / "a")] == ["a"]


def test_a_root_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="must hold case folders"):
        find_cases(tmp_path)

"""Finding cases by file name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_moe_hgd.data.case_files import given_case
from lora_moe_hgd.data.findings import BadInputError
from lora_moe_hgd.data.layouts import find_case, find_cases, survey


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
        (tuple(f"BraTS-PED-00002-000-{end}.nii.gz" for end in ("t1n", "t1c", "t2w", "t2f", "seg")), "ped2024"),
        (
            tuple(f"VSD.Brain.XX.O.{end}.54512.nii" for end in ("MR_T1", "MR_T1c", "MR_T2", "MR_Flair", "OT")),
            "brats2015",
        ),
        (("T1.nii", "T1c.nii", "T2.nii", "Flair.nii", "OTMultiClass.nii"), "brats2015"),
        (
            tuple(
                f"TCGA-02-0003_1997.06.08_{end}.nii.gz"
                for end in ("t1", "t1Gd", "t2", "flair", "GlistrBoost_ManuallyCorrected", "GlistrBoost")
            ),
            "brats2018",
        ),
        (tuple(f"UPENN-GBM-00001_11_{end}.nii.gz" for end in ("T1", "T1GD", "T2", "FLAIR", "segm")), "brats2018"),
        (
            tuple(
                f"UCSF-PDGM-0004_{end}.nii.gz"
                for end in ("T1", "T1c", "T2", "FLAIR", "tumor_segmentation", "T1_bias", "T1c_bias", "ADC", "SWI_bias")
            ),
            "brats2018",
        ),
    ],
    ids=[
        *("plain", "npy", "2018", "upper case", "2023", "PED", "2015", "2015 renamed", "TCGA", "UPENN", "UCSF"),
    ],
)
def test_each_family_gives_its_sequences_and_scheme(tmp_path: Path, names: tuple[str, ...], scheme: str) -> None:
    case = find_case(touch(tmp_path / "case", *names))
    assert [path.name for path in case.images.values()] == list(names[:4])
    assert list(case.images) == ["t1", "t1c", "t2", "flair"]
    assert case.labelled().name == names[4]
    assert case.label_schemes[0] == scheme


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
    with pytest.raises(BadInputError, match=r"at least one sequence.*\*-t1c.*\*_t1ce"):
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


def test_the_family_is_the_one_that_explains_every_file(tmp_path: Path) -> None:
    """T1, T2 and FLAIR alone are called alike in four families."""
    for number, prefix in enumerate(("BraTS20_Training_001", "TCGA-02-0003_1997", "UPENN-GBM-00001_11")):
        case = find_case(touch(tmp_path / str(number), f"{prefix}_t1.nii.gz", f"{prefix}_flair.nii.gz"))
        assert case.layout == ("BraTS 2017 to 2021", "TCGA", "UPENN-GBM")[number]
    with pytest.raises(BadInputError, match=r"one naming family, got TCGA-1_t1ce.nii.gz, TCGA-1_t1gd.nii.gz"):
        find_case(touch(tmp_path / "mixed", "TCGA-1_t1ce.nii.gz", "TCGA-1_t1gd.nii.gz"))


def test_a_segmentation_of_upenn_is_found_in_its_own_folder(tmp_path: Path) -> None:
    folder = touch(tmp_path / "images_structural/UPENN-GBM-00001_11", "UPENN-GBM-00001_11_T1GD.nii.gz")
    automated = touch(tmp_path / "automated_segm", "UPENN-GBM-00001_11_automated_approx_segm.nii.gz")
    assert find_case(folder).labelled() == next(automated.iterdir())
    corrected = touch(tmp_path / "images_segm", "UPENN-GBM-00001_11_segm.nii.gz")
    assert find_case(folder).labelled() == next(corrected.iterdir())


def test_cases_lie_up_to_three_folders_deep_each_once(tmp_path: Path) -> None:
    touch(tmp_path / "HGG/b", "b_t1.nii.gz")
    touch(tmp_path / "LGG/part/a", "a_t1.nii.gz")
    (tmp_path / "HGG/back").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "HGG")
    assert sorted(case.case_id for case in find_cases(tmp_path)) == ["a", "b"]


def test_a_folder_beside_cases_whose_names_are_unknown_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "images_structural/p1", "p1_t1.nii.gz")
    touch(tmp_path / "images_structural/p2", "t1c_post.nii.gz")
    # Neither beside the cases nor with volumes.
    touch(tmp_path / "images_segm", "p1_segm.nii.gz")
    touch(tmp_path / "images_structural/notes", "readme.txt")
    cases, findings = survey(tmp_path)
    assert [case.case_id for case in cases] == ["p1"]
    assert [(finding.where.name, finding.level) for finding in findings] == [("p2", "error")]
    assert "must hold at least one sequence" in findings[0].message


def test_two_cases_of_one_name_are_refused_with_their_places(tmp_path: Path) -> None:
    touch(tmp_path / "HGG/a", "a_t1.nii.gz")
    touch(tmp_path / "LGG/a", "a_t1.nii.gz")
    with pytest.raises(BadInputError, match=r"must hold one case called a, got .*HGG/a, .*LGG/a"):
        find_cases(tmp_path)


def test_a_survey_goes_on_after_a_case_that_is_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path / "a", "x_t1.nii.gz", "x-t1n.nii.gz")
    touch(tmp_path / "b", "x_t1.nii.gz")
    cases, findings = survey(tmp_path)
    assert [case.case_id for case in cases] == ["b"]
    assert [(finding.where, finding.level) for finding in findings] == [(tmp_path / "a", "error")]


def test_of_cases_apart_those_to_train_with_are_meant_and_else_those_without_labels(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTs", "BRATS_003.nii.gz", "BRATS_004.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path)] == ["BRATS_003", "BRATS_004"]
    touch(tmp_path / "imagesTr", "BRATS_001.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path)] == ["BRATS_001"]


def test_files_given_one_by_one_make_a_case_whatever_they_are_called(tmp_path: Path) -> None:
    touch(tmp_path, "brain 7.nii.gz", "scan.nii")
    case = given_case({"flair": tmp_path / "scan.nii", "t1c": tmp_path / "brain 7.nii.gz"})
    assert list(case.images) == ["t1c", "flair"]
    assert (case.case_id, case.label_schemes, case.segmentation) == ("brain 7", (), None)

"""Finding cases by file name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lora_moe_hgd.cases.case_files import given_case, namings
from lora_moe_hgd.cases.layouts import find_case, find_cases, survey
from lora_moe_hgd.cases.naming import said_otherwise
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.task import BRAIN_TUMOUR


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
        (
            tuple(
                f"PatientID_0003_Timepoint_1_{end}.nii.gz"
                for end in ("brain_t1n", "brain_t1c", "brain_t2w", "brain_t2f", "tumorMask")
            ),
            "gli2024",
        ),
        (
            tuple(
                f"UCSD-PTGBM-0002_01_{end}.nii.gz"
                for end in ("T1pre", "T1post", "T2", "FLAIR", "BraTS_tumor_seg", "total_cellular_tumor_seg", "SWAN")
            ),
            "gli2024",
        ),
    ],
    ids=[
        *("plain", "npy", "2018", "upper case", "2023", "PED", "2015", "2015 renamed", "TCGA", "UPENN", "UCSF", "MU"),
        "UCSD",
    ],
)
def test_each_naming_convention_gives_its_sequences_and_scheme(
    tmp_path: Path, names: tuple[str, ...], scheme: str
) -> None:
    case = find_case(touch(tmp_path / "case", *names))
    assert [path.name for path in case.images.values()] == list(names[:4])
    assert list(case.images) == ["t1", "t1c", "t2", "flair"]
    assert case.labelled().name == names[4]
    assert case.label_schemes[0] == scheme


@pytest.mark.parametrize(
    "names",
    [
        "t1_mprage_sag t1_mprage_gad ax_t2_tse ax_t2_flair",
        "T1_pre T1_post T2 FLAIR_axial",
        "P1_T1_in_flair P1_T1KM_to_flair P1_T2_to_flair P1_FLAIR",
        "T1 CT1 T2 FLAIR",
        "T1 T1GD T2 FLAIR",
        "sub-01_ses-02_T1w sub-01_ses-02_ce-gadolinium_T1w sub-01_ses-02_T2w sub-01_ses-02_FLAIR",
        "x-t1n x_t1ce x-t2w x_flair",
        # Of patients who are called as contrast is, and of a study after surgery.
        "KM_T1_tra KM_T1_GD KM_T2_tra KM_FLAIR_tra",
        "KM_t1 KM_t1ce KM_t2 KM_flair",
        "post_T1_tra post_T1_gad post_T2_tra post_FLAIR_tra",
    ],
)
def test_names_of_no_data_set_are_read_by_their_words(tmp_path: Path, names: str) -> None:
    files = [f"{name}.nii.gz" for name in names.split()]
    case = find_case(touch(tmp_path / "case", *files, "case.json"))
    assert {role: path.name for role, path in case.images.items()} == dict(
        zip(("t1", "t1c", "t2", "flair"), files, strict=True)
    )


def test_a_segmentation_read_by_words_tells_no_label_scheme(tmp_path: Path) -> None:
    names = ("sub-01_T1w.nii.gz", "sub-01_FLAIR.nii.gz", "sub-01_desc-tumor_dseg.nii.gz", "sub-01_desc-brain_mask.nii")
    case = find_case(touch(tmp_path / "a", *names))
    assert case.labelled().name == names[2]
    assert case.label_schemes == ()
    # As one case of BraTS 2020 is called.
    other = find_case(touch(tmp_path / "b", "BraTS20_Training_355_t1.nii", "W39_1998.09.19_Segm.nii"))
    assert other.labelled().name == "W39_1998.09.19_Segm.nii"


def test_other_images_are_left_out_and_kept_in_mind(tmp_path: Path) -> None:
    names = ("x_t1.nii.gz", "x_flair.nii.gz", "x_seg.nii.gz", "ADC.nii.gz", "x_brainmask.nii.gz", "tumor_mask.nii.gz")
    case = find_case(touch(tmp_path / "a", *names))
    assert case.layout == "BraTS 2017 to 2021"
    assert case.labelled().name == "x_seg.nii.gz"
    assert sorted(case.names_left_out()) == ["ADC.nii.gz", "tumor_mask.nii.gz", "x_brainmask.nii.gz"]
    assert case.mapping()[:2] == ["t1: x_t1.nii.gz", "flair: x_flair.nii.gz"]
    assert case.mapping()[2].startswith("not used because of their names: ADC.nii.gz, ")


def test_masks_that_end_as_sequences_are_no_sequences(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path / "a", *(f"{at}{name}.nii" for at in ("", "brainmask_") for name in ("t1", "t2"))))
    assert [path.name for path in case.images.values()] == ["t1.nii", "t2.nii"]
    for first in ("flair", "t1"):
        folder = touch(tmp_path / first, f"brainmask_{first}.nii", "brainmask_t2.nii")
        with pytest.raises(
            BadInputError, match=rf"No MRI sequence found. The folder contains: brainmask_{first}.nii, brainmask_t2"
        ):
            find_case(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("t1.nii.gz", "scan_7.nii.gz"),
        ("x_t1.nii.gz", "x_flair.nii.gz", "scan_7.nii.gz"),
        ("x_t1.nii.gz", "t1_t2_fused.nii.gz"),
        ("flair.nii.gz", "other_to_t1.nii.gz"),
        # Either a patient called so, or contrast.
        ("post_T2_tse.nii.gz", "post_T1_se.nii.gz"),
        ("post_t2.nii.gz", "post_t1.nii.gz"),
        ("KM_flair.nii.gz", "KM_t1.nii.gz"),
    ],
    ids=lambda names: names[-1],
)
def test_a_name_that_says_nothing_is_refused_with_the_remedy(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(
        BadInputError, match=r"The sequence of these files is unclear: .* Rename or remove these files\."
    ) as refused:
        find_case(touch(tmp_path / "a", *names))
    unknown, known = str(refused.value).split("(Recognised: ")
    assert names[-1] in unknown
    assert names[0] in known


def test_an_incomplete_case_has_what_is_there(tmp_path: Path) -> None:
    case = find_case(touch(tmp_path / "a", "x-t1n.nii.gz", "x-t1c.nii.gz", "notes.txt"))
    assert list(case.images) == ["t1", "t1c"]
    with pytest.raises(BadInputError, match="no ground truth"):
        case.labelled()


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (("x_flair.nii.gz", "x-t2f.nii.gz"), "flair"),
        (("x_flair.nii", "x_flair.nii.gz"), "flair"),
        (("TCGA-1_t1ce.nii.gz", "TCGA-1_t1gd.nii.gz"), "t1c"),
        (("T1.nii.gz", "T1_bet.nii.gz", "T2.nii.gz"), "t1"),
        (("100010_time1_t1.nii.gz", "100010_time2_t1.nii.gz"), "t1"),
        (("T1.nii.gz", "seg_auto.nii.gz", "seg_manual.nii.gz"), "the ground truth"),
    ],
)
def test_two_files_for_one_sequence_are_refused_with_both_names(
    tmp_path: Path, names: tuple[str, ...], role: str
) -> None:
    with pytest.raises(BadInputError, match=f"Several files may be {role}: ") as refused:
        find_case(touch(tmp_path / "a", *names))
    both = names[1:] if role == "the ground truth" else names[:2]
    assert all(name in str(refused.value).split(". Keep one")[0] for name in both)


@pytest.mark.parametrize(
    "names",
    [
        ("sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"),
        ("sub-01_T1w.nii.gz", "sub-02_FLAIR.nii.gz"),
        ("sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_FLAIR.nii.gz"),
        ("UPENN-GBM-00001_11_T1.nii.gz", "UPENN-GBM-00002_11_T2.nii.gz"),
        ("PatientID_0003_Timepoint_1_brain_t1c.nii.gz", "PatientID_0003_Timepoint_2_brain_t2f.nii.gz"),
    ],
)
def test_files_of_several_patients_are_never_one_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError, match=r"several patients or sessions: .*Put each patient and each session into"):
        find_case(touch(tmp_path / "a", *names))


def test_a_folder_without_sequences_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError,
        match=r"a: No MRI sequence found. The folder contains: a.nii.gz, b.nii.gz. Each file name must contain",
    ):
        find_case(touch(tmp_path / "a", "b.nii.gz", "a.nii.gz"))
    with pytest.raises(BadInputError, match=r"No MRI sequence found. The folder is empty. Give a"):
        find_case(touch(tmp_path / "b"))
    with pytest.raises(BadInputError, match=r"no such file or folder\. Check the path"):
        find_case(tmp_path / "c")


def test_cases_below_a_root_come_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        touch(tmp_path / name, "T1.nii.gz")
    touch(tmp_path / "no_case", "readme.txt")
    assert [case.case_id for case in find_cases(tmp_path)] == ["a", "b", "c"]
    assert [case.case_id for case in find_cases(tmp_path / "a")] == ["a"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"case_id": "p7"}', "p7"),
        ('{"case_id": "p7"}' + 1_000_000 * " ", "a"),
        ('{"case_id": "p7"', "a"),
        (100_000 * "[", "a"),
        ("{}", "a"),
    ],
    ids=["valid", "too large", "truncated", "nested too deep", "without a name"],
)
def test_a_prepared_case_keeps_its_name_if_its_record_is_valid(tmp_path: Path, text: str, name: str) -> None:
    (touch(tmp_path / "a", "T1.nii.gz") / "prepare.json").write_text(text)
    assert find_case(tmp_path / "a").case_id == name


def test_a_sequence_in_a_format_that_is_not_read_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "a", "T1.nii.gz", "T2.mha", "FLAIR.img", "FLAIR.hdr", "seg.nrrd")
    touch(tmp_path / "b", "T1.nii.gz", "T1.mgz", "ADC.mha", "notes.txt")
    touch(tmp_path / "c", "T1.mgz")
    cases, findings = survey(tmp_path)
    assert [case.case_id for case in cases] == ["b"]
    assert [finding.where for finding in findings] == [tmp_path / "a", tmp_path / "c"]
    assert "an unsupported format: FLAIR.hdr, FLAIR.img, T2.mha. Convert the files to NIfTI" in findings[0].message


def test_a_root_without_cases_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"No MRI sequence found. The folder is empty"):
        find_cases(tmp_path)
    touch(tmp_path / "p1", "ADC.nii.gz")
    with pytest.raises(BadInputError, match=r"No MRI sequence found. The folder contains: p1"):
        find_cases(tmp_path)
    touch(tmp_path / "p2", "a.nii.gz")
    _, findings = survey(tmp_path)
    assert [finding.where for finding in findings] == [tmp_path / "p2"]


def test_the_naming_convention_is_the_one_that_explains_every_file(tmp_path: Path) -> None:
    """T1, T2 and FLAIR alone are called alike in four conventions."""
    for number, prefix in enumerate(("BraTS20_Training_001", "TCGA-02-0003_1997", "UPENN-GBM-00001_11")):
        case = find_case(touch(tmp_path / str(number), f"{prefix}_t1.nii.gz", f"{prefix}_flair.nii.gz"))
        assert case.layout == ("BraTS 2017 to 2021", "TCGA", "UPENN-GBM")[number]


def test_the_corrected_segmentation_of_upenn_is_preferred(tmp_path: Path) -> None:
    ends = ("T1GD", "automated_approx_segm", "segm")
    case = find_case(touch(tmp_path / "a", *(f"UPENN-GBM-00001_11_{end}.nii.gz" for end in ends)))
    assert case.layout == "UPENN-GBM"
    assert case.labelled().name == "UPENN-GBM-00001_11_segm.nii.gz"
    assert case.names_left_out() == ["UPENN-GBM-00001_11_automated_approx_segm.nii.gz"]


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
    assert sorted(case.case_id for case in find_cases(tmp_path)) == ["HGG_b", "LGG_part_a"]


@pytest.mark.parametrize(
    ("files", "case", "scheme"),
    [
        (
            ("HGG/Brats18_A_1/Brats18_A_1_{}", "t1 t1ce t2 flair seg", "survival_data.csv"),
            "HGG_Brats18_A_1",
            "brats2018",
        ),
        (("BraTS2021_00000/BraTS2021_00000_{}", "t1 t1ce t2 flair seg", "notes.txt"), "BraTS2021_00000", "brats2018"),
        (
            ("BraTS-GLI-00000-000/BraTS-GLI-00000-000-{}", "t1n t1c t2w t2f seg", "notes.txt"),
            "BraTS-GLI-00000-000",
            "brats2023",
        ),
        (("{}/BRATS_001", "imagesTr labelsTr", "imagesTr/._BRATS_001.nii.gz"), "BRATS_001", "msd"),
    ],
    ids=["BraTS 2018", "BraTS 2021", "BraTS 2023", "Decathlon"],
)
def test_public_data_are_read_as_they_are_downloaded(
    tmp_path: Path, files: tuple[str, str, str], case: str, scheme: str
) -> None:
    pattern, words, other = files
    for name in (*(f"{pattern.format(word)}.nii.gz" for word in words.split()), other):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (found,) = find_cases(tmp_path)
    assert (found.case_id, found.label_schemes[0], [*found.images]) == (case, scheme, [*MODALITIES])
    assert found.labelled().is_file()


def test_a_case_is_called_by_its_path_from_the_root_on(tmp_path: Path) -> None:
    touch(tmp_path / "bids/sub-01/ses-01/anat", "sub-01_ses-01_T1w.nii.gz", "sub-01_ses-01_ce-gd_T1w.nii.gz")
    touch(tmp_path / "bids/sub-01/ses-02/anat", "sub-01_ses-02_T1w.nii.gz")
    touch(tmp_path / "bids/sub-02/anat", "sub-02_FLAIR.nii.gz")
    touch(tmp_path / "bids/sub-01/ses-01/dwi", "sub-01_ses-01_dwi.nii.gz")
    touch(tmp_path / "bids/sub-02/func", "sub-02_task-rest_noise.nii.gz")
    touch(tmp_path / "bids/derivatives/sub-01/anat", "sub-01_T1w.nii.gz")
    touch(tmp_path / "bids", "dataset_description.json")
    assert [case.case_id for case in find_cases(tmp_path / "bids")] == ["sub-01_ses-01", "sub-01_ses-02", "sub-02"]
    touch(tmp_path / "lumiere/Patient-1/week-000", "CT1.nii.gz", "T1.nii.gz")
    touch(tmp_path / "lumiere/Patient-1/week-000/seg/native", "seg_mask.nii.gz")
    touch(tmp_path / "lumiere/Patient-2/week-000", "CT1.nii.gz", "T1.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path / "lumiere")] == ["Patient-1_week-000", "Patient-2_week-000"]


def test_a_case_alone_and_a_link_keep_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = touch(tmp_path / "store/case_7", "T1.nii.gz")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/first").symlink_to(real)
    assert find_case(real).case_id == "case_7"
    assert find_case(tmp_path / "links/first").case_id == "first"
    assert [case.case_id for case in find_cases(tmp_path / "links")] == ["first"]
    session = touch(tmp_path / "sub-01/ses-02/anat", "sub-01_ses-02_T1w.nii.gz")
    assert find_case(session).case_id == "ses-02"
    assert find_cases(session.parent)[0].case_id == "ses-02"
    monkeypatch.chdir(real)
    assert find_case(Path()).case_id == "case_7"


@pytest.mark.parametrize(
    ("name", "case_id"), [(b"M\xfcller", "Müller"), ("Müller".encode(), "Müller"), (b"a\nb", "a_b")]
)
def test_the_name_of_a_case_can_be_written_whatever_its_folder_is_called(
    tmp_path: Path, name: bytes, case_id: str
) -> None:
    touch(tmp_path / os.fsdecode(name), "T1.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case.case_id == case_id
    assert case.case_id.isprintable()


def test_a_folder_beside_cases_whose_names_are_unknown_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "images_structural/p1", "p1_t1.nii.gz")
    touch(tmp_path / "images_structural/p2", "first.nii.gz")
    touch(tmp_path / "more/p3", "second.nii.gz")
    # Neither beside the cases nor with volumes.
    touch(tmp_path / "images_segm", "p1_segm.nii.gz")
    touch(tmp_path / "images_structural/notes", "readme.txt")
    cases, findings = survey(tmp_path)
    assert [case.case_id for case in cases] == ["images_structural_p1"]
    assert [(finding.where.name, finding.level) for finding in findings] == [("p2", "error"), ("p3", "error")]
    assert "No MRI sequence found. The folder contains: first.nii.gz" in findings[0].message


def test_cases_of_one_folder_name_below_different_parents_are_different(tmp_path: Path) -> None:
    touch(tmp_path / "HGG/a", "a_t1.nii.gz")
    touch(tmp_path / "LGG/a", "a_t1.nii.gz")
    assert [case.case_id for case in find_cases(tmp_path)] == ["HGG_a", "LGG_a"]


def test_two_cases_of_one_name_are_refused_with_their_places(tmp_path: Path) -> None:
    touch(tmp_path / "a/b_c", "x_t1.nii.gz")
    touch(tmp_path / "a_b/c", "x_t1.nii.gz")
    touch(tmp_path / "d", "x_t1.nii.gz")
    cases, findings = survey(tmp_path)
    assert [case.case_id for case in cases] == ["d"]
    assert f"2 cases would have the name a_b_c: {tmp_path}/a/b_c, {tmp_path}/a_b/c" in findings[0].message


def test_sequences_in_folders_of_their_own_are_not_one_case_each(tmp_path: Path) -> None:
    """As the Erasmus Glioma Database has them."""
    for name in ("1_T1", "2_T1GD", "5_MASK"):
        touch(tmp_path / f"EGD-0001/{name}/NIFTI", f"{name[2:]}.nii.gz")
    touch(tmp_path / "whole", "T1.nii.gz")
    for root in (tmp_path, tmp_path / "EGD-0001"):
        cases, findings = survey(root)
        assert [case.case_id for case in cases] == (["whole"] if root == tmp_path else [])
        assert [finding.where for finding in findings] == [tmp_path / "EGD-0001"]
        assert "Put the files of a case into one folder" in findings[0].message


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
    touch(tmp_path / "p", "brain 7.nii.gz", "scan.nii")
    case = given_case({"flair": tmp_path / "p/scan.nii", "t1c": tmp_path / "p/brain 7.nii.gz"})
    assert list(case.images) == ["t1c", "flair"]
    assert (case.case_id, case.label_schemes, case.segmentation) == ("p_brain 7", (), None)
    assert case.mapping() == ["t1c: brain 7.nii.gz", "flair: scan.nii"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("t1c X-t2f, flair X-t1c", {"t1c": "flair", "flair": "t1c"}),
        ("t1 p1_T1c, t1c p1_T1", {"t1": "t1c", "t1c": "t1"}),
        ("t1c T1", {"t1c": "t1"}),
        ("t1c t1_mprage_nativ", {"t1c": "t1"}),
        ("t2 ax_t2_flair", {"t2": "flair"}),
        ("t1 sub-01_ce-gd_T1w, t2 sub-01_T2w", {"t1": "t1c"}),
        # Right, silent or unclear names. `KM` is a patient here, although it is also a word for contrast agent.
        ("t1 X-t1n, t1c X-t1c, t2 X-t2w, flair X-t2f", {}),
        ("t1c brain 7, flair scan", {}),
        ("t1c t1_t2_fused, t2 ADC, flair lesion_mask", {}),
        ("t1c t1_mprage_sag", {}),
        ("t1 KM_T1, t1c KM_T1_post", {}),
        ("flair FLAIR_to_T1", {}),
    ],
)
def test_a_name_contradicts_the_sequence_it_was_given_for_only_if_it_is_clear(
    given: str, said: dict[str, str]
) -> None:
    words = (pair.split(" ", 1) for pair in given.split(", "))
    assert said_otherwise({sequence: Path(f"{name}.nii.gz") for sequence, name in words}) == said


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("p1/{}.nii.gz", "p1"),
        ("all/p1_{}.nii.gz", "all_p1"),
        ("p1/p1_{}.nii.gz", "p1"),
        ("all/{}_p1.nii.gz", "all_p1"),
        ("all/{}/p1.nii.gz", "all_p1"),
        ("sub-01/anat/sub-01_{}.nii.gz", "sub-01"),
        ("1/p12_{}.nii.gz", "1_p12"),
        ("all/KM_{}.nii.gz", "all_KM"),
    ],
)
def test_the_name_of_given_files_is_that_of_the_patient_whichever_sequences_are_given(
    place: str, name: str, tmp_path: Path
) -> None:
    words = {"t1": "T1w", "t1c": "T1_post", "t2": "axT2", "flair": "FLAIR"}
    files = {sequence: tmp_path / place.format(word) for sequence, word in words.items()}
    for some in (files, {"t1c": files["t1c"]}, {"flair": files["flair"]}):
        assert given_case(some).case_id == name
    # The sequences of a task of one's own have words of its own.
    task = replace(BRAIN_TUMOUR, name="ms", sequences={"flair": ("flair",), "qsm": ("chi",)})
    assert given_case({"qsm": tmp_path / place.format("chi")}, task).case_id == name


def test_a_cohort_is_told_in_a_line_for_each_way_of_naming(tmp_path: Path) -> None:
    for name in ("BraTS_1", "BraTS_2"):
        touch(tmp_path / name, *(f"{name}_{end}.nii.gz" for end in ("t1", "flair", "seg")))
    touch(tmp_path / "other", "p7_ax_T2.nii.gz", "p7_ADC.nii.gz")
    first = "2 cases: t1 *_t1.nii.gz, flair *_flair.nii.gz, seg *_seg.nii.gz"
    cases = find_cases(tmp_path)
    assert namings(cases) == [
        first,
        "1 case: t2 *_ax_T2.nii.gz; not used because of their names: *_ADC.nii.gz",
    ]
    # The commands write "files of" before each line.
    assert namings(cases, most=1) == [first, "1 other case: named in 1 other way"]


def test_an_order_of_channels_that_has_no_effect_is_refused(tmp_path: Path) -> None:
    for name in ("a/T1", "a/FLAIR", "b/T1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    for find, place in ((survey, tmp_path), (find_case, tmp_path / "a")):
        assert find(place)
        with pytest.raises(BadInputError, match=f"^{place}: The channel order t1,flair has no effect"):
            find(place, channel_order=("t1", "flair"))
    # Of a cohort with cases of both kinds it has one.
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x_0000.nii.gz").touch()
    assert len(survey(tmp_path, channel_order=("t1", "flair"))[0]) == 3

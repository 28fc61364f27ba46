"""Cases in files with four axes, and in numbered files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.cases.channels import parse_channel_order
from lora_moe_hgd.cases.layouts import find_case, find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.findings import BadInputError

# So large that few voxels make a brain.
AFFINE = np.diag([14.0, 14.0, 14.0, 1.0])


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, (5, 6, 7, 4)).astype(np.float32)


@pytest.fixture
def decathlon(tmp_path: Path, stack: np.ndarray) -> Path:
    """Two cases as task 1 of the Decathlon has them, and what its archive brings along."""
    root = tmp_path / "Task01_BrainTumour"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
        (root / folder / "._BRATS_001.nii.gz").write_bytes(b"left by an archive")
        for name in ("BRATS_001", "BRATS_002"):
            array = stack if folder == "imagesTr" else (stack[..., 0] > 110).astype(np.uint8)
            nib.save(nib.Nifti1Image(array, AFFINE), root / folder / f"{name}.nii.gz")
    return root


@pytest.fixture
def numbered(tmp_path: Path, stack: np.ndarray) -> Path:
    root = tmp_path / "Dataset137_BraTS2021"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for case in ("BraTS2021_00000", "BraTS2021_00002"):
        for channel in range(4):
            image = nib.Nifti1Image(stack[..., channel], AFFINE)
            nib.save(image, root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        labels = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), AFFINE)
        nib.save(labels, root / "labelsTr" / f"{case}.nii.gz")
    return root


def read_order(case, stack: np.ndarray) -> list[str]:
    """Name that was given to each channel of the stack."""
    images = read_case(case).images
    return [name for at in range(4) for name, image in images.items() if np.array_equal(image.dataobj, stack[..., at])]


def test_the_decathlon_has_flair_first_and_its_own_labels(decathlon: Path, stack: np.ndarray) -> None:
    cases = find_cases(decathlon)
    assert [case.case_id for case in cases] == ["BRATS_001", "BRATS_002"]
    assert read_order(cases[0], stack) == ["flair", "t1", "t1c", "t2"]
    assert cases[0].label_schemes == ("msd",)
    assert cases[1].labelled() == decathlon / "labelsTr/BRATS_002.nii.gz"
    assert find_case(decathlon / "imagesTr/BRATS_002.nii.gz") == cases[1]


def test_an_order_is_taken_from_the_command_line_then_from_the_dataset(numbered: Path, stack: np.ndarray) -> None:
    path = numbered / "imagesTr/BraTS2021_00002"
    names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    (numbered / "dataset.json").write_text(json.dumps({"channel_names": names}))
    assert read_order(find_case(path), stack) == ["t1", "t1c", "t2", "flair"]
    assert read_order(find_case(path, channel_order=("t1c", "t1", "flair", "t2")), stack) == [
        "t1c",
        "t1",
        "flair",
        "t2",
    ]
    (case, _) = find_cases(numbered)
    assert case.labelled() == numbered / "labelsTr/BraTS2021_00000.nii.gz"
    assert case.label_schemes == ()


def test_without_an_order_numbered_files_are_refused(numbered: Path) -> None:
    with pytest.raises(BadInputError, match=r"00000_0000.nii.gz.*--channel-order "):
        find_cases(numbered)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "The file is not valid JSON .* --channel-order"),
        ("[]", "does not give each number, counted from 0"),
        ('{"channel_names": {"1": "T1"}}', "does not give each number, counted from 0"),
        ('{"modality": ["T1"]}', "does not give each number, counted from 0"),
        (
            '{"modality": {"0": "CT"}}',
            "the same channel twice: CT. .*Correct the file, or add the option --channel-order t1,t1c",
        ),
        ('{"modality": {"0": "T1", "1": "T1w"}}', "an unknown channel, or the same channel twice: T1, T1w"),
    ],
)
def test_a_dataset_file_without_an_order_is_refused_by_name(numbered: Path, content: str, message: str) -> None:
    (numbered / "dataset.json").write_text(content)
    with pytest.raises(BadInputError, match=rf"dataset.json: .*{message}"):
        find_case(numbered / "imagesTr/BraTS2021_00002")


def test_a_stack_of_another_length_than_the_order_is_refused(decathlon: Path) -> None:
    case = find_case(decathlon / "imagesTr/BRATS_001.nii.gz", channel_order=("t1", "t2"))
    with pytest.raises(
        BadInputError, match=r"sequences in the channel order \(2\) differs from the number of volumes in the file \(4"
    ):
        read_case(case).checked()


def test_several_cases_in_a_folder_are_not_one(numbered: Path) -> None:
    with pytest.raises(BadInputError, match=r"several cases.*BraTS2021_00000, .*BraTS2021_00002"):
        find_case(numbered / "imagesTr")


@pytest.mark.parametrize("text", ["t1,t1", "t1,t3", ""])
def test_an_order_names_known_sequences_once(text: str) -> None:
    with pytest.raises(ValueError, match="each at most once"):
        parse_channel_order(text)


def test_an_order_with_another_name_of_a_sequence_says_the_name_to_use() -> None:
    with pytest.raises(ValueError, match=r"Got: flair,t1,T1CE,t2\. 't1ce' is named 't1c' here\."):
        parse_channel_order("flair,t1,T1CE,t2")


def test_sequences_named_in_words_and_numbered_by_date_are_read_by_their_words(tmp_path: Path) -> None:
    for name in ("t1_2019", "flair_2019"):
        (tmp_path / f"{name}.nii.gz").touch()
    case = find_case(tmp_path)
    assert [path.name for path in case.images.values()] == ["t1_2019.nii.gz", "flair_2019.nii.gz"]


def test_a_dataset_may_describe_its_channels_in_words(numbered: Path, stack: np.ndarray) -> None:
    names = {"0": "T2-FLAIR", "1": "T1-weighted", "2": "T1 post-contrast", "3": "T2w"}
    (numbered / "dataset.json").write_text(json.dumps({"channel_names": names}))
    case = find_case(numbered / "imagesTr/BraTS2021_00000")
    assert read_order(case, stack) == ["flair", "t1", "t1c", "t2"]


def test_numbered_files_beside_others_are_refused(numbered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    for name in ("x_0000", "x_0001", "seg"):
        (folder / f"{name}.nii.gz").touch()
    with pytest.raises(BadInputError, match=r"numbered sequences, but also other files: seg.nii.gz"):
        find_case(folder, channel_order=("t1", "t2"))


def test_two_files_of_one_stacked_case_are_refused(decathlon: Path) -> None:
    (decathlon / "imagesTr/BRATS_001.nii").touch()
    with pytest.raises(
        BadInputError, match=r"Several files have the name of this case: BRATS_001.nii.gz, BRATS_001.nii"
    ):
        find_cases(decathlon)

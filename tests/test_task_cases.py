"""Cases of a task of one's own: files by the words of the task, labels by its regions, and its own warnings."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from lora_moe_hgd.cases.check import check_cohort
from lora_moe_hgd.cases.layouts import find_case, find_cases
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.task import BRAIN_TUMOUR, Task, make_task
from lora_moe_hgd.sequence_names import role_in
from lora_moe_hgd.training.data.streams import StreamedCases
from lora_moe_hgd_cli import run

TEXT = """
name: stroke
target: infarct
sequences: {flair: null, dwi: [dwi, b1000]}
regions: {old: [1], new: [2]}
label_map: [lesion]
other_labels: [9]
without: {dwi: New infarcts show on DWI alone.}
"""
SHAPE = (24, 28, 20)
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


@pytest.fixture
def task() -> Task:
    return make_task(yaml.safe_load(TEXT), where="test")


def brain(seed: int) -> np.ndarray:
    volume = np.zeros(SHAPE, dtype=np.float32)
    volume[4:-4, 4:-4, 3:-3] = 100 + 20 * np.random.default_rng(seed).random((16, 20, 14))
    return volume


def make_case(folder: Path, names: dict[str, int], labels: str = "lesion") -> Path:
    folder.mkdir(parents=True)
    for name, seed in names.items():
        nib.save(nib.Nifti1Image(brain(seed), AFFINE), folder / f"{folder.name}_{name}.nii.gz")
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[6:10, 6:10, 6:10], label_map[12:14, 12:14, 6:8], label_map[14:16, 6:8, 6:8] = 1, 2, 9
    nib.save(nib.Nifti1Image(label_map, AFFINE), folder / f"{folder.name}_{labels}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("p1_DWI", "dwi"),
        ("p1-b1000", "dwi"),
        ("p1_t2_flair", "flair"),
        ("p1_t1c", "other"),
        ("p1_adc", "other"),
        ("p1_lesion", "seg"),
        ("p1_seg", "other"),
        ("p1_dwi_lesion", None),
        ("p1", None),
        ("sub-1_space-dwi_FLAIR", "flair"),
    ],
)
def test_words_of_the_task_name_a_file_then_the_built_in_ones(task: Task, name: str, role: str | None) -> None:
    assert role_in(task, name) == role


def test_a_case_has_the_sequences_and_labels_of_its_task(task: Task, tmp_path: Path) -> None:
    folder = make_case(tmp_path / "p1", {"t2f": 0, "dwi": 1, "t1c": 2})
    case = find_case(folder, task=task)
    assert list(case.images) == ["flair", "dwi"]
    assert [path.name for path in case.left_out] == ["p1_t1c.nii.gz"]
    reading = read_case(case, labels=True, task=task).checked()
    assert reading.scheme is not None
    assert reading.scheme.name == "stroke"
    assert reading.regions.sum(axis=(1, 2, 3)).tolist() == [64, 8]
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(5.0, 5.0, 5.0), task=task.to_dict())
    inputs = processor(reading.settled)
    assert inputs["pixel_values"].shape[1] == 2
    assert inputs["labels"].sum(dim=(0, 2, 3, 4)).tolist() == [64, 8]
    assert not any("T1c" in warning for warning in inputs["geometry"][0].warnings)


def test_a_processor_keeps_its_task_and_warns_as_it_says(task: Task, tmp_path: Path) -> None:
    LoraMoeHgdImageProcessor(task=task.to_dict(), target_spacing_mm=(5.0, 5.0, 5.0)).save_pretrained(tmp_path)
    processor = LoraMoeHgdImageProcessor.from_pretrained(tmp_path)
    assert processor.segmentation_task == task
    assert (processor.modalities, processor.label_scheme) == (["flair", "dwi"], "stroke")
    inputs = processor({"flair": brain(0)}, spacing_mm=5)
    assert "New infarcts show on DWI alone." in inputs["geometry"][0].warnings
    with pytest.raises(ValueError, match=r"Unknown sequence t1c\. The names are flair, dwi"):
        processor({"t1c": brain(0)}, spacing_mm=5)
    with pytest.raises(ValueError, match=r"`modalities` must be flair, dwi \(the sequences of the task\), got t1"):
        LoraMoeHgdImageProcessor(["t1"], task=task.to_dict())


def test_parts_that_are_left_out_of_a_region_stay_in_one_beside_it(task: Task) -> None:
    processor = LoraMoeHgdImageProcessor(task=task.to_dict(), least_part=0.5)
    probabilities = np.zeros((2, 10, 4, 4))
    probabilities[0, :4], probabilities[0, 8] = 1, 1
    probabilities[1, 8:] = 1
    old, new = processor.regions_of(probabilities)
    assert (old.any(axis=(1, 2)).sum(), new.any(axis=(1, 2)).sum()) == (4, 2)


def test_parts_that_are_left_out_of_a_region_are_left_out_of_those_inside_it() -> None:
    regions = {"whole": [1, 2, 3], "left": [1], "right": [2]}
    sequences = {"flair": None}
    nested = make_task({"name": "x", "target": "y", "sequences": sequences, "regions": regions}, where="test")
    processor = LoraMoeHgdImageProcessor(task=nested.to_dict(), least_part=0.5)
    probabilities = np.zeros((3, 10, 4, 4))
    probabilities[0, :4], probabilities[0, 8] = 1, 1
    probabilities[1, 8], probabilities[2, :2] = 1, 1
    whole, left, right = processor.regions_of(probabilities)
    assert (whole.any(axis=(1, 2)).sum(), left.any(), right.any(axis=(1, 2)).sum()) == (4, False, 2)


def test_check_reads_a_cohort_by_its_task(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "cohort/p1", {"t2f": 0, "dwi": 1})
    make_case(tmp_path / "cohort/p2", {"flair": 0})
    cohort = check_cohort(tmp_path / "cohort", task=task)
    assert cohort.counts()["sequences"] == {"flair": 2, "dwi": 1}
    assert cohort.counts()["label_schemes"] == {"stroke": 2}
    file = tmp_path / "task.yaml"
    file.write_text(TEXT)
    run("check", ["--in-path", str(tmp_path / "cohort"), "--task", str(file)])
    assert "sequences: flair 2, dwi 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("check", ["--in-path", str(tmp_path), "--task", str(file), "--label-scheme", "msd"])
    assert "no effect with --task" in capsys.readouterr().err


def test_a_dataset_has_a_column_for_each_sequence_of_the_task(task: Task, tmp_path: Path) -> None:
    folder = make_case(tmp_path / "data/train/p1", {"dwi": 1, "flair": 2})
    row = {"dwi_file_name": "p1/p1_dwi.nii.gz", "flair_file_name": None, "seg_file_name": "p1/p1_lesion.nii.gz"}
    (folder.parent / "metadata.jsonl").write_text(json.dumps(row))
    stream = StreamedCases(
        str(tmp_path / "data"),
        split="train",
        label_scheme=task.name,
        processor=LoraMoeHgdImageProcessor(target_spacing_mm=(5.0, 5.0, 5.0), task=task.to_dict()),
        cache_dir=tmp_path / "cache",
    )
    stream.prepare_all(num_workers=0, progress=False)
    assert stream[0]["modality_mask"].tolist() == [False, True]
    assert stream[0]["labels"].sum(dim=(1, 2, 3)).tolist() == [64, 8]


def test_a_folder_without_a_sequence_of_the_task_is_refused_with_its_names(task: Task, tmp_path: Path) -> None:
    folder = make_case(tmp_path / "p1", {"t1c": 0})
    with pytest.raises(BadInputError, match=r"Each file name must contain its sequence \(flair, dwi\)\."):
        find_case(folder, task=task)
    assert find_cases(make_case(tmp_path / "q/p2", {"t1c": 0}, "seg").parent, task=BRAIN_TUMOUR)


def test_numbered_files_are_read_in_an_order_of_the_task(task: Task, tmp_path: Path) -> None:
    for number in (0, 1):
        nib.save(nib.Nifti1Image(brain(number), AFFINE), tmp_path / f"p1_{number:04d}.nii.gz")
    case = find_case(tmp_path, channel_order=("dwi", "flair"), task=task)
    assert {name: path.name for name, path in case.images.items()} == {
        "flair": "p1_0001.nii.gz",
        "dwi": "p1_0000.nii.gz",
    }

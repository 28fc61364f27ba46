"""Cases and samples: the same whatever reads them, and how often."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forks import CONTEXT
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.training.data import datasets
from lora_moe_hgd.training.data.crops import SubsetCrops
from lora_moe_hgd.training.data.datasets import CaseDataset, MixedCases, PhantomDataset
from lora_moe_hgd.training.data.streams import StreamedCases
from lora_moe_hgd.training.schedule import draw_subset

PROCESSOR = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))


def cases(root: Path, cache_dir: Path) -> CaseDataset:
    return CaseDataset(find_cases(root), processor=PROCESSOR, cache_dir=cache_dir)


def crops(source, seed: int = 0) -> SubsetCrops:
    return SubsetCrops(source, crop_size=(32, 32, 32), crops_per_case=2, seed=seed, draw_subset=draw_subset)


def test_a_phantom_read_from_disk_is_the_one_that_was_made(tmp_path: Path) -> None:
    phantoms = PhantomDataset(2, seed=5, processor=PROCESSOR, cache_dir=tmp_path)
    phantoms.prepare_all(num_workers=0, progress=False)
    files = sorted(phantoms.folder.iterdir())
    written = [path.stat().st_mtime_ns for path in files]
    again = PhantomDataset(2, seed=5, processor=PROCESSOR, cache_dir=tmp_path)
    assert_close(again[1]["pixel_values"], phantoms[1]["pixel_values"], rtol=0, atol=0)
    assert [path.stat().st_mtime_ns for path in files] == written
    assert [path.name for path in files] == ["5.safetensors", "6.safetensors"]


@pytest.mark.parametrize(
    "setting", [{"target_spacing_mm": (3.9, 3.9, 3.9)}, {"intensity_clip": 5.0}, {"modalities": ("t1c", "flair")}]
)
def test_other_settings_do_not_meet_old_phantoms(setting: dict, tmp_path: Path) -> None:
    other = LoraMoeHgdImageProcessor(**{"target_spacing_mm": PROCESSOR.target_spacing_mm, **setting})
    folders = {
        PhantomDataset(1, seed=0, processor=processor, cache_dir=tmp_path).folder for processor in (PROCESSOR, other)
    }
    assert len(folders) == 2


def test_the_processor_of_a_checkpoint_finds_the_phantoms_of_its_base(tmp_path: Path) -> None:
    copy.deepcopy(PROCESSOR).save_pretrained(tmp_path / "checkpoint")
    trained = LoraMoeHgdImageProcessor.from_pretrained(tmp_path / "checkpoint")
    # It says where its code is.
    assert trained.to_dict() != PROCESSOR.to_dict()
    trained.least_part, trained.label_scheme = 0.5, "msd"
    folders = {
        PhantomDataset(1, seed=0, processor=processor, cache_dir=tmp_path).folder for processor in (PROCESSOR, trained)
    }
    assert len(folders) == 1


def test_a_prepared_case_is_not_read_from_its_files_again(dummy_root: Path, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "data"
    shutil.copytree(dummy_root, root)
    first = cases(root, tmp_path)
    # Workers are forked from a process that has imported torch; what they are given is pickled all the same.
    monkeypatch.setattr("multiprocessing.get_context", lambda method: CONTEXT)
    first.prepare_all(num_workers=2, progress=False)
    expected = [first[index] for index in range(len(first))]
    monkeypatch.delattr(datasets, "read_case")
    again = cases(root, tmp_path)
    for index, case in enumerate(expected):
        for name in ("pixel_values", "modality_mask", "labels"):
            assert_close(again[index][name], case[name], rtol=0, atol=0)
    # A file of equal size and time but with other content is read.
    path = root / "case_001/T2.nii.gz"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(BadInputError, match="read_case"):
        cases(root, tmp_path)[1]


def test_prepared_cases_are_not_taken_from_another_version_or_code(
    dummy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places() -> list[Path]:
        phantoms = PhantomDataset(1, seed=0, processor=PROCESSOR, cache_dir=tmp_path)
        return [phantoms._kept_at(0), cases(dummy_root, tmp_path)._kept_at(0)]

    found = places()
    monkeypatch.setattr(datasets, "code_fingerprint", lambda *modules: "of other code")
    found += places()
    monkeypatch.setattr(datasets, "version", lambda name: "99")
    found += places()
    assert len(set(found)) == 6


def test_files_are_read_once_for_a_run_and_not_once_an_epoch(dummy_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(dummy_root, root)
    prepared = cases(root, tmp_path)
    prepared.prepare_all(num_workers=0, progress=False)
    shutil.rmtree(root)
    assert prepared.without([0])[1]["case_id"] == "case_002"


def test_a_case_that_changed_during_a_run_is_not_taken_for_the_one_that_was(dummy_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(dummy_root / "case_000", root / "case_000")
    prepared = cases(root, tmp_path)
    prepared.prepare_all(num_workers=0, progress=False)
    prepared._kept_at(0).unlink()
    shutil.copy(dummy_root / "case_001/T1.nii.gz", root / "case_000/T1.nii.gz")
    with pytest.raises(BadInputError, match="case_000: Files of this case have changed since the run began"):
        prepared[0]
    assert not prepared._kept_at(0).exists()


def without_tumours(root: Path) -> None:
    """Make all label maps empty, so that the same is odd about every case."""
    for path in root.rglob("seg.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)


def test_what_is_odd_about_each_case_is_printed_in_every_run(dummy_root: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(dummy_root, tmp_path / "data")
    without_tumours(tmp_path / "data")
    expected = [f"warning: case_{number:03d}: label map: The label map contains no tumour." for number in range(3)]
    for _ in range(2):
        cases(tmp_path / "data", tmp_path).prepare_all(num_workers=0, progress=True)
        said = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
        assert [line for line in said if "warning" in line] == expected
    # Also of a case that is prepared on demand.
    shutil.rmtree(tmp_path / "data/case_000")
    _ = cases(tmp_path / "data", tmp_path / "elsewhere")[1]
    assert capsys.readouterr().err.splitlines() == expected[2:]


def test_a_file_that_cannot_be_read_is_a_finding_of_its_case(dummy_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(dummy_root, root)
    (root / "case_001/T2.nii.gz").unlink()
    (root / "case_001/T2.nii.gz").symlink_to(tmp_path / "nowhere")
    (number, finding), *others = cases(root, tmp_path).prepare_all(num_workers=0, progress=False).items()
    assert (number, finding.where, others) == (1, root / "case_001/T2.nii.gz", [])


def test_a_prepared_case_is_what_the_processor_gives(dummy_root: Path, tmp_path: Path) -> None:
    case = find_cases(dummy_root)[1]
    inputs = PROCESSOR(case.images, segmentation_maps=case.segmentation, label_scheme=case.label_schemes[0])
    prepared = cases(dummy_root, tmp_path)[1]
    # Half precision.
    assert_close(prepared["pixel_values"], inputs["pixel_values"][0], rtol=1e-3, atol=1e-4)
    assert_close(prepared["labels"], inputs["labels"][0], rtol=0, atol=0)


def test_a_case_on_disk_has_nested_labels_on_the_images_grid(dummy_root: Path, tmp_path: Path) -> None:
    case = cases(dummy_root, tmp_path)[0]
    assert case["labels"].shape[1:] == case["pixel_values"].shape[1:]
    assert case["modality_mask"].tolist() == [True] * 4
    whole, core, enhancing = case["labels"]
    assert whole.any()
    assert (core <= whole).all()
    assert (enhancing <= core).all()


def test_a_sample_depends_on_seed_epoch_and_number_only(dummy_root: Path, tmp_path: Path) -> None:
    source = cases(dummy_root, tmp_path)
    dataset = crops(source)
    dataset.begin_epoch(3, progress=0.5)
    alone = [dataset[index] for index in reversed(range(len(dataset)))][::-1]
    torch.rand(7)
    for number, sample in enumerate(DataLoader(dataset, batch_size=None, num_workers=2)):
        for name in alone[number]:
            assert_close(sample[name], alone[number][name], rtol=0, atol=0)
    dataset.begin_epoch(4, progress=0.5)
    assert not torch.equal(dataset[0]["pixel_values"], alone[0]["pixel_values"])
    other = crops(source, seed=1)
    other.begin_epoch(3, progress=0.5)
    assert not torch.equal(other[0]["pixel_values"], alone[0]["pixel_values"])


def test_dropped_sequences_are_empty_in_a_sample(dummy_root: Path, tmp_path: Path) -> None:
    dataset = crops(cases(dummy_root, tmp_path))
    dataset.begin_epoch(0, progress=0.9)
    samples = [dataset[index] for index in range(len(dataset))]
    assert any(not sample["modality_mask"].all() for sample in samples)
    for sample in samples:
        assert not sample["pixel_values"][~sample["modality_mask"]].any()


@pytest.mark.parametrize("name", ["pixel_values", "labels", "modality_mask"])
def test_samples_stack_to_batches(dummy_root: Path, tmp_path: Path, name: str) -> None:
    dataset = crops(cases(dummy_root, tmp_path))
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert len(batch[name]) == 3


@pytest.fixture
def dataset_root(dummy_root: Path, tmp_path: Path) -> Path:
    """The dummy cases as a `datasets` folder; the second lacks T2."""
    root = tmp_path / "dataset"
    shutil.copytree(dummy_root, root / "train")
    rows = []
    for number, folder in enumerate(sorted((root / "train").iterdir())):
        if number == 1:
            (folder / "T2.nii.gz").unlink()
        files = {name: folder / f"{name}.nii.gz" for name in ("T1", "T1c", "T2", "FLAIR", "seg")}
        names = {name: f"{folder.name}/{path.name}" if path.is_file() else None for name, path in files.items()}
        rows.append({f"{name.lower()}_file_name": value for name, value in names.items()})
    (root / "train/metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def streamed(root: Path, cache_dir: Path) -> StreamedCases:
    found = StreamedCases(str(root), split="train", label_scheme="msd", processor=PROCESSOR, cache_dir=cache_dir)
    found.prepare_all(num_workers=0, progress=False)
    return found


def test_a_streamed_dataset_gives_the_cases_of_its_folders(dataset_root: Path, tmp_path: Path) -> None:
    folders = cases(dataset_root / "train", tmp_path / "folders")
    stream = streamed(dataset_root, tmp_path / "streamed")
    assert len(stream) == len(folders) > 1
    for index in range(len(folders)):
        for name in ("pixel_values", "modality_mask", "labels"):
            assert_close(stream[index][name], folders[index][name], rtol=0, atol=0)
    assert not stream[1]["modality_mask"][2]
    # A case is recognised by its images, whatever it is called.
    assert list(stream.contents().values()) == list(folders.contents().values())


def test_what_is_odd_about_each_case_of_a_stream_is_printed_in_every_run(
    dataset_root: Path, tmp_path: Path, capsys
) -> None:
    without_tumours(dataset_root)
    for _ in range(2):
        stream = StreamedCases(
            str(dataset_root), split="train", label_scheme="msd", processor=PROCESSOR, cache_dir=tmp_path
        )
        stream.prepare_all(num_workers=0, progress=True)
        said = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
        assert [line for line in said if "warning" in line] == [
            f"warning: {dataset_root}[{number}]: label map: The label map contains no tumour." for number in range(3)
        ]


def test_a_file_of_a_dataset_that_changed_is_read_again(dataset_root: Path, tmp_path: Path) -> None:
    before = streamed(dataset_root, tmp_path)
    shutil.copy(dataset_root / "train/case_000/FLAIR.nii.gz", dataset_root / "train/case_000/T1.nii.gz")
    after = streamed(dataset_root, tmp_path)
    assert before.kept[1:] == after.kept[1:]
    assert not torch.equal(before[0]["pixel_values"], after[0]["pixel_values"])


def test_a_case_of_a_stream_that_the_cache_lost_is_filled_in_with_itself(dataset_root: Path, tmp_path: Path) -> None:
    stream = streamed(dataset_root, tmp_path)
    expected = stream[1]
    stream._kept_at(1).unlink()
    for name in ("pixel_values", "modality_mask", "labels"):
        assert_close(stream[1][name], expected[name], rtol=0, atol=0)


def test_a_case_of_a_stream_that_changed_and_was_lost_is_refused(dataset_root: Path, tmp_path: Path) -> None:
    stream = streamed(dataset_root, tmp_path)
    stream._kept_at(1).unlink()
    shutil.copy(dataset_root / "train/case_000/T1.nii.gz", dataset_root / "train/case_001/T1.nii.gz")
    with pytest.raises(ValueError, match=r"Case number 1 of .* has changed since the run began"):
        stream[1]
    assert not stream._kept_at(1).exists()


def test_a_bad_case_of_a_stream_is_named_by_its_number(dataset_root: Path, tmp_path: Path) -> None:
    metadata = dataset_root / "train/metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[1]["seg_file_name"] = None
    metadata.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"Case number 1 of .* has no segmentation"):
        streamed(dataset_root, tmp_path)


def test_a_dataset_without_segmentations_is_refused(dataset_root: Path, tmp_path: Path) -> None:
    metadata = dataset_root / "train/metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("seg_file_name", "mask_file_name"))
    with pytest.raises(ValueError, match=r"must have the column seg and at least one of the columns"):
        streamed(dataset_root, tmp_path)


@pytest.mark.parametrize(("numbers", "share"), [((3, 10), 0.5), ((10, 3), 0.2), ((1, 1), 0.75)])
def test_a_mixture_keeps_its_shares_and_leaves_no_case_out(numbers: tuple[int, int], share: float) -> None:
    sources = [[f"{name}{index}" for index in range(number)] for name, number in zip("ab", numbers, strict=True)]
    mixed = MixedCases(sources, [1 - share, share])
    drawn = [mixed[index] for index in range(len(mixed))]
    assert set(drawn) == {case for source in sources for case in source}
    assert abs(sum(case.startswith("b") for case in drawn) - share * len(drawn)) <= 1

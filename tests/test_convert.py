"""Any naming convention and label scheme into any other, and back, exactly."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.cases.convert import BY_KEY, TARGETS
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.cases.nifti import read_image, read_stack
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.training.data.streams import StreamedCases
from lora_moe_hgd_cli import run

# Name of a case that a naming convention needs.
BEGINS = {"brats-ped": "BraTS-PED-", "tcga": "TCGA-", "upenn-gbm": "UPENN-GBM-", "ucsf-pdgm": "UCSF-PDGM-"}
BEGINS |= {"brats2015": "VSD.Brain", "mu-glioma-post": "PatientID_", "ucsd-ptgbm": "UCSD-PTGBM-"}
AFFINE = np.array([[-3.6, 0.4, 0, 60.5], [0.4, 3.6, 0, -41], [0, 0, 6, 12.25], [0, 0, 0, 1]])


def make_case(folder: Path, *, scheme: str = "msd", lacking: str = "", seed: int = 0) -> None:
    """A small oblique case of integers, with every label of the scheme's regions."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    brain = np.zeros((28, 24, 20), dtype=bool)
    brain[2:26, 2:22, 2:18] = True
    regions = np.zeros((3, *brain.shape), dtype=bool)
    for region, edge in zip(regions, (8, 6, 4), strict=True):
        region[8 : 8 + edge, 8 : 8 + edge, 8 : 8 + edge] = True
    for name, stem in {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}.items():
        if name != lacking:
            voxels = np.where(brain, draw.integers(50, 150, brain.shape), 0) + 400 * (regions[2] & (name == "t1c"))
            image = nib.Nifti1Image(voxels.astype(np.int16), AFFINE)
            image.header.set_xyzt_units("mm")
            nib.save(image, folder / f"{stem}.nii.gz")
    nib.save(nib.Nifti1Image(LABEL_SCHEMES[scheme].encode(regions), AFFINE), folder / "seg.nii.gz")


def convert(source: Path, target: Path, *words: str) -> None:
    run("convert", [str(source), str(target), *words])


def refused(source: Path, target: Path, *words: str, code: int) -> None:
    """Convert, which must end with this exit code."""
    with pytest.raises(SystemExit) as stopped:
        convert(source, target, *words)
    assert stopped.value.code == code


def files_in(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def voxels_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.mark.parametrize("key", TARGETS)
def test_there_and_back_is_the_same_case(key: str, tmp_path: Path) -> None:
    name = f"{BEGINS.get(key, 'case_')}7"
    make_case(tmp_path / "in" / name)
    words = ["--scheme", "brats2018"] if key == "nnunet" else []
    run("convert", [str(tmp_path / "in"), str(tmp_path / "there"), "--layout", key, *words])
    (there,) = find_cases(tmp_path / "there")
    back = ["--label-scheme", "brats2018"] if key == "nnunet" else []
    run("convert", [str(tmp_path / "there"), str(tmp_path / "back"), "--layout", "plain", *back])
    (back,) = (tmp_path / "back").glob("*/")
    if key in BY_KEY:
        assert there.layout == BY_KEY[key].name
        assert there.case_id == name
    for stem in ("T1", "T1c", "T2", "FLAIR", "seg"):
        first, last = nib.load(tmp_path / "in" / name / f"{stem}.nii.gz"), nib.load(back / f"{stem}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(first.dataobj), np.asanyarray(last.dataobj))
        assert first.get_data_dtype() == last.get_data_dtype()
        np.testing.assert_allclose(first.affine, last.affine, atol=1e-6)
        for field in ("qform_code", "sform_code"):
            assert first.header[field] == last.header[field]


@pytest.mark.parametrize("scheme", list(LABEL_SCHEMES))
def test_regions_survive_every_scheme(scheme: str, tmp_path: Path) -> None:
    make_case(tmp_path / "in/case")
    words = ["--layout", "nnunet", "--scheme", scheme]
    run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), *words])
    before, (after,) = find_cases(tmp_path / "in")[0], find_cases(tmp_path / "out")
    found = read_case(after.in_scheme(scheme), labels=True).checked()
    np.testing.assert_array_equal(found.regions, read_case(before, labels=True).checked().regions)
    written = set(np.unique(voxels_of(after.labelled())).tolist())
    assert written == {0, *LABEL_SCHEMES[scheme].written.values()}


def test_what_the_target_cannot_tell_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "in/BraTS-GLI-1", scheme="gli2024")
    run("convert", [str(tmp_path / "in"), str(tmp_path / "gli"), "--layout", "brats2023", "--label-scheme", "gli2024"])
    path = tmp_path / "gli/BraTS-GLI-1/BraTS-GLI-1-seg.nii.gz"
    labels = voxels_of(path).copy()
    labels[20:22, 4:6, 4:6] = 4
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    with pytest.raises(SystemExit) as stopped:
        run("convert", [str(tmp_path / "gli"), str(tmp_path / "out"), "--layout", "brats2018"])
    assert stopped.value.code == 1
    assert "of gli2024" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/"))
    run("convert", [str(tmp_path / "gli"), str(tmp_path / "same"), "--layout", "brats2023", "--scheme", "gli2024"])
    np.testing.assert_array_equal(voxels_of(tmp_path / "same/BraTS-GLI-1/BraTS-GLI-1-seg.nii.gz"), labels)


def test_a_case_that_lacks_a_sequence_cannot_be_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case_1", lacking="t2")
    make_case(tmp_path / "in/case_2")
    with pytest.raises(SystemExit) as stopped:
        run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "decathlon"])
    assert stopped.value.code == 1
    assert "This case lacks t2, but a file with four axes needs flair, t1, t1c, t2." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/imagesTr").iterdir()] == ["BRATS_001.nii.gz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "nnunet"], "The layout nnunet has no usual label scheme. Choose a label scheme with --scheme"),
        (["--layout", "plain", "--scheme", "brats2018"], "always read with the label scheme msd"),
        (["--layout", "plain", "--target-order", "t1,t2"], "--target-order has an effect only with --layout nnunet"),
    ],
)
def test_a_target_that_could_not_be_read_back_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    make_case(tmp_path / "in/case")
    with pytest.raises(SystemExit) as stopped:
        run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_that_does_not_fit_the_convention_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "in/case")
    with pytest.raises(SystemExit):
        run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "tcga"])
    assert "The case case cannot be written as TCGA: its name must begin with TCGA-." in capsys.readouterr().err


def test_a_second_start_writes_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        make_case(tmp_path / f"in/case_{number}", seed=number)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "brats2023"]
    run("convert", words)
    shutil.rmtree(tmp_path / "out/case_1")
    kept = tmp_path / "out/case_0/case_0-t1n.nii.gz"
    before = kept.stat().st_mtime_ns
    run("convert", words)
    assert (
        f"Cases written to {tmp_path}/out: 1. Cases that existed already: 2. Cases that failed: 0."
        in capsys.readouterr().out
    )
    assert kept.stat().st_mtime_ns == before
    assert len(find_cases(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        (
            "in",
            ["--scheme", "brats2018", "--target-order", "t1c,flair"],
            "contains cases that were converted with another order: t1,t1c,t2,flair, not t1c,flair. ",
        ),
        (
            "in",
            ["--scheme", "msd"],
            "contains cases that were converted with another scheme: brats2018, not msd. Choose another target",
        ),
        ("other", ["--scheme", "brats2018"], "contains cases that were converted with another source: "),
    ],
    ids=["order", "scheme", "source"],
)
def test_a_target_holds_cases_of_one_source_scheme_and_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, words: list[str], message: str
) -> None:
    make_case(tmp_path / "in/case_1")
    make_case(tmp_path / "other/case_2", seed=1)
    convert(tmp_path / "in", tmp_path / "out", "--layout", "nnunet", "--scheme", "brats2018")
    before = files_in(tmp_path / "out")
    refused(tmp_path / source, tmp_path / "out", "--layout", "nnunet", *words, code=2)
    assert message in capsys.readouterr().err
    assert files_in(tmp_path / "out") == before


def test_a_folder_of_other_files_is_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset.json").write_text("of somebody else")
    refused(tmp_path / "in", tmp_path / "out", "--layout", "decathlon", code=2)
    assert "contains files that `convert` did not write: dataset.json. Choose an empty" in capsys.readouterr().err
    assert (tmp_path / "out/dataset.json").read_text() == "of somebody else"


def test_a_case_keeps_its_number_when_one_is_added_before_it(tmp_path: Path) -> None:
    def find(name: str, number: int) -> bool:
        first = read_image(tmp_path / f"in/{name}/T1.nii.gz").image.dataobj
        stack = read_stack(tmp_path / f"out/imagesTr/BRATS_{number:03d}.nii.gz", {"t1": 1, "t2": 3})
        return np.array_equal(first, stack["t1"].image.dataobj)

    make_case(tmp_path / "in/case_1", seed=1)
    convert(tmp_path / "in", tmp_path / "out", "--layout", "decathlon")
    make_case(tmp_path / "in/case_0", seed=0)
    convert(tmp_path / "in", tmp_path / "out", "--layout", "decathlon")
    assert find("case_1", 1)
    assert find("case_0", 2)
    index = json.loads((tmp_path / "out/dataset.json").read_text())
    assert index["numTraining"] == 2
    # As MONAI's loader of the Decathlon wants it.
    files = [{kind: f"{kind}sTr/BRATS_{number:03d}.nii.gz" for kind in ("image", "label")} for number in (1, 2)]
    assert sorted(index["training"], key=str) == files


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("brats2018", ["case"]),
        ("decathlon", ["imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"]),
    ],
)
def test_a_case_that_has_changed_is_refused_until_what_was_made_of_it_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, names: list[str]
) -> None:
    make_case(tmp_path / "in/case")
    convert(tmp_path / "in", tmp_path / "out", "--layout", key)
    shutil.copyfile(tmp_path / "in/case/T2.nii.gz", tmp_path / "in/case/T1c.nii.gz")
    before = files_in(tmp_path / "out")
    refused(tmp_path / "in", tmp_path / "out", "--layout", key, code=1)
    places = [tmp_path / "out" / name for name in names]
    message = (
        "This case was converted earlier, but its t1c changed since then. "
        f"Remove {', '.join(map(str, places))} to convert the case again."
    )
    assert message in capsys.readouterr().err
    assert files_in(tmp_path / "out") == before
    for path in places:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    convert(tmp_path / "in", tmp_path / "out", "--layout", key)
    assert f"Cases written to {tmp_path}/out: 1. Cases that existed already: 0." in capsys.readouterr().out
    assert files_in(tmp_path / "out") != before


def test_a_case_read_in_another_scheme_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case")
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
    refused(tmp_path / "in", tmp_path / "out", "--layout", "brats2018", "--label-scheme", "brats2023", code=1)
    assert "but its label scheme or channel order changed since then." in capsys.readouterr().err


def test_a_case_that_got_labels_has_changed_though_its_files_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "in/case")
    shutil.move(tmp_path / "in/case/seg.nii.gz", tmp_path / "labels.nii.gz")
    convert(tmp_path / "in", tmp_path / "out", "--layout", "decathlon")
    shutil.move(tmp_path / "labels.nii.gz", tmp_path / "in/case/seg.nii.gz")
    refused(tmp_path / "in", tmp_path / "out", "--layout", "decathlon", code=1)
    message = f"but its seg changed since then. Remove {tmp_path}/out/imagesTs/BRATS_001.nii.gz to"
    assert message in capsys.readouterr().err


def test_the_index_has_every_case_of_the_target_and_no_other(tmp_path: Path) -> None:
    def indexed() -> list[str]:
        convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
        return [json.loads(line)["case_id"] for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]

    make_case(tmp_path / "in/case_1")
    assert indexed() == ["case_1"]
    shutil.move(tmp_path / "in/case_1", tmp_path / "away")
    make_case(tmp_path / "in/case_2", seed=2)
    assert indexed() == ["case_1", "case_2"]
    shutil.rmtree(tmp_path / "out/case_1")
    assert indexed() == ["case_2"]


@pytest.mark.parametrize("key", ["brats2018", "nnunet"])
@pytest.mark.parametrize("process", [os.getpid(), 71], ids=["same number, as in a container", "another"])
def test_what_a_killed_process_left_is_removed_and_its_cases_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, process: int
) -> None:
    def half(_: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    make_case(tmp_path / "in/case[1]")
    words = ["--layout", key, "--scheme", "brats2018"]
    with monkeypatch.context() as dying:
        dying.setattr("os.getpid", lambda: process)
        dying.setattr("shutil.copyfile", half)
        # Who is killed clears nothing away.
        dying.setattr("shutil.rmtree", lambda *_, **__: None)
        dying.setattr(Path, "unlink", lambda *_, **__: None)
        refused(tmp_path / "in", tmp_path / "out", *words, code=130)
    left = [path for path in (tmp_path / "out").rglob(".*") if path.name != ".converted.json"]
    assert left
    convert(tmp_path / "in", tmp_path / "out", *words)
    assert not any(path.exists() for path in left)
    (case,) = find_cases(tmp_path / "out")
    read_case(case.in_scheme("brats2018"), labels=True).checked()


@pytest.mark.parametrize(("kind", "written"), [("f2", "f4"), ("i2", "i2"), ("f8", "f8")])
def test_a_voxel_type_is_kept_where_nifti_has_it_and_else_becomes_float32(
    tmp_path: Path, kind: str, written: str
) -> None:
    voxels = np.zeros((12, 10, 8))
    voxels[2:8, 2:8, 2:6] = np.arange(1, 145).reshape(6, 6, 4) % 100
    (tmp_path / "in/case").mkdir(parents=True)
    np.save(tmp_path / "in/case/T1.npy", voxels.astype("i2"))
    np.save(tmp_path / "in/case/T2.npy", voxels.astype(kind))
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018", "--allow-partial")
    image = nib.load(tmp_path / "out/case/case_t2.nii.gz")
    assert image.get_data_dtype() == np.dtype(written)
    np.testing.assert_array_equal(image.dataobj, voxels)


@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_the_bytes_of_an_image_stay_as_they_are(tmp_path: Path, extension: str) -> None:
    make_case(tmp_path / "in/case")
    source = tmp_path / f"in/case/T1c{extension}"
    plain = gzip.decompress((tmp_path / "in/case/T1c.nii.gz").read_bytes())
    header = bytearray(plain)
    # What no other program would write again: a description, and bytes behind the voxels.
    header[148:152] = b"mine"
    plain = bytes(header) + b"behind"
    (tmp_path / "in/case/T1c.nii.gz").unlink()
    source.write_bytes(gzip.compress(plain) if extension == ".nii.gz" else plain)
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
    assert gzip.decompress((tmp_path / "out/case/case_t1ce.nii.gz").read_bytes()) == plain


def test_what_is_odd_about_a_case_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case")
    shutil.copyfile(tmp_path / "in/case/T1.nii.gz", tmp_path / "in/case/T2.nii.gz")
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
    path = tmp_path / "in/case/T2.nii.gz"
    assert f"warning: {path}: The volume has exactly the same voxels as t1." in capsys.readouterr().err


def test_labels_on_another_grid_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case")
    path = tmp_path / "in/case/seg.nii.gz"
    moved = AFFINE.copy()
    moved[:3, 3] += AFFINE[:3, :3] @ [0.5, 0, 0]
    nib.save(nib.Nifti1Image(voxels_of(path).copy(), moved), path)
    refused(tmp_path / "in", tmp_path / "out", "--layout", "brats2018", code=1)
    assert f"{path}: This label map has another grid than t1, and interpolation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_case_of_which_the_order_has_no_sequence_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "in/case", lacking="t2")
    words = ["--layout", "nnunet", "--scheme", "msd", "--target-order", "t2"]
    refused(tmp_path / "in", tmp_path / "out", *words, code=1)
    assert "has t1, t1c, flair, but none of these is in --target-order t2." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["nnunet", "decathlon"])
def test_cases_with_and_without_labels_are_not_written_where_only_one_kind_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    make_case(tmp_path / "in/case_1")
    make_case(tmp_path / "in/case_2", seed=1)
    (tmp_path / "in/case_2/seg.nii.gz").unlink()
    refused(tmp_path / "in", tmp_path / "out", "--layout", key, "--scheme", "msd", code=2)
    assert f"Only some cases have a ground truth: 1 of 2. The layout {key} stores cases" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["nnunet", "decathlon"])
def test_cases_without_labels_are_read_back(tmp_path: Path, key: str) -> None:
    for number in range(2):
        make_case(tmp_path / f"in/case_{number}", seed=number)
        (tmp_path / f"in/case_{number}/seg.nii.gz").unlink()
    convert(tmp_path / "in", tmp_path / "out", "--layout", key, "--scheme", "msd")
    found = find_cases(tmp_path / "out")
    assert [(list(case.images), case.segmentation) for case in found] == [(list(MODALITIES), None)] * 2


@pytest.mark.parametrize(
    ("name", "other"),
    [("BraTS-PED-1", "BraTS-PED"), ("flair-study-1", "other sequences")],
    ids=["convention", "words"],
)
def test_a_name_that_would_be_read_otherwise_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, other: str
) -> None:
    make_case(tmp_path / "in" / name)
    if other == "other sequences":
        # Which of several conventions it is read as matters only with labels.
        (tmp_path / "in" / name / "seg.nii.gz").unlink()
    refused(tmp_path / "in", tmp_path / "out", "--layout", "brats2023", code=1)
    message = f"The case {name} cannot be written as BraTS 2023 and later: its files would be read as {other}."
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cases_of_one_folder_name_are_converted_apart(tmp_path: Path) -> None:
    make_case(tmp_path / "in/HGG/a")
    make_case(tmp_path / "in/LGG/a", seed=1)
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
    assert [case.case_id for case in find_cases(tmp_path / "out")] == ["HGG_a", "LGG_a"]


def test_a_case_that_an_earlier_version_named_otherwise_is_not_written_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "in/HGG/a")
    convert(tmp_path / "in", tmp_path / "out", "--layout", "brats2018")
    record = tmp_path / "out/.converted.json"
    record.write_text(record.read_text().replace("HGG_a", "a"))
    (tmp_path / "out/HGG_a").rename(tmp_path / "out/a")
    refused(tmp_path / "in", tmp_path / "out", "--layout", "brats2018", code=2)
    assert "contains the case HGG_a under its old name a. Choose another target." in capsys.readouterr().err
    assert not (tmp_path / "out/HGG_a").exists()


def test_datasets_reads_and_streams_what_was_written(tmp_path: Path) -> None:
    make_case(tmp_path / "in/case_1", lacking="t2")
    make_case(tmp_path / "in/case_2", seed=1)
    run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "brats2018"])
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert [row["t2_file_name"] for row in rows] == [None, "case_2/case_2_t2.nii.gz"]
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(2.0,) * 3)
    stream = StreamedCases(
        str(tmp_path / "out"),
        split="train",
        label_scheme="brats2018",
        processor=processor,
        cache_dir=tmp_path / "cache",
    )
    stream.prepare_all(num_workers=0, progress=False)
    assert [stream[index]["modality_mask"].tolist() for index in range(2)] == [
        [name != "t2" for name in MODALITIES],
        [True] * 4,
    ]

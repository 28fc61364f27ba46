"""Any family of names and label scheme into any other, and back, exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lora_moe_hgd.data.cases import read_case
from lora_moe_hgd.data.convert import BY_KEY, TARGETS
from lora_moe_hgd.data.datasets import StreamedCases
from lora_moe_hgd.data.layouts import find_cases
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd_cli import run

# What a case must be called to be of a family.
BEGINS = {"brats-ped": "BraTS-PED-", "tcga": "TCGA-", "upenn-gbm": "UPENN-GBM-", "ucsf-pdgm": "UCSF-PDGM-"}
BEGINS |= {"brats2015": "VSD.Brain"}
AFFINE = np.array([[-0.9, 0.1, 0, 60.5], [0.1, 0.9, 0, -41], [0, 0, 1.5, 12.25], [0, 0, 0, 1]])


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
    assert written == {0, LABEL_SCHEMES[scheme].edema, LABEL_SCHEMES[scheme].core, LABEL_SCHEMES[scheme].enhancing}


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
    assert "must have each sequence to be one file with four axes, got ['t2']" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/imagesTr").iterdir()] == ["BRATS_002.nii.gz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "nnunet"], "--scheme must be one of"),
        (["--layout", "plain", "--scheme", "brats2018"], "are read as msd"),
        (["--layout", "plain", "--target-order", "t1,t2"], "--target-order is for nnunet"),
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


def test_a_name_that_is_not_of_the_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_case(tmp_path / "in/case")
    with pytest.raises(SystemExit):
        run("convert", [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "tcga"])
    assert "Cases of TCGA must be called TCGA-..., got case." in capsys.readouterr().err


def test_a_second_start_writes_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        make_case(tmp_path / f"in/case_{number}", seed=number)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--layout", "brats2023"]
    run("convert", words)
    shutil.rmtree(tmp_path / "out/case_1")
    kept = tmp_path / "out/case_0/case_0-t1n.nii.gz"
    before = kept.stat().st_mtime_ns
    run("convert", words)
    assert "1 cases written, 2 were there, 0 failed" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    assert len(find_cases(tmp_path / "out")) == 3


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

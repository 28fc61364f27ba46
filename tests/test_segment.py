"""Inference on a case's files: results on the case's own grid, from any of its sequences."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import lora_moe_hgd as lmh
from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.inference import results
from lora_moe_hgd.inference.results import CaseSegmenter, ResultOptions, choose_sequences
from lora_moe_hgd.inference.segmentation import Segmentation
from lora_moe_hgd.inference.uncertainty import voxel_entropy
from lora_moe_hgd.model.confidence import expected_dice, rounded_down
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.model.task import BRAIN_TUMOUR
from lora_moe_hgd.sequence_names import parse_sequences
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")


@pytest.fixture(scope="module")
def segmented(dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "case_000"
    paths = ["--in-path", str(dummy_root / "case_000"), "--out-path", str(out)]
    run("segment", [*paths, "--sequences", "t1c,flair", "--probabilities", "--uncertainty"])
    return out


def test_the_segmentation_has_the_grid_of_the_case(dummy_root: Path, segmented: Path) -> None:
    source, result = nib.load(dummy_root / "case_000/T1c.nii.gz"), nib.load(segmented / "seg.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(result.header[field], source.header[field])
    assert set(np.unique(result.dataobj)) <= {0, 1, 2, 3}


def test_probabilities_are_nested_and_agree_with_the_labels(segmented: Path) -> None:
    probabilities = np.asarray(nib.load(segmented / "probabilities.nii.gz").dataobj)
    labels = np.asarray(nib.load(segmented / "seg.nii.gz").dataobj)
    assert probabilities.shape == (*labels.shape, 3)
    assert (np.diff(probabilities, axis=-1) <= 0).all()
    # The checkpoint leaves out small parts.
    whole, _, enhancing = load_checkpoint()[1].regions_of(np.moveaxis(probabilities, -1, 0))
    np.testing.assert_array_equal(labels > 0, whole)
    np.testing.assert_array_equal(labels == 3, enhancing)
    assert not (whole & (probabilities[..., 0] <= 0.5)).any()


def test_uncertainty_and_confidence_are_those_of_the_probabilities(segmented: Path) -> None:
    probabilities = np.moveaxis(np.asarray(nib.load(segmented / "probabilities.nii.gz").dataobj), -1, 0)
    image = nib.load(segmented / "uncertainty.nii.gz")
    entropy = np.asarray(image.dataobj)
    np.testing.assert_allclose(entropy, voxel_entropy(probabilities), atol=1e-6)
    assert 0 <= entropy.min() < 0.5 < entropy.max() <= 2
    assert np.array_equal(image.affine, nib.load(segmented / "seg.nii.gz").affine)
    labels = np.asarray(nib.load(segmented / "seg.nii.gz").dataobj)
    regions = LABEL_SCHEMES["brats2023"].decode(labels)
    confidence = json.loads((segmented / "report.json").read_text())["confidence"]
    expected = load_checkpoint()[1].confidence(
        probabilities, regions, voxel_ml=0.064, present=[False, True, False, True]
    )
    assert confidence == pytest.approx(expected, abs=1e-3)
    assert list(confidence.values()) != pytest.approx(expected_dice(probabilities, regions), abs=1e-2)


def test_the_report_says_what_was_used_and_found(segmented: Path) -> None:
    report = json.loads((segmented / "report.json").read_text())
    labels = np.asarray(nib.load(segmented / "seg.nii.gz").dataobj)
    assert report["sequences_used"] == ["t1c", "flair"]
    assert report["sequences_not_used"] == ["t1", "t2"]
    assert report["files"] == {"t1c": "T1c.nii.gz", "flair": "FLAIR.nii.gz"}
    assert report["left_out"] == []
    assert report["volumes_ml"]["wt"] == pytest.approx((labels > 0).sum() * 0.064)
    assert report["volumes_ml"]["et"] == pytest.approx((labels == 3).sum() * 0.064)
    assert report["spacing_mm"] == [4.0, 4.0, 4.0]
    assert report["label_scheme"]["name"] == "brats2023"
    assert report["tumour_found"] == bool(labels.any())
    assert "not a medical device" in report["notice"]


def test_the_file_of_each_sequence_is_printed_before_the_network_is_loaded(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "load_checkpoint", lambda *args, **options: pytest.fail("The network was loaded."))
    (tmp_path / "case").mkdir()
    for name in ("ax_t2_flair", "t1_mprage_gad", "ADC", "brain_mask"):
        (tmp_path / f"case/{name}.nii.gz").touch()
    # The files are empty, so each command ends when it reads them.
    words = ["--out-path", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(tmp_path / "case"), *words])
    assert capsys.readouterr().out.splitlines() == [
        "t1c: t1_mprage_gad.nii.gz",
        "flair: ax_t2_flair.nii.gz",
        "not used because of their names: ADC.nii.gz, brain_mask.nii.gz",
    ]
    with pytest.raises(SystemExit):
        run("segment", ["--t2", str(tmp_path / "case/ADC.nii.gz"), *words])
    assert capsys.readouterr().out.splitlines() == ["t2: ADC.nii.gz"]
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(tmp_path / "case"), "--t2", str(tmp_path / "case/ADC.nii.gz"), *words])
    assert "with single files (--t1, --t1c, --t2, --flair), not with both." in capsys.readouterr().err


def test_the_picture_is_a_picture(segmented: Path) -> None:
    picture = np.asarray(Image.open(segmented / "overlay.png").convert("RGB"))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 20


def test_absent_files_and_withheld_sequences_give_the_same(dummy_root: Path, segmented: Path, tmp_path: Path) -> None:
    for name in ("T1c.nii.gz", "FLAIR.nii.gz"):
        (tmp_path / "incomplete").mkdir(exist_ok=True)
        shutil.copy(dummy_root / "case_000" / name, tmp_path / "incomplete")
    run("segment", ["--in-path", str(tmp_path / "incomplete"), "--out-path", str(tmp_path / "out")])
    actual, expected = (nib.load(folder / "seg.nii.gz") for folder in (tmp_path / "out", segmented))
    np.testing.assert_array_equal(actual.dataobj, expected.dataobj)


def test_without_t1c_the_core_is_said_to_be_a_guess(dummy_root: Path, tmp_path: Path, capsys) -> None:
    for sequences, warned in ((("t1", "flair"), True), (("t1c",), False)):
        segmenter = CaseSegmenter("tiny", ResultOptions(sequences=sequences))
        found = segmenter.write(segmenter.read(find_case(dummy_root / "case_000")), tmp_path / sequences[0])
        assert any("TC and ET are unreliable and may be missed" in warning for warning in found.warnings) == warned
        assert ("TC and ET are unreliable and may be missed" in capsys.readouterr().err) == warned


def test_mirrored_logits_are_asked_for_and_reported(dummy_root: Path, tmp_path: Path) -> None:
    case = str(dummy_root / "case_000")
    run("segment", ["--in-path", case, "--out-path", str(tmp_path), "--sequences", "flair", "--mirror"])
    network, processor = load_checkpoint()
    inputs = processor({"flair": dummy_root / "case_000/FLAIR.nii.gz"})
    logits = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"], mirror=True)
    (labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj), labels)
    plain = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
    (others,) = processor.post_process_semantic_segmentation(plain, inputs["geometry"])
    assert (labels != others).any()
    assert json.loads((tmp_path / "report.json").read_text())["mirrored"] is True


def test_bf16_is_computed_and_reported(dummy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_moe_hgd.loading.is_fast_in_bf16", lambda device: True)
    case = dummy_root / "case_000"
    run("segment", ["--in-path", str(case), "--out-path", str(tmp_path), "--device", "cpu", "--bf16"])
    assert json.loads((tmp_path / "report.json").read_text())["bf16"] is True
    network, processor = load_checkpoint()
    inputs = processor(read_case(find_case(case)).settled)
    with torch.autocast("cpu", torch.bfloat16):
        expected = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
    logits = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"], bf16=True)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, network.segment_volume(inputs["pixel_values"], inputs["modality_mask"]))
    (labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj), labels)
    found = lmh.segment(case, device="cpu", bf16=True)
    np.testing.assert_array_equal(np.asarray(found.label_map.dataobj), labels)


@pytest.mark.parametrize("command", ["segment", "evaluate"])
def test_bf16_is_refused_where_it_would_take_longer(
    command: str, dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_moe_hgd.loading.is_fast_in_bf16", lambda device: False)
    words = ["--in-path", str(dummy_root / "case_000"), "--out-path", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit):
        run(command, [*words, "--bf16"])
    assert "The device 'cpu' is not known to compute faster in bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_label_scheme_renames_the_same_parts(dummy_root: Path, segmented: Path, tmp_path: Path) -> None:
    case = str(dummy_root / "case_000")
    options = ["--sequences", "flair,t1c", "--label-scheme", "brats2018"]
    run("segment", ["--in-path", case, "--out-path", str(tmp_path), *options])
    renamed = np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj)
    plain = np.asarray(nib.load(segmented / "seg.nii.gz").dataobj)
    np.testing.assert_array_equal(renamed, np.array([0, 1, 2, 4], dtype=np.uint8)[plain])
    assert not (tmp_path / "probabilities.nii.gz").exists()
    assert not (tmp_path / "uncertainty.nii.gz").exists()


def test_the_summary_shows_the_numbers_of_the_report(dummy_root: Path, tmp_path: Path, capsys) -> None:
    run("segment", ["--in-path", str(dummy_root / "case_000"), "--out-path", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads((tmp_path / "report.json").read_text())
    for name, volume in report["volumes_ml"].items():
        dice = report["confidence"][name]
        assert dice is not None
        (line,) = [line for line in printed if line.startswith(f"{name.upper()}: {volume:.1f} mL, expected Dice ")]
        assert float(line.split()[-1]) == rounded_down(dice)


def test_the_volume_of_a_tiny_region_is_not_printed_as_zero(
    dummy_root: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    write = CaseSegmenter.write

    def tiny(*words: Any, **options: Any) -> Segmentation:
        return replace(write(*words, **options), volumes_ml={"wt": 12.34, "tc": 0.05, "et": 0.04})

    monkeypatch.setattr(CaseSegmenter, "write", tiny)
    run("segment", ["--in-path", str(dummy_root / "case_000"), "--out-path", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "\nTC: 0.1 mL, expected Dice " in printed
    assert "\nET: < 0.1 mL, expected Dice " in printed


def test_label_numbers_do_not_depend_on_file_names_unless_asked(dummy_root: Path, tmp_path: Path, capsys) -> None:
    options = ["--in-path", str(dummy_root / "case_000"), "--sequences", "flair,t1c"]
    for name, scheme in (("default", []), ("input", ["--label-scheme", "input"])):
        run("segment", [*options, "--out-path", str(tmp_path / name), *scheme])
    printed = capsys.readouterr().out
    assert "Label scheme: brats2023 (0 background, 1 core, 2 oedema, 3 enhancing)." in printed
    assert "Label scheme: msd (0 background, 1 oedema, 2 core, 3 enhancing)." in printed
    plain, own = (np.asarray(nib.load(tmp_path / name / "seg.nii.gz").dataobj) for name in ("default", "input"))
    np.testing.assert_array_equal(own, np.array([0, 2, 1, 3], dtype=np.uint8)[plain])
    shutil.copytree(dummy_root / "case_000", tmp_path / "unnamed")
    files = ["--flair", str(tmp_path / "unnamed/FLAIR.nii.gz"), "--out-path", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run("segment", [*files, "--label-scheme", "input"])
    assert "do not determine a label scheme" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_case_without_tumour_is_said_to_have_none(dummy_root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation

    def nothing(self, pixel_values, modality_mask, **options):
        return -10.0 + 0 * pixel_values[:, :3]

    monkeypatch.setattr(LoraMoeHgdForSegmentation, "segment_volume", nothing)
    run("segment", ["--in-path", str(dummy_root / "case_000"), "--out-path", str(tmp_path)])
    said = capsys.readouterr()
    assert "No tumour was found." not in said.out
    missed = "No tumour was found. Look at the images: the program can miss a tumour."
    assert said.err.count(f"warning: {missed}\n") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tumour_found"] is False
    assert report["warnings"] == [missed]
    assert (tmp_path / "overlay.png").stat().st_size > 10_000


def test_named_sequences_must_be_there(dummy_root: Path, tmp_path: Path) -> None:
    shutil.copytree(dummy_root / "case_000", tmp_path / "case")
    (tmp_path / "case/T2.nii.gz").unlink()
    case = find_case(tmp_path / "case")
    assert list(choose_sequences(case, None).images) == ["t1", "t1c", "flair"]
    assert list(choose_sequences(case, parse_sequences("flair, T1", MODALITIES)).images) == ["t1", "flair"]
    with pytest.raises(ValueError, match=r"lacks t2\. It has t1, t1c, flair"):
        choose_sequences(case, parse_sequences("t2,t1", MODALITIES))
    with pytest.raises(ValueError, match=r"sequence t1ce\. 't1ce' is named 't1c' here\. The names are t1, t1c, t2"):
        ResultOptions(sequences=parse_sequences("T1CE", MODALITIES)).check(BRAIN_TUMOUR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--in-path", "nowhere", "--out-path", "{tmp}/out"],
            "nowhere: There is no such file or folder. Check the path.",
        ),
        (["--in-path", "{case}", "--out-path", "{case}"], "--out-path must not be the folder of the case"),
        (["--in-path", "{case}", "--out-path", "{tmp}/out", "--checkpoint", "{tmp}/a.pt"], "Pickled files"),
        (
            ["--in-path", "{case}", "--out-path", "{tmp}/out", "--checkpoint", "{tmp}/b.pt"],
            "There is no checkpoint folder",
        ),
        (["--in-path", "nowhere", "--out-path", "{tmp}/out", "--checkpoint", "glioam"], "Did you mean 'glioma'?"),
        (["--in-path", "{case}", "--out-path", "{tmp}/out", "--checkpoint", "{case}"], "contains no checkpoint"),
        (["--in-path", "{case}", "--out-path", "{tmp}/out", "--sequences", "t3"], "Unknown sequence t3"),
        (
            ["--in-path", "{case}", "--out-path", "{tmp}/out", "--device", "abacus"],
            "device 'abacus' cannot",
        ),
    ],
    ids=["no case", "out is in", "pickle", "no checkpoint", "mistyped", "a case", "no sequence", "no device"],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    dummy_root: Path, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    (tmp_path / "a.pt").write_bytes(b"pickle")
    words = [word.format(case=dummy_root / "case_000", tmp=tmp_path) for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        run("segment", words)
    said = capsys.readouterr()
    errors = said.err.strip().splitlines()
    assert stopped.value.code == 2
    assert message in errors[-1]
    assert errors[-1].startswith("error: ")
    # The error comes before the files of the case are listed.
    assert said.out == ""
    assert not (tmp_path / "out").exists()
    assert not (dummy_root / "case_000/report.json").exists()


def test_results_of_another_case_are_never_overwritten(
    dummy_root: Path, segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Neither by the command, which says so before it loads the network, nor by a result in memory."""
    out = tmp_path / "out"
    shutil.copytree(segmented, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    message = (
        f"{out} contains the results of another case, case_000. The results of case_001 would overwrite these "
        f"results. Choose another folder, or delete {out}."
    )
    other = results.CaseSegmenter("glioma", ResultOptions()).segment(find_case(dummy_root / "case_001"))
    with pytest.raises(ValueError, match=re.escape(message)):
        other.save(out)
    with monkeypatch.context() as patch:
        patch.setattr(results, "load_checkpoint", lambda *args, **options: 1 / 0)
        with pytest.raises(SystemExit):
            run("segment", ["--in-path", str(dummy_root / "case_001"), "--out-path", str(out)])
    assert capsys.readouterr().err == f"error: {message}\n"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # The same case is written again.
    run("segment", ["--in-path", str(dummy_root / "case_000"), "--out-path", str(out)])
    assert json.loads((out / "report.json").read_text())["sequences_used"] == ["t1", "t1c", "t2", "flair"]


def test_named_files_of_another_patient_are_refused_and_further_sequences_of_the_same_are_not(
    dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("case_000", "case_001"):
        (tmp_path / case).mkdir()
        for name, path in find_case(dummy_root / case).images.items():
            shutil.copyfile(path, tmp_path / case / f"{name}.nii.gz")
    out = tmp_path / "out"
    first, other = (["--t1c", str(tmp_path / case / "t1c.nii.gz")] for case in ("case_000", "case_001"))
    run("segment", [*first, "--out-path", str(out)])
    with pytest.raises(SystemExit):
        run("segment", [*other, "--out-path", str(out)])
    assert f"{out} contains the results of another case, case_000." in capsys.readouterr().err
    run("segment", [*first, "--t1", str(tmp_path / "case_000/t1.nii.gz"), "--out-path", str(out)])
    report = json.loads((out / "report.json").read_text())
    assert (report["case_id"], report["sequences_used"]) == ("case_000", ["t1", "t1c"])

"""`import lora_moe_hgd as lmh`: the promises of `segment`, `Segmentation`, `example_case` and `help`."""

from __future__ import annotations

import json
import math
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from transformers import pipeline

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.model.confidence import LOW_CONFIDENCE
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd_cli import main, run

pytestmark = pytest.mark.usefixtures("small_shipped")

USED = ("t1", "flair")


@pytest.fixture(scope="module")
def found(dummy_root: Path) -> lmh.Segmentation:
    return lmh.segment(dummy_root / "case_000", sequences=USED)


@pytest.fixture(scope="module")
def by_command(dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("by_command") / "out"
    words = ["--in-path", str(dummy_root / "case_000"), "--out-path", str(out), "--sequences", ",".join(USED)]
    run("segment", [*words, "--probabilities", "--uncertainty"])
    return out


def test_python_saves_what_the_command_line_writes(found: lmh.Segmentation, by_command: Path, tmp_path: Path) -> None:
    found.save(tmp_path, probabilities=True, uncertainty=True)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in by_command.iterdir()}
    for name in ("seg.nii.gz", "probabilities.nii.gz", "uncertainty.nii.gz"):
        actual, expected = (nib.load(folder / name) for folder in (tmp_path, by_command))
        np.testing.assert_array_equal(actual.dataobj, expected.dataobj)
        assert actual.header == expected.header
    reports = [json.loads((folder / "report.json").read_text()) for folder in (tmp_path, by_command)]
    differing = {name for name in reports[0] if reports[0][name] != reports[1][name]}
    # The fingerprint counts the options, and the command was asked for further files.
    assert differing <= {"seconds", "made_from"}


def test_save_writes_three_files_and_more_on_request(found: lmh.Segmentation, tmp_path: Path) -> None:
    found.save(tmp_path / "more", html=True, probabilities=True)
    assert (tmp_path / "more/report.html").is_file()
    # Results of an earlier call do not stay beside others.
    found.save(tmp_path / "more")
    assert {path.name for path in (tmp_path / "more").iterdir()} == {"seg.nii.gz", "overlay.png", "report.json"}


def test_a_command_continues_from_what_python_saved(dummy_root: Path, tmp_path: Path, capsys) -> None:
    lmh.segment(dummy_root / "case_001").save(tmp_path / "case_001")
    written = (tmp_path / "case_001/seg.nii.gz").stat().st_mtime_ns
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for name in ("case_001", "case_002"):
        shutil.copytree(dummy_root / name, cohort / name)
    run("segment", ["--in-path", str(cohort), "--out-path", str(tmp_path), "--quiet"])
    assert (tmp_path / "case_001/seg.nii.gz").stat().st_mtime_ns == written
    assert (tmp_path / "case_002/seg.nii.gz").is_file()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("warning: ") for line in shown.err.splitlines())


def test_everything_in_a_segmentation_agrees(found: lmh.Segmentation, dummy_root: Path) -> None:
    source = nib.load(dummy_root / "case_000/T1.nii.gz")
    labels = np.asarray(found.label_map.dataobj)
    assert labels.dtype == np.uint8
    assert labels.any()
    np.testing.assert_array_equal(found.label_map.affine, source.affine)
    np.testing.assert_array_equal(LABEL_SCHEMES["brats2023"].decode(labels), found.regions)
    assert found.regions.shape == found.probabilities.shape == (3, *source.shape)
    assert (found.regions.dtype, found.probabilities.dtype) == (bool, np.float32)
    voxel_ml = abs(np.linalg.det(source.affine)) / 1000
    assert list(found.volumes_ml) == ["wt", "tc", "et"]
    # Both have three decimals, here and in the report. A confidence is rounded down.
    assert list(found.volumes_ml.values()) == [
        round(volume, 3) for volume in (region.sum() * voxel_ml for region in found.regions)
    ]
    present = [name in USED for name in MODALITIES]
    expected = lmh.load_checkpoint()[1].confidence(
        found.probabilities, found.regions, voxel_ml=voxel_ml, present=present
    )
    assert found.confidence == {name: value and math.floor(1000 * value) / 1000 for name, value in expected.items()}
    assert (found.volumes_ml, found.confidence) == (found.report["volumes_ml"], found.report["confidence"])
    assert f"WT {found.volumes_ml['wt']:.1f} mL" in repr(found)


def test_a_large_case_fits_because_probabilities_are_kept_only_around_the_brain(found: lmh.Segmentation) -> None:
    brain = np.logical_or.reduce([image.get_fdata() != 0 for image in found.images.values()])
    extents = [np.ptp(places) + 1 for places in np.nonzero(brain)]
    kept = [value for value in vars(found).values() if isinstance(value, np.ndarray) and value.dtype == np.float32]
    assert [array.size for array in kept] == [3 * np.prod(extents)]
    assert kept[0].size < found.probabilities.size
    assert found.probabilities.sum() == pytest.approx(kept[0].sum())


def test_what_is_odd_about_a_case_comes_back(found: lmh.Segmentation, dummy_root: Path) -> None:
    assert "TC and ET are unreliable and may be missed" in found.warnings[0]
    doubtful = [name.upper() for name, value in found.confidence.items() if value < LOW_CONFIDENCE]
    assert doubtful
    assert [warning.split(": The expected Dice")[0] for warning in found.warnings[1:]] == doubtful
    image = nib.load(dummy_root / "case_000/T1c.nii.gz")
    array = np.asarray(image.dataobj).copy()
    array[20, 20, 20] = np.nan
    warning, *_ = lmh.segment({"t1c": nib.Nifti1Image(array, image.affine)}).warnings
    assert warning == "t1c: 1 voxel is not finite (NaN or infinite). NaN and infinity are treated as zero."


def test_files_given_for_each_others_sequence_get_a_warning_everywhere(
    dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t1c, flair = (dummy_root / "case_000" / name for name in ("T1c.nii.gz", "FLAIR.nii.gz"))
    advice = "Check which sequence the image shows. Then give the file for this sequence, or rename the file."
    of_t1c = f"The file was given for t1c, but its name, FLAIR.nii.gz, says flair. {advice}"
    of_flair = f"The file was given for flair, but its name, T1c.nii.gz, says t1c. {advice}"
    run("segment", ["--t1c", str(flair), "--flair", str(t1c), "--out-path", str(tmp_path)])
    printed = capsys.readouterr().err
    assert f"warning: {flair}: {of_t1c}\n" in printed
    assert f"warning: {t1c}: {of_flair}\n" in printed
    warnings = [f"t1c: {of_t1c}", f"flair: {of_flair}"]
    assert {*warnings} <= {*json.loads((tmp_path / "report.json").read_text())["warnings"]}
    assert {*warnings} <= {*lmh.segment({"t1c": str(flair), "flair": t1c}).warnings}
    mixed = lmh.segment({"t1c": flair, "flair": nib.load(t1c)}).warnings
    assert warnings[0] in mixed
    assert warnings[1] not in mixed


def test_files_and_volumes_in_memory_may_be_mixed(found: lmh.Segmentation, dummy_root: Path, tmp_path: Path) -> None:
    folder = dummy_root / "case_000"
    mixed = lmh.segment({"t1": nib.load(folder / "T1.nii.gz"), "t1c": None, "flair": str(folder / "FLAIR.nii.gz")})
    np.testing.assert_array_equal(mixed.probabilities, found.probabilities)
    assert mixed.label_map.header == found.label_map.header
    assert mixed.warnings == found.warnings
    mixed.save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["files"] == {"flair": "FLAIR.nii.gz"}
    # Nobody can tell later whether a volume in memory is still the same.
    assert report["made_from"] is None


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"sequences": ["t3"]}, r"Unknown sequence t3\..* The names are t1, t1c, t2, flair"),
        ({"sequences": "t1c flair"}, r"must be a list .*\. Write sequences=\['t1c', 'flair'\]\. Got: 't1c flair'"),
        ({"sequences": "T1C,flair"}, r"must be a list .*\. Write sequences=\['t1c', 'flair'\]\. Got"),
        (
            {"sequences": ""},
            r"must be a list such as \['t1c', 'flair'\]\. To use all sequences, leave out `sequences`\. Got: ''",
        ),
        (
            {"sequences": "all"},
            r"must be a list such as \['t1c', 'flair'\]\. To use all sequences, leave out `sequences`\. Got: 'all'",
        ),
        ({"sequences": ["T1C"]}, r"Unknown sequence T1C\. Write in lower case: 't1c'\. The names are t1, t1c"),
        ({"sequences": ["T1C", "FLAIR"]}, r"Unknown sequence FLAIR, T1C\. Write in lower case: 'flair', 't1c'\."),
        ({"sequences": ["flare", "t1w"]}, r"flare, t1w\. Did you mean 'flair'\? 't1w' is named 't1' here\. The"),
        ({"case": {"T1C": "a.nii.gz"}}, r"Unknown sequence T1C\. Write in lower case: 't1c'\. The names are"),
        ({"sequences": ["T1CE"]}, r"Unknown sequence T1CE\. 'T1CE' is named 't1c' here\. The names are t1, t1c, t2"),
        ({"sequences": []}, "Name at least one of t1, t1c, t2, flair"),
        ({"label_scheme": "brats"}, "Unknown label scheme 'brats'"),
        ({"device": "abacus"}, "The device 'abacus' cannot be used"),
        ({"checkpoint": "huge"}, "There is no checkpoint 'huge'"),
        ({"case": {}}, "No sequence was given"),
        ({"case": {"t1gd": "a.nii.gz"}}, "Unknown sequence t1gd. 't1gd' is named 't1c' here. The names are t1, t1c"),
        ({"case": {"t1": np.zeros((4, 4, 4))}}, "t1: All voxels are zero"),
        (
            {"case": {"t1": np.ones((4, 4, 4))}, "sequences": ["t2"]},
            "The case lacks t2. It has t1. Request only these sequences.",
        ),
    ],
)
def test_bad_input_is_refused_with_the_reason(dummy_root: Path, change: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        lmh.segment(**{"case": dummy_root / "case_000", **change})


def test_a_folder_of_cases_is_counted_and_the_way_to_segment_them_is_named(dummy_root: Path) -> None:
    count = len(list(dummy_root.iterdir()))
    with pytest.raises(ValueError, match=f"This folder contains {count} cases, but `segment` takes one") as refused:
        lmh.segment(dummy_root)
    assert f"`lora-moe-hgd segment --in-path {dummy_root} --out-path OUT`" in str(refused.value)
    # A traceback shows no other error, whose advice would be wrong here.
    assert refused.value.__suppress_context__
    assert refused.value.__cause__ is None


def test_a_confidence_below_the_limit_stays_below_it_when_it_is_rounded(
    dummy_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    almost = {"wt": 0.9, "tc": LOW_CONFIDENCE - 0.0004, "et": None}
    monkeypatch.setattr(lmh.LoraMoeHgdImageProcessor, "confidence", lambda *args, **more: almost)
    case = dummy_root / "case_000"
    by_pipeline = pipeline("brain-tumor-segmentation", model=str(lmh.pretrained_path("tiny")))(str(case))
    for confidence in (lmh.segment(case).confidence, by_pipeline["confidence"]):
        assert confidence == {"wt": 0.9, "tc": 0.599, "et": None}


def test_the_ground_truth_of_a_case_is_never_overwritten(found: lmh.Segmentation, dummy_root: Path) -> None:
    before = (dummy_root / "case_000/seg.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="is the folder of the case"):
        found.save(dummy_root / "case_000")
    assert (dummy_root / "case_000/seg.nii.gz").read_bytes() == before


def test_the_example_case_is_a_clean_labelled_case_of_six_megabytes() -> None:
    folder = lmh.example_case()
    reading = read_case(find_case(folder), labels=True).checked(strict=True)
    assert list(reading.images) == ["t1", "t1c", "t2", "flair"]
    assert reading.findings == []
    # Voxels of the published label map.
    assert [int(region.sum()) for region in reading.regions] == [62289, 9457, 7708]
    assert sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file()) < 6 * 2**20
    readme = (folder.parent / "README.md").read_text()
    assert "10.7937/v8h6-8x67" in readme
    assert "CC BY 4.0" in readme


def test_help_fits_two_screens_and_every_name_is_there() -> None:
    shown = pydoc.render_doc(lmh, renderer=pydoc.plaintext)
    assert len(shown.splitlines()) <= 100
    assert "segment(case:" in shown
    # The names that the help mentions without explaining them.
    for name in ("Segmentation", "LoraMoeHgdForSegmentation", "BrainTumorSegmentationPipeline", "load_adapters"):
        assert f"`{name}`" in shown
        assert hasattr(lmh, name)


def test_a_checkpoint_loads_without_a_word() -> None:
    code = "import lora_moe_hgd as lmh; lmh.load_checkpoint()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == done.stderr == ""


def test_old_option_names_mean_what_new_ones_mean(
    found: lmh.Segmentation, dummy_root: Path, tmp_path: Path, capsys
) -> None:
    words = ["--data", str(dummy_root / "case_000"), "--out", str(tmp_path), "--modalities", ",".join(USED)]
    run("segment", [*words, "--device", "cpu", "--quiet"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [f"warning: {warning}" for warning in found.warnings]
    np.testing.assert_array_equal(nib.load(tmp_path / "seg.nii.gz").dataobj, found.label_map.dataobj)


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", "--version"])
    main()
    assert capsys.readouterr().out == f"lora-moe-hgd {lmh.__version__}\n"

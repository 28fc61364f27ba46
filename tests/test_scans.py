"""From raw images to a case and its segmentation: commands, Python, privacy, errors."""

from __future__ import annotations

import json
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicoms import PATIENT, ball, in_plane, study, write_series
from scipy.spatial.transform import Rotation
from small_scans import SPACINGS, head, quicken

import lora_moe_hgd as lmh
from lora_moe_hgd.model import findings
from lora_moe_hgd.model.findings import BadInputError
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.scans import brains, prepare
from lora_moe_hgd.scans.prepared import BRAIN_MASK, FILE_NAMES, PREPARED, Placement, Prepared
from lora_moe_hgd.scans.registration import Motion
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped", "quickened")


@pytest.fixture(scope="module")
def segmented(dicom: Path, tmp_path_factory: pytest.TempPathFactory, small_shipped: None) -> Path:
    out = tmp_path_factory.mktemp("segmented")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        run("segment", ["--in-path", str(dicom), "--out-path", str(out / "result"), "--on", "all", "--html"])
    return out / "result"


def test_a_folder_of_dicom_files_becomes_a_case(dicom: Path, tmp_path: Path, capsys) -> None:
    case = tmp_path / "a case"
    run("prepare", [str(dicom), str(case)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"Next: lora-moe-hgd segment --in-path '{case}' --out-path RESULTS"
    assert "1*" in printed
    assert "3 slices only" in printed
    files = {FILE_NAMES["t1c"], FILE_NAMES["flair"], BRAIN_MASK, PREPARED}
    assert {path.name for path in case.iterdir()} == files
    images = {name: nib.load(case / FILE_NAMES[name]) for name in ("t1c", "flair")}
    assert np.array_equal(images["t1c"].affine, images["flair"].affine)
    assert images["t1c"].header.get_zooms() == pytest.approx(SPACINGS["t1c"])
    report = json.loads((case / PREPARED).read_text())
    assert report["reference"] == "t1c"
    assert report["sequences"]["flair"]["plane"] == "sagittal"
    run("segment", ["--in-path", str(case), "--out-path", str(tmp_path / "out")])
    assert (tmp_path / "out/seg.nii.gz").is_file()
    # Its name is that of the study, not that of the folder.
    assert report["case_id"].startswith("study-")
    assert json.loads((tmp_path / "out/report.json").read_text())["case_id"] == report["case_id"]


def test_one_command_leads_from_dicom_to_dicom(dicom: Path, segmented: Path) -> None:
    labels = nib.load(segmented / "seg.nii.gz")
    assert labels.header.get_zooms() == pytest.approx(SPACINGS["t1c"])
    own = nib.load(segmented / "seg_on_flair.nii.gz")
    assert own.header.get_zooms() == pytest.approx([4.5, 6.0, 4.5])
    volumes = {
        name: np.count_nonzero(np.asarray(image.dataobj)) * np.prod(image.header.get_zooms())
        for name, image in (("t1c", labels), ("flair", own))
    }
    assert volumes["flair"] == pytest.approx(volumes["t1c"], rel=0.2)
    found = pydicom.dcmread(segmented / "seg.dcm")
    source = pydicom.dcmread(next((dicom / "a").iterdir()))
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    report = json.loads((segmented / "report.json").read_text())
    assert report["prepared"]["reference"] == "t1c"
    assert not report["not_written"]


def test_a_label_map_follows_the_motion_back_to_the_own_grid() -> None:
    place = np.moveaxis(np.indices((30, 30, 30)), 0, -1) * 2.0
    found = np.linalg.norm(place - [30, 26, 32], axis=-1) < 14
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix()
    motion[:3, 3] = [5, -7, 3]
    own = Placement((20, 24, 12), np.diag([3.0, 2.5, 5.0, 1.0]), motion)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    case = Prepared("case", "t1c", affine, {}, {}, found, {"flair": own}, (), {})
    image = case.on_own_grid("flair", np.stack([found, found, found]), LABEL_SCHEMES["brats2023"])
    labels = np.asarray(image.dataobj)
    assert (image.shape, set(np.unique(labels))) == (own.shape, {0, 3})
    centre = motion @ image.affine @ [*np.argwhere(labels > 0).mean(axis=0), 1]
    np.testing.assert_allclose(centre[:3], [30, 26, 32], atol=1)
    assert np.count_nonzero(labels) * 37.5 == pytest.approx(found.sum() * 8, rel=0.1)


def test_python_and_a_zip_give_what_the_command_gives(dicom: Path, segmented: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in dicom.rglob("IM*"):
            archive.write(path, f"Muster/{path.relative_to(dicom)}")
    expected = np.asarray(nib.load(segmented / "seg.nii.gz").dataobj)
    found = lmh.segment(tmp_path / "scan.zip")
    np.testing.assert_array_equal(np.asarray(found.label_map.dataobj), expected)
    assert found.warnings == json.loads((segmented / "report.json").read_text())["warnings"]
    found.save(tmp_path / "out", on_all=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"seg.dcm", "seg_on_t1c.nii.gz"}


def test_nothing_of_the_patient_gets_out(dicom: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("prepare", [str(dicom), str(tmp_path / "case")])
    options = ["--keep", str(tmp_path / "kept"), "--on", "all", "--html", "--probabilities"]
    run("segment", ["--in-path", str(dicom), "--out-path", str(tmp_path / "out"), *options])
    printed = capfd.readouterr()
    words = [*PATIENT["PatientName"].split("^"), PATIENT["PatientID"], PATIENT["PatientBirthDate"], "A-99", "Zzyzx"]
    texts = {"console": (printed.out + printed.err).encode()}
    for path in tmp_path.rglob("*"):
        # The DICOM segmentation belongs to the patient, as the standard demands.
        if path.is_file() and path.name != "seg.dcm":
            content = path.read_bytes()
            texts[path.name] = nib.load(path).header.binaryblock if path.name.endswith(".nii.gz") else content
    texts["names"] = " ".join(path.name for path in tmp_path.rglob("*")).encode()
    assert len(texts) > 12
    for place, text in texts.items():
        for word in words:
            assert word.lower().encode() not in text.lower(), f"{word} in {place}"


def test_each_step_is_said_before_it_begins_and_nothing_with_quiet(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}

    def extract(volume: Volume, where: str) -> np.ndarray:
        said[where] = capfd.readouterr().out.splitlines()[-1]
        return volume.array > 0

    def register(*images: Volume, **brains: np.ndarray) -> Motion:
        said["registration"] = capfd.readouterr().out.splitlines()[-1]
        return Motion(np.eye(4), 1.0, 1.0, 0.0, 0.0)

    monkeypatch.setattr(prepare, "extract_brain", extract)
    monkeypatch.setattr(prepare, "register", register)
    words = [str(dicom), str(tmp_path / "case"), "--brain-extraction", "deepbet"]
    run("prepare", words)
    assert said == {
        "t1c": "t1c: finding the brain",
        "flair": "flair: finding the brain",
        "registration": "flair: registering it to t1c",
    }
    kept = (
        "registration found no clearly better position than the image headers give, so the position in the headers "
        "is used"
    )
    assert f"flair to t1c: {kept}\n" in capfd.readouterr().out
    quicken(monkeypatch)
    run("prepare", [*words, "--quiet"])
    assert capfd.readouterr().out == ""


def test_a_motion_is_told_in_degrees_and_millimetres(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = np.eye(4)
    moved[0, 3] = 2.5
    monkeypatch.setattr(prepare, "register", lambda *args, **more: Motion(moved, 1.0, 1.1, 0.0, 2.5))
    run("prepare", [str(dicom), str(tmp_path / "case")])
    assert "flair to t1c: flair was turned by 0.0 degrees and moved by 2.5 mm\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edges", "reference"),
    [
        ({"t1": 1.0, "t1c": 1.2, "flair": 3.0}, "t1c"),
        ({"t1": 1.0, "t1c": 1.3, "flair": 3.0}, "t1"),
        ({"t1c": 5.0, "t2": 1.0, "flair": 1.0}, "flair"),
    ],
    ids=["T1c about as fine", "T1c coarser", "T1c much coarser"],
)
def test_the_reference_is_the_finest_sequence(edges: dict[str, float], reference: str) -> None:
    # The longest edge of a voxel counts.
    volumes = {name: Volume(np.zeros((2, 2, 2)), np.diag([0.5, 0.5, edge, 1.0])) for name, edge in edges.items()}
    assert prepare._reference(volumes, None) == reference
    assert prepare._reference(volumes, "flair") == "flair"
    with pytest.raises(BadInputError, match=r"The reference sequence other is missing. Choose one of t1"):
        prepare._reference(volumes, "other")


@pytest.mark.parametrize(
    ("motion", "message"),
    [
        (Motion(np.diag([1, 1, 1, 1.001]), 0.1, 0.1, 5.0, 5.0), "error: flair: The registration to t1c failed"),
        (
            Motion(np.diag([1, 1, 1, 1.001]), 0.2, 0.9, 40.0, 5.0),
            "warning: flair: Registration to t1c turned this image by 40 degrees",
        ),
        (
            Motion(np.diag([1, 1, 1, 1.001]), 0.2, 0.9, 5.0, 80.0),
            "warning: flair: Registration to t1c turned this image by 5 degrees",
        ),
    ],
    ids=["nothing in common", "turned far", "moved far"],
)
def test_a_registration_that_looks_wrong_is_never_used_silently(
    motion: Motion, message: str, dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(prepare, "register", lambda *args, **more: motion)
    refused = message.startswith("error")
    with pytest.raises(SystemExit) if refused else nullcontext():
        run("prepare", [str(dicom), str(tmp_path / "out"), "--quiet"])
    assert message in capsys.readouterr().err
    assert (tmp_path / "out" / PREPARED).is_file() != refused


def test_a_given_mask_and_none_replace_the_brain_extraction(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "extract_brain", lambda volume, where: 1 / 0)
    run("prepare", [str(dicom), str(tmp_path / "none"), "--brain-extraction", "none", "--sequences", "t1c"])
    image = nib.load(tmp_path / "none" / FILE_NAMES["t1c"])
    whole = np.asarray(image.dataobj) != 0
    given = whole.copy()
    given[: given.shape[0] // 2] = False
    nib.save(nib.Nifti1Image(given.astype(np.uint8), image.affine), tmp_path / "mask.nii.gz")
    run("prepare", [str(dicom), str(tmp_path / "mask"), "--brain-mask", str(tmp_path / "mask.nii.gz")])
    for how, expected in (("none", whole), ("mask", given)):
        assert np.array_equal(np.asarray(nib.load(tmp_path / how / BRAIN_MASK).dataobj) > 0, expected)
        assert json.loads((tmp_path / how / PREPARED).read_text())["brain_extraction"] == how
    images = [np.asarray(nib.load(tmp_path / "mask" / FILE_NAMES[name]).dataobj) for name in SPACINGS]
    assert all(array.any() and not array[~given].any() for array in images)


@pytest.mark.parametrize("road", ["NIfTI", "DICOM"])
def test_what_is_no_image_is_refused_on_every_road(road: str, tmp_path: Path, capsys) -> None:
    image = in_plane(head(SPACINGS["t1c"]), "LPS")
    levels = np.ones(image.shape, dtype=np.float32)
    levels[4:9], levels[9:14, :20] = 2, 4
    for name, array, message in (
        ("zero", 0 * levels, "t1c: All voxels are zero"),
        ("constant", 1 + 0 * levels, "t1c: All voxels are "),
        ("labels", levels, "t1c: This is a label map with the values "),
    ):
        folder = tmp_path / name
        folder.mkdir()
        if road == "DICOM":
            write_series(folder, nib.Nifti1Image(array, image.affine), "t1c", number=1, shared=study())
        else:
            nib.save(nib.Nifti1Image(array, image.affine), folder / "T1c.nii.gz")
        assert message in refusal(folder, tmp_path, capsys)


def test_a_constant_background_of_dicom_files_is_set_to_zero(tmp_path: Path, capsys) -> None:
    image = in_plane(head(SPACINGS["t1c"]), "LPS")
    array = np.asarray(image.dataobj)
    array[array == 0] = 30
    write_series(tmp_path / "dicom", nib.Nifti1Image(array, image.affine), "t1c", number=1, shared=study())
    run("prepare", [str(tmp_path / "dicom"), str(tmp_path / "out")])
    assert "warning: t1c: The background has the value " in capsys.readouterr().err


def test_voxels_that_are_not_finite_are_set_to_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "case").mkdir()
    image = head(SPACINGS["t1c"])
    array = np.asarray(image.dataobj)
    array[0, 0, :2] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "case/T1c.nii.gz")
    run("prepare", [str(tmp_path / "case"), str(tmp_path / "out")])
    assert "warning: t1c: 2 voxels are not finite" in capsys.readouterr().err
    assert np.isfinite(np.asarray(nib.load(tmp_path / "out/T1c.nii.gz").dataobj)).all()


def test_temporary_files_are_removed_and_the_case_can_be_kept(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    words = ["--in-path", str(dicom), "--out-path", str(tmp_path / "out"), "--quiet", "--sequences", "t1c"]
    run("segment", [*words, "--keep", str(tmp_path / "kept")])
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {FILE_NAMES["t1c"], BRAIN_MASK, PREPARED}
    monkeypatch.setattr(prepare, "register", lambda *args, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lmh.segment(dicom)
    assert not list((tmp_path / "temporary").iterdir())


def test_raw_images_without_the_extra_name_the_command_that_installs_it(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(findings, "SCAN_MODULES", ("highdicom", "not_installed"))
    for command in (["prepare", str(dicom), str(tmp_path)], ["segment", "--in-path", str(dicom), "--out-path", "x"]):
        with pytest.raises(SystemExit):
            run(command[0], command[1:])
        assert 'pip install "lora-moe-hgd[scans]"' in capsys.readouterr().err
    with pytest.raises(ValueError, match="not_installed"):
        lmh.segment(dicom)


def test_a_case_without_dicom_refuses_their_options(dicom: Path, tmp_path: Path) -> None:
    case = tmp_path / "case"
    run("prepare", ["--in-path", str(dicom), "--out-path", str(case), "--sequences", "t1c", "--case-id", "case 7"])
    assert json.loads((case / PREPARED).read_text())["case_id"] == "case 7"
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(case), "--out-path", str(tmp_path / "out"), "--study", "1"])
    with pytest.raises(ValueError, match="The case was not made from raw images"):
        lmh.segment(case).save(tmp_path / "out", on_all=True)
    assert not (tmp_path / "out").exists()


def refusal(path: Path, tmp_path: Path, capsys, *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run("prepare", [str(path), str(tmp_path / "never"), *options])
    assert stopped.value.code == 2
    assert not (tmp_path / "never").exists()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_what_is_no_study_of_a_head_is_refused_in_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    image = in_plane(ball(), "LPS")
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(tmp_path / "empty", tmp_path, capsys)
    assert "no such file" in refusal(tmp_path / "nowhere", tmp_path, capsys)
    write_series(tmp_path / "ct", image, "t1", number=1, shared=study(), Modality="CT")
    assert "CT, not MRI" in refusal(tmp_path / "ct", tmp_path, capsys)
    write_series(tmp_path / "one", in_plane(ball((20, 24, 1)), "LPS"), "t1", number=1, shared=study())
    assert "1 slice only" in refusal(tmp_path / "one", tmp_path, capsys)
    assert "not a volume: it has 1 slice. Choose another series." in refusal(
        tmp_path / "one", tmp_path, capsys, "--series", "t1=1"
    )
    write_series(tmp_path / "turned", image, "t1", number=1, shared=study(), ImageOrientationPatient=None)
    assert "not a volume: it has no orientation. Choose another series." in refusal(
        tmp_path / "turned", tmp_path, capsys, "--series", "t1=1"
    )
    for path in write_series(tmp_path / "cut", image, "t1", number=1, shared=study()):
        path.write_bytes(path.read_bytes()[:200])
    assert "cut off" in refusal(tmp_path / "cut", tmp_path, capsys)
    write_series(tmp_path / "two/1", image, "t1", number=1, shared=study(1))
    write_series(tmp_path / "two/2", image, "t2", number=1, shared=study(2, PatientID="other"))
    assert "2 patients" in refusal(tmp_path / "two", tmp_path, capsys)
    for name, message in (
        ("t2", "The sequence t2 was not found. Request only sequences that were found: t1."),
        ("T1CE", "The sequence t1ce was not found. 't1ce' is named 't1c' here. Request only"),
    ):
        options = ("--study", "1", "--sequences", name)
        assert message in refusal(tmp_path / "two", tmp_path, capsys, *options)
    monkeypatch.setattr(prepare, "extract_brain", lambda volume, where: volume.array > volume.array.max() / 2)
    shutil.rmtree(tmp_path / "two/2")
    assert "not the volume of a brain" in refusal(tmp_path / "two", tmp_path, capsys)


def test_brain_masks_that_disagree_are_told_or_refused() -> None:
    grid = np.indices((40, 40, 40)) - 20
    ball_at = {shift: np.linalg.norm(np.moveaxis(grid, 0, -1) - [shift, 0, 0], axis=-1) < 14 for shift in (0, 3, 8)}
    brain, findings = brains.agreed_brain({"t1c": ball_at[0], "t2": ball_at[0], "flair": ball_at[3]}, "t1c")
    assert np.array_equal(brain, ball_at[0])
    assert [finding.where for finding in findings] == ["flair"]
    with pytest.raises(BadInputError, match="registration or the brain extraction has failed"):
        brains.agreed_brain({"t1c": ball_at[0], "flair": ball_at[8]}, "t1c")


def test_bright_tissue_that_goes_on_outside_the_mask_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brains, "BRIGHT_SPREADS", 3.5)
    place = np.moveaxis(np.indices((48, 48, 48)), 0, -1) - 24
    brain = np.linalg.norm(place, axis=-1) < 18
    flair = np.where(brain, np.random.default_rng(0).normal(100, 5, brain.shape), 0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    assert not brains.cut_off_findings(flair, brain, affine, "flair")
    lesion = np.linalg.norm(place - [17, 0, 0], axis=-1) < 5
    (finding,) = brains.cut_off_findings(np.where(lesion, 200, flair), brain, affine, "flair")
    assert "outside the brain mask" in str(finding)
    # A scalp does not touch the brain.
    scalp = (np.linalg.norm(place, axis=-1) > 20) & (np.linalg.norm(place, axis=-1) < 22)
    assert not brains.cut_off_findings(np.where(scalp, 400, flair), brain, affine, "flair")


def test_a_cohort_that_also_holds_dicom_files_is_a_cohort(dicom: Path, tmp_path: Path) -> None:
    for name in ("case_0", "case_1"):
        (tmp_path / "cohort" / name).mkdir(parents=True)
        image = head(SPACINGS["t1c"])
        nib.save(image, tmp_path / "cohort" / name / "T1c.nii.gz")
    shutil.copytree(dicom / "a", tmp_path / "cohort/sources/deep/dicom/series")
    run("segment", ["--in-path", str(tmp_path / "cohort"), "--out-path", str(tmp_path / "out"), "--allow-partial"])
    assert (tmp_path / "out/case_1/seg.nii.gz").is_file()
    assert not (tmp_path / "out/seg.dcm").exists()

"""A preparation that was stopped goes on after the last finished step, and never with an old result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicoms import PATIENT, in_plane, study, write_series
from small_scans import SPACINGS, head, write_study

from lora_moe_hgd.inference import scanned
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.scans import finished, prepare
from lora_moe_hgd.scans.prepared import BRAIN_MASK, FILE_NAMES, PREPARED
from lora_moe_hgd.scans.registration import Motion
from lora_moe_hgd.scans.steps import UNFINISHED, Steps
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped", "quickened")
# A ball would count as a brain without skull, on which no brain is looked for.
EXTRACT = ("--brain-extraction", "deepbet")


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sequences on which a brain was looked for."""
    names: list[str] = []

    def extract(volume: Volume, where: str) -> np.ndarray:
        names.append(where)
        return volume.array > 0

    monkeypatch.setattr(prepare, "extract_brain", extract)
    return names


def stop(*args: object, **more: object) -> Motion:
    raise KeyboardInterrupt


def stopped(dicom: Path, out: Path, step: str = "register", *options: str) -> None:
    """Run `prepare` until a step, at which the user stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, step, stop)
        with pytest.raises(SystemExit) as end:
            run("prepare", [str(dicom), str(out), *EXTRACT, *options])
    assert end.value.code == 130


def content(folder: Path) -> dict[str, object]:
    """The images and the report of a case, without its times."""
    images = {path.name: np.asarray(nib.load(path).dataobj).tobytes() for path in folder.glob("*.nii.gz")}
    report = json.loads((folder / PREPARED).read_text())
    return {**images, "report": {**report, "seconds": None, "made_from": None}}


def test_a_stopped_preparation_goes_on_and_gives_the_same_case(
    dicom: Path, tmp_path: Path, extracted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run("prepare", [str(dicom), str(tmp_path / "at once"), *EXTRACT])
    extracted.clear()
    stopped(dicom, tmp_path / "out")
    assert f"The results of the finished steps are in {tmp_path / 'out' / UNFINISHED}" in capsys.readouterr().err
    assert extracted == ["t1c", "flair"]
    run("prepare", [str(dicom), str(tmp_path / "out"), *EXTRACT])
    assert extracted == ["t1c", "flair"]
    printed = capsys.readouterr().out
    assert "results of a stopped run are used again: brain of t1c, brain of flair\n" in printed
    assert "finding the brain" not in printed
    files = {FILE_NAMES["t1c"], FILE_NAMES["flair"], BRAIN_MASK, PREPARED}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert content(tmp_path / "out") == content(tmp_path / "at once")


def test_a_finished_preparation_is_made_again_only_if_something_changed(
    tmp_path: Path, extracted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path / "dicom")
    # The case may lie beside the raw images.
    out = tmp_path / "dicom/case"
    words = [str(tmp_path / "dicom"), str(out), *EXTRACT]
    run("prepare", words)
    made = content(out)
    extracted.clear()
    capsys.readouterr()
    run("prepare", words)
    printed = capsys.readouterr().out
    assert f"{out} already contains this case" in printed
    assert printed.splitlines()[-1] == f"Next: lora-moe-hgd segment --in-path {out} --out-path RESULTS"
    assert f"delete {out / PREPARED}" in printed
    assert (extracted, content(out)) == ([], made)
    run("prepare", [*words, "--sequences", "flair"])
    assert extracted == ["flair"]
    assert content(out) != made
    run("prepare", words)
    assert content(out) == made
    (out / FILE_NAMES["flair"]).unlink()
    run("prepare", words)
    assert content(out) == made
    next((tmp_path / "dicom/b/c").iterdir()).unlink()
    extracted.clear()
    run("prepare", words)
    assert extracted == ["t1c", "flair"]


def test_only_the_files_of_the_case_are_fingerprinted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(finished, "file_fingerprint", lambda path: read.append(path.name) or path.name)
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "below/a_0000.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b_0000.nii.gz": ["b_0000.nii.gz"], "mistyped": []}
    for source, expected in given.items():
        read.clear()
        finished.inputs_fingerprint(tmp_path / source, tmp_path / "out", prepare.ScanOptions())
        assert read == expected


def test_a_program_of_the_user_extracts_the_brain_again(dicom: Path, tmp_path: Path, capsys) -> None:
    words = [str(dicom), str(tmp_path / "case"), "--brain-extraction", "cp {input} {output}"]
    for _ in range(2):
        run("prepare", words)
        assert "flair: finding the brain" in capsys.readouterr().out


def test_motions_are_kept_to_the_last_bit(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = np.array([1, 2, 3]) / 7
    found = Motion(matrix, 0.1 + 0.2, 1 / 3, 0.0, 2 / 7)
    monkeypatch.setattr(prepare, "register", lambda *args, **more: found)
    stopped(dicom, tmp_path / "out", "agreed_brain")
    monkeypatch.setattr(prepare, "register", stop)
    run("prepare", [str(dicom), str(tmp_path / "out"), *EXTRACT])
    assert "brain of flair, flair to t1c\n" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / PREPARED).read_text())
    assert report["sequences"]["flair"]["motion"] == np.round(matrix, 4).tolist()
    stored = Steps(tmp_path / "steps")
    volume = Volume(np.ones((2, 3, 4)), np.eye(4))
    for _ in range(2):
        again = stored.motion("t2", "t1", (volume, volume), (None, None), lambda: found)
        assert np.array_equal(again.matrix, found.matrix)
        assert (again.before, again.after, again.shift_mm) == (found.before, found.after, found.shift_mm)
    assert stored.reused == ["t2 to t1"]


def change_an_image(dicom: Path, out: Path) -> list[str]:
    """Another FLAIR at the place of the first."""
    for path in (dicom / "b/c").iterdir():
        path.unlink()
    image = head(SPACINGS["flair"])
    other = nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine)
    write_series(dicom / "b/c", in_plane(other, "PIL"), "flair", number=2, shared=study())
    return []


def change_the_option(dicom: Path, out: Path) -> list[str]:
    return ["--brain-extraction", "cp {input} {output}"]


def damage(dicom: Path, out: Path) -> list[str]:
    (path,) = (out / UNFINISHED).glob("brain-flair*")
    os.truncate(path, path.stat().st_size // 2)
    return []


@pytest.mark.parametrize(
    ("change", "expected"),
    [(change_an_image, ["flair"]), (change_the_option, []), (damage, ["flair"])],
    ids=["image", "option", "damaged"],
)
def test_a_changed_input_is_never_answered_by_an_old_result(
    change: Callable[[Path, Path], list[str]], expected: list[str], tmp_path: Path, extracted: list[str], capsys
) -> None:
    write_study(tmp_path / "dicom")
    stopped(tmp_path / "dicom", tmp_path / "out")
    extracted.clear()
    capsys.readouterr()
    options = change(tmp_path / "dicom", tmp_path / "out")
    run("prepare", [str(tmp_path / "dicom"), str(tmp_path / "out"), *EXTRACT, *options])
    assert extracted == expected
    assert ("brain of t1c" in capsys.readouterr().out) == (not options)
    run("prepare", [str(tmp_path / "dicom"), str(tmp_path / "at once"), *EXTRACT, *options])
    assert content(tmp_path / "out") == content(tmp_path / "at once")


def test_other_code_is_never_answered_by_an_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(np.ones((2, 3, 4), dtype=np.float32), np.eye(4))
    Steps(tmp_path).brain("t1", volume, lambda: volume.array > 0)
    again = Steps(tmp_path)
    monkeypatch.setattr("lora_moe_hgd.scans.steps.code_fingerprint", lambda name: "other")
    assert not again.brain("t1", volume, lambda: volume.array > 1).any()
    assert not again.reused


def test_images_of_another_origin_are_not_overwritten(dicom: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "case"
    target.mkdir()
    (target / "T1c.nii.gz").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        run("prepare", [str(dicom), str(target)])
    assert "T1c.nii.gz, which would be overwritten" in capsys.readouterr().err
    assert (target / "T1c.nii.gz").read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["prepare", "segment", "keep"])
def test_another_study_is_refused_before_the_brain_is_extracted(
    command: str, dicom: Path, tmp_path: Path, extracted: list[str], capsys
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    report = out / ("report.json" if command == "segment" else PREPARED)
    report.write_text('{"case_id": "other"}')
    words = (
        ["--out-path", str(tmp_path / "result"), "--keep", str(out)] if command == "keep" else ["--out-path", str(out)]
    )
    with pytest.raises(SystemExit):
        run("prepare" if command == "prepare" else "segment", ["--in-path", str(dicom), *words, *EXTRACT])
    assert f"{out} contains the results of another case, other." in capsys.readouterr().err
    assert extracted == []
    assert report.read_text() == '{"case_id": "other"}'


def test_segment_goes_on_after_the_preparation(
    dicom: Path, tmp_path: Path, extracted: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    words = ["--in-path", str(dicom), "--out-path", str(tmp_path / "out"), *EXTRACT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanned, "find_case", stop)
        with pytest.raises(SystemExit):
            run("segment", words)
    assert not (tmp_path / "out/seg.nii.gz").exists()
    run("segment", words)
    assert extracted == ["t1c", "flair"]
    assert (
        "results of a stopped run are used again: brain of t1c, brain of flair, flair to t1c\n"
        in capsys.readouterr().out
    )
    assert (tmp_path / "out/seg.nii.gz").is_file()
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_stored_steps_tell_nothing_of_the_patient_and_show_no_head(dicom: Path, tmp_path: Path) -> None:
    stopped(dicom, tmp_path / "out", "agreed_brain")
    paths = list((tmp_path / "out" / UNFINISHED).iterdir())
    assert len(paths) == 3
    for path in paths:
        header = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            image = nib.load(path)
            assert set(np.unique(np.asarray(image.dataobj))) == {0, 1}
            header = image.header.binaryblock
        for word in [*PATIENT["PatientName"].split("^"), PATIENT["PatientID"], PATIENT["PatientBirthDate"]]:
            assert word.encode() not in header
            assert word not in path.name

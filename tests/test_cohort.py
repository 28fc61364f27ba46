"""Many cases at once: results are whole or absent, whatever happens to the process."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import nibabel as nib
import numpy as np
import pytest
from forks import Fork
from small_runs import segment_shipping

from lora_moe_hgd import fingerprints
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.nifti import read_image, write_image
from lora_moe_hgd.files import replacing_folder
from lora_moe_hgd.inference import results as inference
from lora_moe_hgd.inference import segmentation
from lora_moe_hgd.inference.cohort import CohortCounts, segment_cohort
from lora_moe_hgd.inference.results import CaseSegmenter, ResultOptions
from lora_moe_hgd.phantoms.phantom import make_phantom, write_phantom_case
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.pretrained import DEFAULT_CHECKPOINT
from lora_moe_hgd_cli import run

pytestmark = pytest.mark.usefixtures("small_shipped")

ROOT = Path(__file__).parents[1]
NUM_CASES = 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole cases, and one of which a file is cut off."""
    root = tmp_path_factory.mktemp("cohort")
    for seed in range(NUM_CASES):
        write_phantom_case(make_phantom(seed, spacing_mm=4.0, style=NARROW), root / f"case_{seed:03d}")
    shutil.copytree(root / "case_000", root / "cut")
    path = root / "cut/T2.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])
    return root


@pytest.fixture(scope="module")
def results(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    with pytest.raises(SystemExit) as stopped:
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    assert stopped.value.code == 1
    return out


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "summary.csv", newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def segmentations(out: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.asarray(read_image(path).image.dataobj) for path in sorted(out.glob("*/seg.nii.gz"))}


def test_a_case_that_fails_is_told_and_the_others_are_whole(results: Path, cohort: Path) -> None:
    rows = table(results)
    assert sorted(rows) == sorted(path.name for path in cohort.iterdir())
    assert rows["cut"]["status"] == "failed"
    assert "T2.nii.gz" in rows["cut"]["message"]
    assert sorted(path.name for path in results.iterdir()) == [f"case_{n:03d}" for n in range(NUM_CASES)] + [
        "summary.csv"
    ]
    for case in list(segmentations(results)):
        assert rows[case]["status"] == "done"
        assert rows[case]["sequences"] == "t1+t1c+t2+flair"


def test_a_folder_that_is_no_case_is_called_by_its_path(cohort: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("first/ses-1", "second/ses-1"):
        shutil.copytree(cohort / "case_000", tmp_path / "data" / name)
    shutil.copy(tmp_path / "data/second/ses-1/T2.nii.gz", tmp_path / "data/second/ses-1/other_T2w.nii.gz")
    monkeypatch.setattr(CaseSegmenter, "is_done", lambda self, case, folder: False)
    monkeypatch.setattr(CaseSegmenter, "loaded", None)
    monkeypatch.setattr(CaseSegmenter, "write", lambda self, case, folder, **options: 1 / 0)
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(tmp_path / "data"), "--out-path", str(tmp_path / "out")])
    rows = table(tmp_path / "out")
    assert sorted(rows) == ["first_ses-1", "second_ses-1"]
    assert "Several files may be t2" in rows["second_ses-1"]["message"]


def test_each_warning_of_a_cohort_is_a_line_that_names_its_case(cohort: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "cohort"
    root.mkdir()
    for case in ("case_000", "case_001"):
        (root / case).symlink_to(cohort / case)
    run("segment", ["--in-path", str(root), "--out-path", str(tmp_path / "out"), "--sequences", "flair"])
    # A terminal overwrites what stands before a carriage return.
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    rows = table(tmp_path / "out")
    assert all(row["warnings"] for row in rows.values())
    for case, row in rows.items():
        for warning in row["warnings"].split("; "):
            assert f"warning: {case}: {warning}" in lines


def test_each_session_of_bids_gets_a_folder_and_a_row(cohort: Path, tmp_path: Path, capsys) -> None:
    for session in ("ses-1", "ses-2"):
        folder = tmp_path / f"bids/sub-01/{session}/anat"
        folder.mkdir(parents=True)
        (folder / f"sub-01_{session}_FLAIR.nii.gz").symlink_to(cohort / "case_000/FLAIR.nii.gz")
    run("segment", ["--in-path", str(tmp_path / "bids"), "--out-path", str(tmp_path / "out")])
    cases = ["sub-01_ses-1", "sub-01_ses-2"]
    assert [name for name, row in table(tmp_path / "out").items() if row["status"] == "done"] == cases
    assert list(segmentations(tmp_path / "out")) == cases
    assert "files of 2 cases: flair *_FLAIR.nii.gz" in capsys.readouterr().out.splitlines()


def test_volumes_in_the_table_are_those_of_the_segmentations(results: Path) -> None:
    rows = table(results)
    for case, labels in segmentations(results).items():
        assert float(rows[case]["wt_ml"]) == pytest.approx((labels > 0).sum() * 4.0**3 / 1000, abs=2e-3)


def test_a_case_of_a_cohort_has_the_result_it_has_alone(results: Path, cohort: Path, tmp_path: Path) -> None:
    run("segment", ["--in-path", str(cohort / "case_001"), "--out-path", str(tmp_path / "out")])
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "out/seg.nii.gz").image.dataobj), segmentations(results)["case_001"]
    )


def test_the_confidence_in_the_table_is_that_of_the_reports(results: Path) -> None:
    rows = table(results)
    for case in segmentations(results):
        confidence = json.loads((results / case / "report.json").read_text())["confidence"]
        assert confidence.keys() == {"wt", "tc", "et"}
        for region, value in confidence.items():
            assert rows[case][f"{region}_confidence"] == ("" if value is None else str(value))
    assert rows["cut"]["wt_confidence"] == ""


def test_the_last_line_of_a_cohort_counts_the_cases_and_names_table_and_page(
    cohort: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    shutil.rmtree(out / "case_002")
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    expected = f"Segmented: 1 of 4 cases; 2 skipped, because complete results exist; 1 failed. Summary table: {out}"
    assert capsys.readouterr().out.splitlines()[-1] == f"{expected}/summary.csv."
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out), "--html"])
    expected = f"Segmented: 3 of 4 cases; 1 failed. Summary table: {out}/summary.csv."
    assert capsys.readouterr().out.splitlines()[-1] == f"{expected} Page with all cases: {out}/index.html."


def test_only_what_is_not_done_is_done(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    (out / "case_002/report.json").unlink()
    times = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/seg.nii.gz")}
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    again = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/seg.nii.gz")}
    assert {case for case in times if times[case] != again[case]} == {"case_002"}


def test_a_folder_with_the_results_of_another_case_is_kept(cohort: Path, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "case_001", tmp_path / "out/case_000")
    before = (tmp_path / "out/case_000/seg.nii.gz").read_bytes()
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(tmp_path / "out")])
    assert "contains the results of another case, case_001" in table(tmp_path / "out")["case_000"]["message"]
    assert (tmp_path / "out/case_000/seg.nii.gz").read_bytes() == before


def test_other_options_are_other_results(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    run("segment", ["--in-path", str(cohort), "--out-path", str(out), "--sequences", "t1c,flair"])
    rows = table(out)
    assert {row["sequences"] for row in rows.values() if row["status"] == "done"} == {"t1c+flair"}
    # The file that is cut off is not read now.
    assert rows["cut"]["status"] == "done"


def test_results_never_go_into_the_cases(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("segment", ["--in-path", str(cohort), "--out-path", str(cohort)])
    assert stopped.value.code == 2
    assert "--out-path must not be the folder of the case" in capsys.readouterr().err


def test_results_are_replaced_by_whole_ones_only(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results / "case_000", out / "case_000")
    # No case can be segmented: none has a sequence on a grid that --strict takes, or it lacks the sequence.
    bare = tmp_path / "bare"
    shutil.copytree(cohort / "case_000", bare / "case_000")
    shutil.copytree(cohort / "case_001", bare / "case_001")
    (bare / "case_000/T2.nii.gz").unlink()
    words = ["--in-path", str(bare), "--out-path", str(out), "--sequences", "t2"]
    with pytest.raises(SystemExit):
        run("segment", words)
    row = table(out)["case_000"]
    assert row["status"] == "failed"
    assert "lacks t2" in row["message"]
    assert "The folder of the case keeps the results of an earlier run." in row["message"]
    np.testing.assert_array_equal(segmentations(out)["case_000"], segmentations(results)["case_000"])


def test_an_old_folder_comes_back_where_the_new_one_cannot_get_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "seg.nii.gz").touch()
    with pytest.raises(OSError, match="No such file"), replacing_folder(folder) as scratch:
        scratch.rmdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["case", "seg.nii.gz"]


def test_what_is_no_result_is_never_removed(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results / "case_000", out / "case_000")
    (out / "case_000/report.json").unlink()
    (out / "case_000/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    assert {path.name for path in (out / "case_000").iterdir()} == {"notes.txt", "seg.nii.gz", "overlay.png"}
    assert "notes.txt" in table(out)["case_000"]["message"]


@pytest.mark.parametrize("report", ["", "[1]", "{}", 100_000 * "["], ids=["empty", "list", "no key", "too deep"])
def test_a_damaged_report_is_made_anew(cohort: Path, results: Path, tmp_path: Path, report: str) -> None:
    root, out = tmp_path / "cohort", tmp_path / "out"
    root.mkdir()
    for case in ("case_000", "case_001"):
        (root / case).symlink_to(cohort / case)
        shutil.copytree(results / case, out / case)
    (out / "case_000/report.json").write_text(report)
    run("segment", ["--in-path", str(root), "--out-path", str(out)])
    assert [row["status"] for row in table(out).values()] == ["done", "done"]


def test_a_case_without_its_segmentation_is_not_done(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    (out / "case_001/seg.nii.gz").unlink()
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    assert (out / "case_001/seg.nii.gz").is_file()


def test_an_input_that_is_gone_fails_its_case_alone(cohort: Path, results: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "cohort", tmp_path / "out"
    root.mkdir()
    for case in ("case_000", "case_001"):
        shutil.copytree(results / case, out / case)
    (root / "case_001").symlink_to(cohort / "case_001")
    shutil.copytree(cohort / "case_000", root / "case_000")
    (root / "case_000/T1.nii.gz").unlink()
    (root / "case_000/T1.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    with pytest.raises(SystemExit) as stopped:
        run("segment", ["--in-path", str(root), "--out-path", str(out)])
    assert stopped.value.code == 1
    assert {case: row["status"] for case, row in table(out).items()} == {"case_000": "failed", "case_001": "done"}


@pytest.fixture
def done(cohort: Path, results: Path, tmp_path: Path) -> Callable[[], bool]:
    """Asks a new segmenter whether the results of a copy of `case_000` below `tmp_path` are done."""
    shutil.copytree(cohort / "case_000", tmp_path / "cohort/case_000")

    def ask() -> bool:
        case = find_case(tmp_path / "cohort/case_000")
        return CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions()).is_done(case, results / "case_000")

    return ask


def test_results_of_a_moved_case_are_done_and_those_of_another_version_are_not(done, monkeypatch) -> None:
    assert done()
    monkeypatch.setattr(fingerprints, "version", lambda name: "99")
    assert not done()


def test_results_of_other_code_are_not_done(done, monkeypatch) -> None:
    monkeypatch.setattr(inference, "code_fingerprint", lambda *modules: "of other code")
    assert not done()


def test_results_of_a_file_that_was_replaced_by_one_of_equal_size_and_time_are_not_done(done, tmp_path: Path) -> None:
    path = tmp_path / "cohort/case_000/T2.nii.gz"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not done()


def test_another_order_of_channels_is_another_result(tmp_path: Path) -> None:
    path = tmp_path / "BRATS_001.nii.gz"
    write_image(
        path, np.random.default_rng(0).random((8, 8, 8, 4)), like=nib.Nifti1Image(np.zeros((8, 8, 8)), np.eye(4))
    )
    segmenter = CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions())
    orders = (("flair", "t1", "t1c", "t2"), ("t1", "t1c", "t2", "flair"))
    prints = {segmenter.fingerprint(find_case(path, channel_order=order)) for order in orders}
    assert len(prints) == 2
    assert None not in prints


@pytest.mark.parametrize("stage", ["read", "write"])
@pytest.mark.parametrize("error", [TypeError("no message of ours"), KeyError("wt"), MemoryError(), RecursionError()])
def test_whatever_a_case_raises_the_others_go_on(
    cohort: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, stage: str
) -> None:
    def copied(self: CaseSegmenter, case: CaseFiles, folder: Path, **options: object) -> None:
        if stage == "write" and case.case_id == "case_001":
            raise error
        shutil.copytree(results / case.case_id, folder, dirs_exist_ok=True)

    def read(self: CaseSegmenter, case: CaseFiles) -> CaseFiles:
        if stage == "read" and case.case_id == "case_001":
            raise error
        return case

    monkeypatch.setattr(CaseSegmenter, "read", read)
    monkeypatch.setattr(CaseSegmenter, "write", copied)
    monkeypatch.setattr(CaseSegmenter, "loaded", None)
    segmenter = CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions())
    cases = [find_case(cohort / f"case_{number:03d}") for number in range(NUM_CASES)]
    counts = segment_cohort(segmenter, cases, [], tmp_path / "out", root=cohort)
    assert counts == CohortCounts(segmented=2, skipped=0, failed=1)
    rows = table(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert type(error).__name__ in rows["case_001"]["message"]
    assert list(segmentations(tmp_path / "out")) == ["case_000", "case_002"]


def test_the_next_case_is_read_while_a_case_is_segmented_and_no_further_one(
    cohort: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_read = {f"case_{number:03d}": Event() for number in range(NUM_CASES)}

    def read(self: CaseSegmenter, case: CaseFiles) -> CaseFiles:
        was_read[case.case_id].set()
        return case

    def segmented(self: CaseSegmenter, case: CaseFiles, folder: Path, **options: object) -> None:
        number = int(case.case_id.removeprefix("case_"))
        following = list(was_read.values())[number + 1 :]
        assert all(event.wait(timeout=60) for event in following[:1])
        assert not any(event.is_set() for event in following[1:])
        shutil.copytree(results / case.case_id, folder, dirs_exist_ok=True)

    monkeypatch.setattr(CaseSegmenter, "read", read)
    monkeypatch.setattr(CaseSegmenter, "write", segmented)
    monkeypatch.setattr(CaseSegmenter, "loaded", None)
    segmenter = CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions())
    cases = [find_case(cohort / name) for name in was_read]
    assert segment_cohort(segmenter, cases, [], tmp_path / "out", root=cohort).failed == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_user_who_stops_a_cohort_stops_it(cohort: Path, tmp_path: Path, monkeypatch, stop: type) -> None:
    def stopped(self: CaseSegmenter, case: CaseFiles, folder: Path, **options: object) -> None:
        raise stop

    monkeypatch.setattr(CaseSegmenter, "read", lambda self, case: case)
    monkeypatch.setattr(CaseSegmenter, "write", stopped)
    monkeypatch.setattr(CaseSegmenter, "loaded", None)
    segmenter = CaseSegmenter(DEFAULT_CHECKPOINT, ResultOptions())
    with pytest.raises(stop):
        segment_cohort(segmenter, [find_case(cohort / "case_000")], [], tmp_path / "out", root=cohort)


def test_a_picture_that_fails_costs_no_result_and_is_not_tried_again(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "cohort", tmp_path / "out"
    for case in ("case_000", "case_001"):
        root.mkdir(exist_ok=True)
        (root / case).symlink_to(cohort / case)
    words = ["--in-path", str(root), "--out-path", str(out), "--sequences", "flair", "--html"]

    def fails(*words: object, **options: object) -> None:
        raise TypeError("no such colour")

    monkeypatch.setattr(segmentation, "save_overlay", fails)
    monkeypatch.setattr(segmentation, "write_case_page", fails)
    run("segment", words)
    said = "could not be made (TypeError: no such colour). The segmentation itself is complete."
    for row in table(out).values():
        assert row["status"] == "done"
        assert f"overlay.png {said}" in row["warnings"]
        assert f"report.html {said}" in row["warnings"]
    lines = capsys.readouterr().err.splitlines()
    for case in ("case_000", "case_001"):
        assert f"warning: {case}: overlay.png {said}" in lines
        assert f"warning: {case}: report.html {said}" in lines
    assert {path.name for path in (out / "case_000").iterdir()} == {"report.json", "seg.nii.gz"}
    monkeypatch.delattr(CaseSegmenter, "write")
    run("segment", words)


def test_a_case_of_one_slice_is_segmented_with_its_picture_and_page(cohort: Path, tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    (root / "case_000").mkdir(parents=True)
    whole = read_image(cohort / "case_000/FLAIR.nii.gz").image
    middle = whole.shape[2] // 2
    one = np.asarray(whole.dataobj)[:, :, middle : middle + 1]
    write_image(root / "case_000/FLAIR.nii.gz", one, like=whole.slicer[:, :, middle : middle + 1])
    (root / "case_001").symlink_to(cohort / "case_001")
    out = tmp_path / "out"
    run("segment", ["--in-path", str(root), "--out-path", str(out), "--html", "--allow-partial"])
    assert [row["status"] for row in table(out).values()] == ["done", "done"]
    assert {path.name for path in (out / "case_000").iterdir()} == {
        *("seg.nii.gz", "overlay.png", "report.html", "report.json")
    }
    assert read_image(out / "case_000/seg.nii.gz").image.shape == one.shape


def test_a_folder_whose_name_is_not_unicode_is_a_case_like_any_other(
    cohort: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    root, out = tmp_path / "cohort", tmp_path / "out"
    root.mkdir()
    name = os.fsdecode("Müller".encode("latin-1"))
    try:
        shutil.copytree(cohort / "case_000", root / name)
    except OSError:
        pytest.skip("This file system takes Unicode names only.")
    shutil.copytree(cohort / "cut", root / f"{name}-cut")
    (root / "case_001").symlink_to(cohort / "case_001")
    words = ["--in-path", str(root), "--out-path", str(out), "--html", "--sequences", "t1,t2"]
    with pytest.raises(SystemExit) as stopped:
        run("segment", words)
    assert stopped.value.code == 1
    rows = table(out)
    assert sorted(row["status"] for row in rows.values()) == ["done", "done", "failed"]
    assert rows["Müller"]["status"] == "done"
    assert r"M\udcfcller-cut" in rows["Müller-cut"]["message"]
    assert (out / "Müller/report.json").is_file()
    assert b"M%C3%BCller/report.html" in (out / "index.html").read_bytes()
    assert "failed: Müller-cut: ".encode() in capsysbinary.readouterr().err
    with pytest.raises(SystemExit):
        run("check", [str(root), "--no-labels"])
    assert rb"M\udcfcller-cut/T2.nii.gz" in capsysbinary.readouterr().out


def state_of(out: Path) -> set[tuple[Path, int]]:
    return {(path, path.lstat().st_ino) for path in out.glob("*")} if out.is_dir() else set()


def killed_at_random(cohort: Path, out: Path, weights: Path, *, kills: int, seed: int) -> None:
    """Start again and again, each time killed some time after something has changed; then let it end."""
    words = ["--in-path", str(cohort), "--out-path", str(out)]
    draw = random.Random(seed)
    for _ in range(kills):
        before = state_of(out)
        fork = Fork(segment_shipping, weights, words)
        while fork.is_running() and state_of(out) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1.0))
        fork.kill()
        for folder in out.glob("[!.]*/"):
            assert {"seg.nii.gz", "overlay.png", "report.json"} == {path.name for path in folder.iterdir()}
    code, shown = Fork(segment_shipping, weights, words).wait()
    assert code == 1, shown


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_kill_leaves_whole_results_only_and_nothing_is_lost(
    cohort: Path, results: Path, small_weights: Path, tmp_path: Path, kills: int
) -> None:
    out = tmp_path / "out"
    # Some results are of other options, and are replaced.
    shutil.copytree(results / "case_000", out / "case_000")
    report = json.loads((out / "case_000/report.json").read_text())
    (out / "case_000/report.json").write_text(json.dumps(report | {"made_from": "another run"}))
    killed_at_random(cohort, out, small_weights, kills=kills, seed=kills)
    whole, found = segmentations(results), segmentations(out)
    assert list(found) == list(whole)
    for case, labels in found.items():
        np.testing.assert_array_equal(labels, whole[case])
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in results.iterdir())
    assert table(out) == table(results)


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_two_processes_share_a_cohort(cohort: Path, results: Path, small_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # What is left is shared, not what there was.
    shutil.copytree(results / "case_000", out / "case_000")
    processes = ["--config_file", str(ROOT / "configs/accelerate/cpu_two_processes.yaml"), "--main_process_port", "0"]
    # Each process says which cases it has segmented.
    script = tmp_path / "infer.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from small_runs import segment_shipping\n"
        "from lora_moe_hgd.inference.results import CaseSegmenter\n"
        "write = CaseSegmenter.write\n"
        "def told(self, ready, folder, **options):\n"
        "    print(f'RANK {os.environ[\"RANK\"]} HAS {ready.case.case_id}', flush=True)\n"
        "    return write(self, ready, folder, **options)\n"
        "CaseSegmenter.write = told\n"
        f"segment_shipping(Path({str(small_weights)!r}), sys.argv[1:])\n"
    )
    done = launched(*processes, str(script), "--in-path", str(cohort), "--out-path", str(out))
    assert done.returncode == 1, done.stderr
    assert table(out) == table(results)
    shares = dict(re.findall(r"RANK (\d) HAS (case_\d+)", done.stdout))
    assert set(shares) == {"0", "1"}
    assert "case_000" not in shares.values()


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_of_two_is_told(cohort: Path, tmp_path: Path) -> None:
    words = ["--in-path", str(cohort), "--out-path", str(tmp_path / "out")]
    done = launched("--cpu", "--num_processes", "2", str(ROOT / "infer.py"), *words)
    assert "started only one" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cases(cohort: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for number in range(40):
        shutil.copytree(cohort / f"case_{number % NUM_CASES:03d}", many / f"case_{number:03d}")
    peaks = []
    for count in (10, 40):
        root = tmp_path / f"first_{count}"
        root.mkdir()
        for number in range(count):
            (root / f"case_{number:03d}").symlink_to(many / f"case_{number:03d}")
        code = (
            "import resource, sys; from lora_moe_hgd_cli import run;"
            f"run('segment', ['--in-path', {str(root)!r}, '--out-path', {str(tmp_path / f'out_{count}')!r}]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < 1.05 * peaks[0], peaks

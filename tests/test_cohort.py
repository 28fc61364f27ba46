"""Many cases at once: results are whole or absent, whatever happens to the process."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lora_moe_hgd.data.nifti import read_image
from lora_moe_hgd.data.phantom import make_phantom, write_phantom_case
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
NUM_CASES = 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole cases, and one of which a file is cut off."""
    root = tmp_path_factory.mktemp("cohort")
    for seed in range(NUM_CASES):
        write_phantom_case(make_phantom(seed, spacing_mm=4.0), root / f"case_{seed:03d}")
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
    with open(out / "summary.csv", newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def segmentations(out: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.asarray(read_image(path).dataobj) for path in sorted(out.glob("*/seg.nii.gz"))}


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


def test_volumes_in_the_table_are_those_of_the_segmentations(results: Path) -> None:
    rows = table(results)
    for case, labels in segmentations(results).items():
        assert float(rows[case]["wt_ml"]) == pytest.approx((labels > 0).sum() * 4.0**3 / 1000, abs=2e-3)


def test_a_case_of_a_cohort_has_the_result_it_has_alone(results: Path, cohort: Path, tmp_path: Path) -> None:
    run("segment", ["--in-path", str(cohort / "case_001"), "--out-path", str(tmp_path / "out")])
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "out/seg.nii.gz").dataobj), segmentations(results)["case_001"]
    )


def test_only_what_is_not_done_is_done(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    (out / "case_002/report.json").unlink()
    times = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/seg.nii.gz")}
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    again = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/seg.nii.gz")}
    assert {case for case in times if times[case] != again[case]} == {"case_002"}


def test_other_options_are_other_results(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    run("segment", ["--in-path", str(cohort), "--out-path", str(out), "--modalities", "t1c,flair"])
    rows = table(out)
    assert {row["sequences"] for row in rows.values() if row["status"] == "done"} == {"t1c+flair"}
    # The file that is cut off is not read now.
    assert rows["cut"]["status"] == "done"


def test_results_never_go_into_the_cases(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("segment", ["--in-path", str(cohort), "--out-path", str(cohort)])
    assert stopped.value.code == 2
    assert "--out-path must not be the folder of the case" in capsys.readouterr().err


def test_what_is_no_result_is_never_removed(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results / "case_000", out / "case_000")
    (out / "case_000/report.json").unlink()
    (out / "case_000/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        run("segment", ["--in-path", str(cohort), "--out-path", str(out)])
    assert (out / "case_000/notes.txt").read_text() == "mine"
    assert "not empty" in table(out)["case_000"]["message"]


def killed_at_random(cohort: Path, out: Path, *, kills: int, seed: int) -> None:
    """Start again and again, each time killed some time after work has begun; then let it end."""
    words = [sys.executable, str(ROOT / "infer.py"), "--in-path", str(cohort), "--out-path", str(out)]
    draw = random.Random(seed)
    for _ in range(kills):
        before = set(out.glob("*")) if out.is_dir() else set()
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (out.is_dir() and set(out.glob("*")) - before):
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 1.0))
            os.kill(process.pid, signal.SIGKILL)
        for folder in out.glob("[!.]*/"):
            assert {"seg.nii.gz", "overlay.png", "report.json"} == {path.name for path in folder.iterdir()}
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_kill_leaves_whole_results_only_and_nothing_is_lost(
    cohort: Path, results: Path, tmp_path: Path, kills: int
) -> None:
    out = tmp_path / "out"
    killed_at_random(cohort, out, kills=kills, seed=kills)
    whole, found = segmentations(results), segmentations(out)
    assert list(found) == list(whole)
    for case, labels in found.items():
        np.testing.assert_array_equal(labels, whole[case])
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in results.iterdir())
    assert table(out) == table(results)


@pytest.mark.slow
def test_two_processes_share_a_cohort(cohort: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["launch", "--cpu", "--num_processes", "2", str(ROOT / "infer.py")]
    words += ["--in-path", str(cohort), "--out-path", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert table(out) == table(results)


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

"""Many cases to a folder of results each, and a table of all: stopped at any moment, it goes on where it was."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from ..data.case_files import CaseFiles
from ..data.findings import Finding
from ..files import new_folder, replacing
from ..model.configuration_lora_moe_hgd import REGIONS
from .page import write_cohort_index
from .results import RESULT_FILES, CaseSegmenter

SUMMARY = "summary.csv"
COLUMNS = ("case", "status", "sequences", *(f"{region}_ml" for region in REGIONS), "warnings", "message")


def segment_cohort(segmenter: CaseSegmenter, cases: Sequence[CaseFiles], bad: Sequence[Finding], out: Path) -> int:
    """Write `out/CASE` for each case and `out/summary.csv`; return how many cases failed.

    A case whose results of the same weights, options and files are there is not computed again. Results appear under
    their name only when they are whole. A case that fails is reported, and the others go on. Under `accelerate launch`
    the processes share the cases.

    Args:
        segmenter: What segments a case.
        cases: All of them, with names of their own.
        bad: What cannot be told as a case; each counts as failed.
        out: Folder for the results.
    """
    state = PartialState()
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        _remove_halves(cases, out)
    state.wait_for_everyone()
    failed: dict[str, str] = {}
    own = cases[state.process_index :: state.num_processes]
    if not all(segmenter.is_done(case, out / case.case_id) for case in own):
        # Here, as a checkpoint that cannot be loaded is no failure of a case.
        _ = segmenter.loaded
    for case in tqdm(own, desc="cases", unit="case", disable=not state.is_main_process):
        try:
            _segment_one(segmenter, case, out / case.case_id)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed[case.case_id] = str(error) or type(error).__name__
            tqdm.write(f"failed: {case.case_id}: {failed[case.case_id]}", file=sys.stderr)
    failed = dict(gather_object(list(failed.items())))
    if state.is_main_process:
        for finding in bad:
            print(f"failed: {finding}", file=sys.stderr)
        _write_summary(cases, bad, failed, out)
        if segmenter.options.html:
            write_cohort_index(out)
    return len(failed) + len(bad)


def _segment_one(segmenter: CaseSegmenter, case: CaseFiles, folder: Path) -> None:
    if segmenter.is_done(case, folder):
        return
    if folder.exists():
        # Of other weights, options or files. What is not a result stays, and is an error.
        for name in RESULT_FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    with new_folder(folder) as scratch:
        segmenter.write(case, scratch)


def _remove_halves(cases: Sequence[CaseFiles], out: Path) -> None:
    """What a killed process has left beside the results."""
    for case in cases:
        for path in out.glob(f".*-{case.case_id}"):
            if path.name[1:].split("-")[0].isdigit():
                shutil.rmtree(path, ignore_errors=True)


def _write_summary(cases: Sequence[CaseFiles], bad: Sequence[Finding], failed: dict[str, str], out: Path) -> None:
    rows = []
    for case in cases:
        row = {"case": case.case_id, "status": "failed", "message": failed.get(case.case_id, "")}
        if case.case_id not in failed:
            report = json.loads((out / case.case_id / "report.json").read_text())
            row |= {f"{region}_ml": report["volumes_ml"][region] for region in REGIONS}
            row |= {"status": "done", "sequences": "+".join(report["sequences_used"])}
            row["warnings"] = "; ".join(report["warnings"])
        rows.append(row)
    rows += [{"case": finding.path.name, "status": "failed", "message": str(finding)} for finding in bad]
    with replacing(out / SUMMARY) as scratch, open(scratch, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)

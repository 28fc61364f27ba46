"""Many cases to a folder of results each, and a table of all: stopped at any moment, it goes on where it was."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from ..data.case_files import CaseFiles
from ..data.findings import Finding
from ..files import remove_leftovers, replacing, replacing_folder
from ..model.configuration_lora_moe_hgd import REGIONS
from ..processes import started_processes
from .page import write_cohort_index
from .results import RESULT_FILES, CaseSegmenter

SUMMARY, INDEX = "summary.csv", "index.html"
COLUMNS = ("case", "status", "sequences", *(f"{region}_ml" for region in REGIONS), "warnings", "message")


def segment_cohort(segmenter: CaseSegmenter, cases: Sequence[CaseFiles], bad: Sequence[Finding], out: Path) -> int:
    """Write `out/CASE` for each case and `out/summary.csv`; return how many cases failed.

    A case whose results of the same weights, options and files are there is not computed again. Results appear under
    their name only when they are whole, and earlier ones go only then. A case that fails is reported, and the others
    go on. Under `accelerate launch` the processes share the cases.

    Args:
        segmenter: What segments a case.
        cases: All of them, with names of their own.
        bad: What cannot be told as a case; each counts as failed.
        out: Folder for the results.
    """
    state = started_processes()
    left: list[list[int]] = [[]]
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, _names(cases))
        # One process looks, so that what is left is shared evenly however an earlier run was stopped.
        done = [segmenter.is_done(case, out / case.case_id) for case in cases]
        left = [[index for index, is_done in enumerate(done) if not is_done]]
    (numbers,) = broadcast_object_list(left)
    own = [cases[index] for index in numbers[state.process_index :: state.num_processes]]
    if own:
        # Here, as a checkpoint that cannot be loaded is no failure of a case.
        _ = segmenter.loaded
    failed: dict[str, str] = {}
    for case in tqdm(own, desc="cases", unit="case", disable=not state.is_main_process):
        folder = out / case.case_id
        try:
            _refuse_other_files(folder)
            with replacing_folder(folder) as scratch:
                segmenter.write(case, scratch)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            kept = " Results of an earlier run are kept." if folder.exists() else ""
            failed[case.case_id] = f"{str(error) or type(error).__name__}{kept}"
            tqdm.write(f"failed: {case.case_id}: {failed[case.case_id]}", file=sys.stderr)
    failed = dict(gather_object(list(failed.items())))
    if state.is_main_process:
        for finding in bad:
            print(f"failed: {finding}", file=sys.stderr)
        rows = _rows(cases, bad, failed, out)
        _write_summary(rows, out)
        # One of an earlier run would tell of results that are gone.
        (out / INDEX).unlink(missing_ok=True)
        if segmenter.options.html:
            write_cohort_index(out / INDEX, rows)
    # A process that ends with an error makes the launcher end the others.
    state.wait_for_everyone()
    return len(failed) + len(bad)


def _names(cases: Sequence[CaseFiles]) -> list[str]:
    """What this module writes below the folder of the results."""
    folders = [case.case_id for case in cases]
    return [SUMMARY, INDEX, *folders, *(f"{name}.old" for name in folders)]


def _refuse_other_files(folder: Path) -> None:
    """Raise if something lies among earlier results that is none, and that replacing them would take away."""
    others = sorted({path.name for path in folder.glob("*")} - set(RESULT_FILES))
    if others:
        raise ValueError(f"{folder} must hold nothing but results to be replaced, got {', '.join(others[:3])}.")


def _rows(
    cases: Sequence[CaseFiles], bad: Sequence[Finding], failed: Mapping[str, str], out: Path
) -> list[dict[str, Any]]:
    """A row for each case, with `COLUMNS` and, where it is done, the least confidence over the regions."""
    rows = []
    for case in cases:
        row: dict[str, Any] = {"case": case.case_id, "status": "failed", "message": failed.get(case.case_id, "")}
        if case.case_id not in failed:
            report = json.loads((out / case.case_id / "report.json").read_text())
            row |= {f"{region}_ml": report["volumes_ml"][region] for region in REGIONS}
            row |= {"status": "done", "sequences": "+".join(report["sequences_used"])}
            row |= {"warnings": report["warnings"], "confidence": min(report["confidence"].values())}
        rows.append(row)
    return rows + [{"case": Path(finding.where).name, "status": "failed", "message": str(finding)} for finding in bad]


def _write_summary(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    with replacing(out / SUMMARY) as scratch, open(scratch, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "warnings": "; ".join(row.get("warnings", []))} for row in rows)

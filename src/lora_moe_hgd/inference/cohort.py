"""Segment many cases: one folder of results per case, and a summary table. A stopped run can be continued."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from ..cases.case_files import CaseFiles, refuse_other_case
from ..cases.layouts import name_of_place
from ..files import printable, read_json, reason_of, remove_leftovers, replacing, replacing_folder
from ..model.findings import Finding
from ..model.task import Task
from ..processes import started_processes
from .cohort_page import write_cohort_index
from .results import CaseSegmenter, ReadyCase
from .segmentation import RESULT_FILES

SUMMARY, INDEX = "summary.csv", "index.html"


@dataclass(frozen=True)
class CohortCounts:
    """Numbers of segmented, skipped and failed cases of a cohort.

    Attributes:
        segmented: Cases that were segmented in this run.
        skipped: Cases that an earlier run had segmented.
        failed: Cases and folders that could not be segmented.
    """

    segmented: int
    skipped: int
    failed: int


def segment_cohort(
    segmenter: CaseSegmenter,
    cases: Sequence[CaseFiles],
    bad: Sequence[Finding],
    out: Path,
    *,
    root: Path,
    progress: bool = True,
) -> CohortCounts:
    """Write the results of each case and a summary table. Return the numbers of segmented, skipped and failed cases.

    Results are written to `out/CASE`, and the table to `out/summary.csv`. A case is skipped if it has complete results
    from the weights, options, code and files of this run. Results are written atomically, so earlier results are
    replaced only by complete results. If a case raises an exception, the exception is printed and the other cases are
    still segmented. Under `accelerate launch`, each process segments a part of the cases.

    Args:
        segmenter: Segmenter with the checkpoint and the options.
        cases: Cases of the cohort, each with a different `case_id`.
        bad: An error for each folder that could not be recognised as a case. Each error counts as a failed case.
        out: Folder for the results.
        root: Folder of the cohort.
        progress: Show progress bars.
    """
    state = started_processes()
    left: list[list[int]] = [[]]
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, _names(cases))
        # Only one process looks for earlier results, so that the remaining cases can be shared evenly. It reads all
        # files for their fingerprints, so a progress bar appears if this takes long.
        numbers = tqdm(range(len(cases)), desc="earlier results", unit="case", delay=2, disable=not progress)
        left = [[number for number in numbers if not segmenter.is_done(cases[number], out / cases[number].case_id)]]
    (numbers_left,) = broadcast_object_list(left)
    own = [cases[number] for number in numbers_left[state.process_index :: state.num_processes]]
    if own:
        # Load the network before the loop, because an invalid checkpoint must not count as the failure of a case.
        _ = segmenter.loaded
    failed: dict[str, str] = {}
    bar = tqdm(own, desc="cases", unit="case", disable=not (progress and state.is_main_process))
    for case, ready in zip(bar, _read_ahead(segmenter, own), strict=True):
        folder = out / case.case_id
        try:
            _refuse_other_files(folder)
            refuse_other_case(folder / "report.json", case.case_id)
            with replacing_folder(folder) as scratch:
                segmenter.write(ready(), scratch, warn=partial(_print_line, f"warning: {case.case_id}"))
        except Exception as error:
            kept = " The folder of the case keeps the results of an earlier run." if folder.exists() else ""
            failed[case.case_id] = f"{reason_of(error)}{kept}"
            _print_line(f"failed: {case.case_id}", failed[case.case_id])
    failed = dict(gather_object(list(failed.items())))
    if state.is_main_process:
        for finding in bad:
            print(printable(f"failed: {finding}"), file=sys.stderr)
        rows = _rows(cases, bad, failed, out, root, segmenter.task)
        _write_summary(rows, out, segmenter.task)
        # Remove the index of an earlier run, which may show results that no longer exist.
        (out / INDEX).unlink(missing_ok=True)
        if segmenter.options.html:
            write_cohort_index(out / INDEX, rows, segmenter.task)
    # Wait for all processes, because the launcher kills the other processes when one exits with an error.
    state.wait_for_everyone()
    return CohortCounts(
        segmented=len(numbers_left) - len(failed),
        skipped=len(cases) - len(numbers_left),
        failed=len(failed) + len(bad),
    )


def _print_line(start: str, message: object) -> None:
    """Print a message about a case on a line of its own, above the progress bar."""
    tqdm.write(printable(f"{start}: {message}"), file=sys.stderr)


def _read_ahead(segmenter: CaseSegmenter, cases: Sequence[CaseFiles]) -> Iterator[Callable[[], ReadyCase]]:
    """For each case, yield a function that waits until the case has been read and returns it.

    If reading failed, the function raises the error. While the caller works on a case, another thread reads the next
    case. So two cases are in memory at a time.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        readings = (reader.submit(segmenter.read, case) for case in cases)
        coming = next(readings, None)
        while coming is not None:
            ready, coming = coming, next(readings, None)
            yield ready.result


def _names(cases: Sequence[CaseFiles]) -> list[str]:
    """Names of all files and folders that `segment_cohort` may write into its output folder."""
    folders = [case.case_id for case in cases]
    return [SUMMARY, INDEX, *folders, *(f"{name}.old" for name in folders)]


def _refuse_other_files(folder: Path) -> None:
    """Refuse a folder of earlier results that contains other files, because replacing the folder would delete them."""
    others = sorted({path.name for path in folder.glob("*")} - set(RESULT_FILES))
    if others:
        raise ValueError(
            f"{folder} also contains files that are not results ({', '.join(others[:3])}). Replacing the results "
            "would delete these files. Move the files, or choose another --out-path."
        )


def _rows(
    cases: Sequence[CaseFiles], bad: Sequence[Finding], failed: Mapping[str, str], out: Path, root: Path, task: Task
) -> list[dict[str, Any]]:
    """Rows of the summary table: one for each case, and one for each folder that is not a case.

    The row of a segmented case also has `confidence`, the lowest confidence of its regions, for the index page.
    """
    rows = []
    for case in cases:
        row: dict[str, Any] = {"case": case.case_id, "status": "failed", "message": failed.get(case.case_id, "")}
        if case.case_id not in failed:
            report = read_json(out / case.case_id / "report.json")
            row |= {f"{region}_ml": report["volumes_ml"][region] for region in task.regions}
            row |= {"status": "done", "sequences": "+".join(report["sequences_used"])}
            row |= {f"{region}_confidence": report["confidence"][region] for region in task.regions}
            found = [value for value in report["confidence"].values() if value is not None]
            row |= {"warnings": report["warnings"], "confidence": min(found, default=None)}
        rows.append(row)
    return rows + [
        {"case": name_of_place(root, finding.where), "status": "failed", "message": str(finding)} for finding in bad
    ]


def _write_summary(rows: Sequence[Mapping[str, Any]], out: Path, task: Task) -> None:
    numbers = (f"{region}_{name}" for name in ("ml", "confidence") for region in task.regions)
    columns = ("case", "status", "sequences", *numbers, "warnings", "message")
    with (
        replacing(out / SUMMARY) as scratch,
        open(scratch, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "warnings": "; ".join(row.get("warnings", []))} for row in rows)

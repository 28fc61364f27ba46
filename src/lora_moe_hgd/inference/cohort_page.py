"""HTML index of a cohort with links to the pages of its cases."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import counted, printable, replacing, volume_text
from ..model.confidence import dice_text
from ..model.task import BRAIN_TUMOUR, Task, shown
from .page import filled_page
from .report import NOTICE


def write_cohort_index(path: Path, rows: Sequence[Mapping[str, Any]], task: Task = BRAIN_TUMOUR) -> None:
    """Write the index page of a cohort, with links to the pages of its cases. Readers can sort and filter the cases.

    Failed cases come first. The segmented cases follow, sorted by their number of warnings (most first) and then by
    their confidence (lowest first).

    Args:
        path: HTML file, written atomically. The folders of the cases must be in the same folder.
        rows: A dictionary for each case, with the keys `case` and `status`. A failed case also has `message`. A
            segmented case also has `sequences`, the volume of each region in millilitres (such as `wt_ml`),
            `warnings`, and the lowest `confidence` of its regions. `confidence` is `None` if no region was found.
        task: Task that defines the names of the regions.
    """
    numbers = [*(f"{shown(region)}, mL" for region in task.regions), "lowest expected Dice"]
    heads = ["case", "sequences", *numbers, "number of warnings", "warnings"]
    choices = [f'<option value="{2 + number}">{html.escape(name)}</option>' for number, name in enumerate(numbers)]
    page = filled_page(
        "cohort.html",
        script_file="cohort.js",
        notice=html.escape(NOTICE),
        state=_state(rows, task),
        choices="".join(reversed(choices)),
        head="".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads),
        rows="\n".join(_row(row, task) for row in sorted(rows, key=_oddness)),
    )
    with replacing(path) as scratch:
        scratch.write_text(printable(page), encoding="utf-8")


def _oddness(row: Mapping[str, Any]) -> tuple[float, float]:
    """Sort key of a case on the index page. Cases that need a review come first."""
    if row["status"] != "done":
        return (-math.inf, 0.0)
    return (-len(row["warnings"]), 0.0 if row["confidence"] is None else row["confidence"])


def _state(rows: Sequence[Mapping[str, Any]], task: Task) -> str:
    """HTML paragraph with the numbers of failed cases, cases with warnings, and cases without warnings."""
    done = [row for row in rows if row["status"] == "done"]
    failed, doubtful = len(rows) - len(done), sum(bool(row["warnings"]) for row in done)
    calm = len(done) - doubtful
    words = f"{counted(len(rows), 'case')}: {failed} failed, {doubtful} with warnings, {calm} without warnings."
    return f'<p class="{"doubt" if failed or doubtful else "calm"}">{words}</p>'


def _row(row: Mapping[str, Any], task: Task) -> str:
    """Table row of a case. Its CSS class is `failed`, `doubtful` (with warnings) or `calm` (without)."""
    name = html.escape(row["case"])
    if row["status"] != "done":
        empty = "<td></td>" + _number(None, "") * (len(task.regions) + 2)
        return f'<tr class="failed"><td>{name}</td>{empty}<td>failed: {html.escape(row["message"])}</td></tr>'
    link = f'<a href="{quote(row["case"])}/report.html">{name}</a>'
    volumes = [_number(row[f"{region}_ml"], volume_text(row[f"{region}_ml"])) for region in task.regions]
    confidence, warnings = row["confidence"], row["warnings"]
    cells = [
        f"<td>{link}</td>",
        f"<td>{html.escape(row['sequences'].replace('+', ' + '))}</td>",
        *volumes,
        _number(confidence, dice_text(confidence)),
        _number(len(warnings), str(len(warnings))),
        f"<td>{'<br>'.join(map(html.escape, warnings)) or 'none'}</td>",
    ]
    return f'<tr class="{"doubtful" if warnings else "calm"}">{"".join(cells)}</tr>'


def _number(value: float | None, text: str) -> str:
    """Table cell with a number, by which the page can sort and filter the cases. `None` means an empty cell."""
    given = "" if value is None else f"{value:g}"
    return f'<td class="number" data-number data-value="{given}">{html.escape(text)}</td>'

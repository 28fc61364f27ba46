"""HTML that the app shows during a segmentation and afterwards."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import volume_text
from ..inference.report import EXAMPLE_ID, EXAMPLE_SOURCE, KEYS, NO_WARNINGS, doubt_headline
from ..model.confidence import LOW_CONFIDENCE, dice_text
from ..model.task import Task, shown
from ..subsets import sequence_shown
from .worker import ALL_FILES, Step

# Description of each result file, in the order of the list of downloads.
FILES = {
    ALL_FILES: "all files",
    "seg.nii.gz": "label map, NIfTI",
    "seg.dcm": "DICOM segmentation",
    "report.json": "report",
    "overlay.png": "picture",
    "report.html": "web page with all slices",
}
CSS = """
.lmh-notice {padding: .6rem .9rem; border-left: 4px solid #888; background: var(--background-fill-secondary)}
.lmh-warn {padding: .7rem .9rem; margin: .5rem 0; border-left: 6px solid #b45309; background: #fef3c7; color: #422006}
.lmh-error {padding: .7rem .9rem; margin: .5rem 0; border-left: 6px solid #b91c1c; background: #fee2e2; color: #450a0a}
.lmh-warn ul {margin: .4rem 0 0; padding-left: 1.2rem; list-style: disc}
.lmh-table {border-collapse: collapse; margin: .5rem 0; border: 0 !important}
.lmh-table tr {border: 0 !important}
.lmh-table th, .lmh-table td {padding: .3rem 1.2rem .3rem 0 !important; text-align: left; border: 0 !important}
.lmh-low {color: #b45309; font-weight: 600}
.lmh-page {width: 100%; height: min(46rem, 90vh); border: 1px solid #8886; background: #111}
.lmh-files {display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none}
.lmh-result a {text-decoration: underline}
.lmh-result progress {width: 100%; height: 1rem}
"""


def step_html(step: Step, seconds: float) -> str:
    """HTML with the current step of a job, and the seconds since the job began."""
    bar = "<progress></progress>" if step.share is None else f'<progress value="{step.share:.3f}"></progress>'
    return f'<div class="lmh-result" role="status">{html.escape(step.text)} ({seconds:.0f} s)<br>{bar}</div>'


def problem_html(text: str) -> str:
    """HTML of a message that says why there is no result."""
    return f'<div class="lmh-error" role="alert">{html.escape(text)}</div>'


def result_html(report: Mapping[str, Any], files: Collection[str], address: str, task: Task) -> str:
    """HTML of a result: warnings, table of volumes and confidence, page with all slices, and links to the files.

    Args:
        report: Content of `report.json`.
        files: Names of the result files that exist.
        address: Address of the folder in which the result files are served, without a slash at the end.
        task: Task that defines the names of the regions.
    """
    doubts = [html.escape(text) for text in report["warnings"]]
    if doubts:
        count = "A warning" if len(doubts) == 1 else f"{len(doubts)} warnings"
        items = "".join(f"<li>{text}</li>" for text in doubts)
        headline = f"{html.escape(doubt_headline(report, task))}. {count}:"
        head = f'<div class="lmh-warn" role="alert"><strong>{headline}</strong><ul>{items}</ul></div>'
    else:
        head = f'<p class="lmh-notice">{NO_WARNINGS}</p>'
    rows = "".join(
        f"<tr><th>{shown(name)}</th><td>{html.escape(volume_text(volume))} mL</td>"
        f"<td>{_confidence(report['confidence'][name])}</td></tr>"
        for name, volume in report["volumes_ml"].items()
    )
    table = (
        '<table class="lmh-table"><tr><th>region</th><th>volume</th><th>confidence (expected Dice)</th></tr>'
        f"{rows}</table>"
    )
    used = " + ".join(map(sequence_shown, report["sequences_used"]))
    words = {key: word for word, key in KEYS.items()}
    labels = sorted((label, words.get(key, key)) for key, label in report["label_scheme"].items() if key != "name")
    scheme = ", ".join(f"{label} {word}" for label, word in labels)
    source = f" Images: {EXAMPLE_SOURCE}." if report["case_id"] == EXAMPLE_ID else ""
    facts = (
        f"<p>Segmented from {used} with the checkpoint {html.escape(checkpoint_name(report['checkpoint']))} in "
        f"{report['seconds']:.0f} s. Labels: {html.escape(scheme)}.{source}</p>"
    )
    known = [name for name in FILES if name in files]
    others = sorted(set(files) - set(FILES))
    links = "".join(
        f'<li><a href="{address}/{quote(name)}" download="{html.escape(name)}">{html.escape(name)}</a> '
        f"({FILES.get(name, 'label map on the grid of the scan')})</li>"
        for name in [*known, *others]
    )
    downloads = f'<h3>Download</h3><ul class="lmh-files">{links}</ul>'
    return f'<div class="lmh-result">{head}{table}{facts}{_page(files, address)}{downloads}</div>'


def _confidence(value: float | None) -> str:
    text = dice_text(value)
    return text if value is None or value >= LOW_CONFIDENCE else f'<span class="lmh-low">{text}, low</span>'


def checkpoint_name(checkpoint: str) -> str:
    """Name of a checkpoint for display: the name of its folder, the name of a shipped checkpoint, or a Hub id."""
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint


def _page(files: Collection[str], address: str) -> str:
    if "report.html" in files:
        # The sandbox does not grant the page the origin of the app, so no script in it can reach the app.
        return (
            f'<iframe class="lmh-page" title="All slices of the result" sandbox="allow-scripts" '
            # The app shows notice and warnings above the frame. With `#inside`, the page leaves them out.
            f'src="{address}/report.html#inside"></iframe>'
            f'<p><a href="{address}/report.html" target="_blank" rel="noopener">Open the page in a new tab</a></p>'
        )
    if "overlay.png" in files:
        return f'<img src="{address}/overlay.png" alt="The result over the images">'
    return ""

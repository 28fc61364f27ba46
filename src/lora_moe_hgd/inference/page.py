"""HTML page of a case that any browser opens offline, and an index page of a cohort."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
from PIL import Image

from ..files import printable, replacing
from ..masks import bounds
from ..model.geometry import canonical_spacing_mm, to_canonical
from ..model.task import BRAIN_TUMOUR, Task, shown
from ..pictures import best_background, colours_of
from .report import NOTICE

# At this quality the eye sees no difference from the original, and the page of a case at 1 mm has only a few MB.
WEBP_QUALITY = 90
# Longest edge of a WebP picture.
WEBP_EDGE = 16383
MARGIN = 4


def write_case_page(
    path: Path,
    images: Mapping[str, nib.Nifti1Image],
    regions: np.ndarray,
    report: Mapping[str, Any],
    task: Task = BRAIN_TUMOUR,
) -> None:
    """Write a page with all slices to scroll through and the report. The page loads nothing from the internet.

    Grey values between the 0.5th and 99.7th percentile of the brain are shown in 8 bits with slight compression.
    Regions are exact.

    Args:
        path: HTML file, written atomically.
        images: Sequences by name, all on one grid.
        regions: `(R, D, H, W)` bool on the same grid: WT, TC and ET for brain tumours.
        report: Result of `report.make_report`.
        task: Names of the regions.
    """
    affine = next(iter(images.values())).affine
    volumes = {name: to_canonical(np.asarray(image.dataobj, np.float32), affine) for name, image in images.items()}
    # One bit per region, because regions may overlap without being nested.
    labels = to_canonical(np.packbits(regions, axis=0, bitorder="little")[0], affine)
    box = bounds(np.logical_or.reduce([volume != 0 for volume in volumes.values()]) | (labels > 0), MARGIN)
    labels = labels[box]
    columns = _columns(labels.shape)
    encoded = {name: _mosaic(_grey(volume[box]), columns, lossless=False) for name, volume in volumes.items()}
    case = {
        "shape": labels.shape,
        "first_slice": [part.start for part in box],
        "spacing_mm": [float(edge) for edge in canonical_spacing_mm(affine)],
        "columns": columns,
        "start": [_fullest(labels if labels.any() else np.ones_like(labels), axis) for axis in range(3)],
        "sequences": list(images),
        "first": best_background(images),
        "regions": [{"name": name, "rgb": _rgb(colour)} for name, colour in colours_of(task).items()],
        "volumes": encoded | {"labels": _mosaic(labels, columns, lossless=True)},
    }
    filled = Template((files(__package__) / "page.html").read_text()).substitute(
        title=html.escape(f"{report['case_id']}: from {' + '.join(images)}"),
        notice=html.escape(report["notice"]),
        facts=_facts(report, task),
        # Escape `<`, so that no text can end the script element.
        case=json.dumps(case).replace("<", "\\u003c"),
    )
    with replacing(path) as scratch:
        scratch.write_text(printable(filled), encoding="utf-8")


def write_cohort_index(path: Path, rows: Sequence[Mapping[str, Any]], task: Task = BRAIN_TUMOUR) -> None:
    """Write the index page of a cohort, with links to the pages of its cases.

    Failed cases come first, then cases with the most warnings, then cases with the lowest confidence.

    Args:
        path: HTML file, written atomically. The folders of the cases must be in the same folder.
        rows: One row per case with `case` and `status`. A failed case has `message`. A segmented case has `sequences`,
            the volumes, `warnings` and the lowest `confidence` of its regions.
        task: Names of the regions.
    """
    cells = [
        ["case", "sequences", *(f"{shown(region)}, mL" for region in task.regions), "lowest confidence", "remarks"]
    ]
    for row in sorted(rows, key=_oddness):
        name = html.escape(row["case"])
        if row["status"] != "done":
            cells.append([name, *[""] * (len(task.regions) + 2), f"failed: {html.escape(row['message'])}"])
            continue
        link = f'<a href="{quote(row["case"])}/report.html">{name}</a>'
        volumes = [f"{row[f'{region}_ml']:.1f}" for region in task.regions]
        remarks = "<br>".join(map(html.escape, row["warnings"])) or "none"
        cells.append([link, row["sequences"].replace("+", " + "), *volumes, f"{row['confidence']:.2f}", remarks])
    head, *body = ["".join(f"<td>{cell}</td>" for cell in row) for row in cells]
    style = "body{background:#111;color:#ddd;font:15px system-ui,sans-serif;margin:1rem}a{color:#56b4e9}"
    style += "td{padding:.25rem 1rem .25rem 0;border-bottom:1px solid #333;vertical-align:top}"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Cases</title><style>{style}</style>'
        f"<p>{NOTICE}</p><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table></html>\n"
    )
    with replacing(path) as scratch:
        scratch.write_text(printable(page), encoding="utf-8")


def _oddness(row: Mapping[str, Any]) -> tuple[float, float]:
    """Sort key of the index: cases that need a review come first."""
    return (-len(row["warnings"]), row["confidence"]) if row["status"] == "done" else (-math.inf, 0.0)


def _facts(report: Mapping[str, Any], task: Task) -> str:
    """The report as an HTML table."""
    volumes = report["volumes_ml"].items()
    rows = {
        "volumes": ", ".join(f"{shown(name)} {volume:.1f} mL" for name, volume in volumes),
        "expected Dice": ", ".join(
            f"{shown(name)} {value:.2f}" for name, value in report["confidence"].items() if value is not None
        )
        or f"no {task.target} was found",
        "sequences used": ", ".join(report["sequences_used"]),
        "not used": ", ".join(report["sequences_not_used"]) or "none",
        "resampled to the common grid": ", ".join(report["interpolated"]) or "none",
        "warnings": "\n".join(report["warnings"]) or "none",
        "grid": f"{' x '.join(map(str, report['shape']))} voxels of "
        f"{' x '.join(f'{edge:g}' for edge in report['spacing_mm'])} mm",
        "weights": report["checkpoint"],
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    }
    cells = (
        f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>".replace("\n", "<br>") for name, text in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _grey(volume: np.ndarray) -> np.ndarray:
    """Convert a volume to 8 bits, black outside the brain."""
    brain = volume != 0
    low, high = np.percentile(volume[brain], (0.5, 99.7)) if brain.any() else (0.0, 1.0)
    scaled = 255 * (volume - low) / max(high - low, 1e-6)
    return np.where(brain, scaled.clip(0, 255), 0).astype(np.uint8)


def _columns(shape: tuple[int, ...]) -> int:
    """Number of slices per row in a mosaic that is nearly square and not too large for WebP.

    Raises:
        ValueError: If the volume is too large for any mosaic.
    """
    width, height, depth = shape
    least, most = math.ceil(depth / (WEBP_EDGE // height)), WEBP_EDGE // width
    columns = min(max(math.ceil(math.sqrt(depth)), least), most)
    if columns < least:
        raise ValueError(f"A page can show at most {WEBP_EDGE**2} voxels, got {width} x {height} x {depth}.")
    return columns


def _mosaic(volume: np.ndarray, columns: int, *, lossless: bool) -> str:
    """Mosaic of all axial slices as a data URI. The rows of each slice run along the volume's second axis."""
    width, height, depth = volume.shape
    rows = math.ceil(depth / columns)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:depth] = volume.transpose(2, 1, 0)
    picture = tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    buffer, kind = io.BytesIO(), "png" if lossless else "webp"
    Image.fromarray(picture).save(buffer, kind, **({} if lossless else {"quality": WEBP_QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fullest(labels: np.ndarray, axis: int) -> int:
    """Index of the slice with the most voxels of the innermost region."""
    counts = (labels == labels.max()).sum(axis=tuple(other for other in range(3) if other != axis))
    return int(counts.argmax())


def _rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]

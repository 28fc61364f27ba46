"""A page for each case that opens in any browser without a network, and an index of a cohort's pages."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ..files import replacing
from ..model.geometry import canonical_spacing_mm, to_canonical
from .picture import BEST_BACKGROUND, COLOURS

# Of a picture that the eye does not tell from the original; a whole case at 1 mm stays at a few MB.
WEBP_QUALITY = 90
MARGIN = 4


def write_case_page(
    path: Path, images: Mapping[str, nib.Nifti1Image], regions: np.ndarray, report: Mapping[str, Any]
) -> None:
    """Write a page with slices to move through, and what the report says; it fetches nothing.

    Grey values are those between the 0.5th and 99.7th percentile of the brain, in 8 bits and slightly compressed;
    regions are exact.

    Args:
        path: Written beside and renamed.
        images: Sequences by name, all on one grid.
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool on the same grid.
        report: What `report.make_report` gave.
    """
    affine = next(iter(images.values())).affine
    volumes = {name: to_canonical(np.asarray(image.dataobj, np.float32), affine) for name, image in images.items()}
    labels = to_canonical(regions.sum(axis=0).astype(np.uint8), affine)
    box = _bounds(np.logical_or.reduce([volume != 0 for volume in volumes.values()]) | (labels > 0))
    labels = labels[box]
    columns = math.ceil(math.sqrt(labels.shape[2]))
    encoded = {name: _mosaic(_grey(volume[box]), columns, lossless=False) for name, volume in volumes.items()}
    case = {
        "shape": labels.shape,
        "spacing_mm": [float(edge) for edge in canonical_spacing_mm(affine)],
        "columns": columns,
        "start": [_fullest(labels if labels.any() else np.ones_like(labels), axis) for axis in range(3)],
        "sequences": list(images),
        "first": next(name for name in BEST_BACKGROUND if name in images),
        "regions": [{"name": name, "rgb": _rgb(colour)} for name, colour in COLOURS.items()],
        "volumes": encoded | {"labels": _mosaic(labels, columns, lossless=True)},
    }
    filled = Template((files(__package__) / "page.html").read_text()).substitute(
        title=html.escape(f"{report['case_id']}: from {' + '.join(images)}"),
        notice=html.escape(report["notice"]),
        facts=_facts(report),
        # No text may end the script element that holds it.
        case=json.dumps(case).replace("<", "\\u003c"),
    )
    with replacing(path) as scratch:
        scratch.write_text(filled, encoding="utf-8")


def write_cohort_index(root: Path) -> None:
    """Write `root/index.html` from the reports below: cases with most warnings first, then the least confident."""
    reports = [json.loads(path.read_text()) for path in sorted(root.glob("*/report.json"))]
    reports.sort(key=lambda report: (-len(report["warnings"]), min(report["confidence"].values())))
    rows = [["case", "sequences", "WT, mL", "TC, mL", "ET, mL", "least confidence", "warnings"]]
    for report in reports:
        name = html.escape(report["case_id"])
        link = f'<a href="{html.escape(report["case_id"], quote=True)}/report.html">{name}</a>'
        volumes = [f"{volume:.1f}" for volume in report["volumes_ml"].values()]
        confidence = f"{min(report['confidence'].values()):.2f}"
        warnings = "<br>".join(map(html.escape, report["warnings"])) or "none"
        rows.append([link, " + ".join(report["sequences_used"]), *volumes, confidence, warnings])
    head, *body = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    style = "body{background:#111;color:#ddd;font:15px system-ui,sans-serif;margin:1rem}a{color:#56b4e9}"
    style += "td{padding:.25rem 1rem .25rem 0;border-bottom:1px solid #333;vertical-align:top}"
    notice = html.escape(reports[0]["notice"]) if reports else ""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Cases</title><style>{style}</style>'
        f"<p>{notice}</p><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table></html>\n"
    )
    with replacing(root / "index.html") as scratch:
        scratch.write_text(page, encoding="utf-8")


def _facts(report: Mapping[str, Any]) -> str:
    """What the report says, as a table."""
    volumes = report["volumes_ml"].items()
    rows = {
        "volumes": ", ".join(f"{name.upper()} {volume:.1f} mL" for name, volume in volumes),
        "confidence": ", ".join(f"{name.upper()} {value:.2f}" for name, value in report["confidence"].items())
        + " (the Dice that the probabilities promise)",
        "sequences used": ", ".join(report["sequences_used"]),
        "absent": ", ".join(report["sequences_not_used"]) or "none",
        "brought to another grid": ", ".join(report["interpolated"]) or "none",
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


def _bounds(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The box around a mask with a margin, the whole array if it is empty."""
    box = []
    for axis, edge in enumerate(mask.shape):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (inside[0], inside[-1]) if inside.size else (0, edge - 1)
        box.append(slice(max(int(low) - MARGIN, 0), int(high) + 1 + MARGIN))
    return (box[0], box[1], box[2])


def _grey(volume: np.ndarray) -> np.ndarray:
    """In 8 bits; black outside the brain."""
    brain = volume != 0
    low, high = np.percentile(volume[brain], (0.5, 99.7)) if brain.any() else (0.0, 1.0)
    scaled = 255 * (volume - low) / max(high - low, 1e-6)
    return np.where(brain, scaled.clip(0, 255), 0).astype(np.uint8)


def _mosaic(volume: np.ndarray, columns: int, *, lossless: bool) -> str:
    """Axial slices side by side, rows of a slice along the second axis, as a data URI."""
    width, height, depth = volume.shape
    rows = math.ceil(depth / columns)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:depth] = volume.transpose(2, 1, 0)
    picture = tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    buffer, kind = io.BytesIO(), "png" if lossless else "webp"
    Image.fromarray(picture).save(buffer, kind, **({} if lossless else {"quality": WEBP_QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _fullest(labels: np.ndarray, axis: int) -> int:
    """The slice with most of the innermost region that there is."""
    counts = (labels == labels.max()).sum(axis=tuple(other for other in range(3) if other != axis))
    return int(counts.argmax())


def _rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]

"""HTML page of a case: its report and a viewer for its slices, in one file that any browser opens offline."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from ..files import printable, replacing, volume_text
from ..masks import bounds
from ..model.brain import brain_of
from ..model.confidence import dice_text
from ..model.geometry import canonical_spacing_mm, orientation, to_canonical, voxel_ml
from ..model.task import BRAIN_TUMOUR, Task, shown
from ..pictures import BEST_FOR_INNER, best_background, colours_of, planes_through, window_of
from .report import EXAMPLE_ID, EXAMPLE_SOURCE, NO_WARNINGS, doubt_headline

PAGES = files(__package__) / "pages"
# Margin around the brain, in which the letters for the directions are drawn. It may reach beyond the images.
MARGIN_MM = 15.0
# Possible numbers of grey levels, the finest scale first. Noise compresses badly, so a coarser scale is used if the
# page would be too large.
LEVELS = (254, 126, 62)
# Largest size of all sequences of a page, in bytes, unless even the coarsest scale needs more. The viewer and a
# picture add 1.3 MB.
MOST_BYTES = 6_000_000
SEGMENTATION, TRUTH = "segmentation", "ground truth"


def write_case_page(
    path: Path,
    images: Mapping[str, nib.Nifti1Image],
    regions: np.ndarray,
    report: Mapping[str, Any],
    task: Task = BRAIN_TUMOUR,
    *,
    truth: np.ndarray | None = None,
    truth_note: str = "none",
    probabilities: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    picture: Path | None = None,
) -> None:
    """Write an HTML page with the report and all slices in three linked planes. The page works offline.

    Regions are stored without loss. Images are stored in 254 grey levels, or in 126 or 62 levels if the page would
    otherwise be larger than about 8 MB. The levels range at least from the 0.1th to the 99.95th percentile of the
    brain. Values below this range get the lowest level, and values above it the highest.

    Args:
        path: HTML file, written atomically.
        images: Images by the name of their sequence, all on one grid.
        regions: `(R, D, H, W)` bool on the grid of the images: WT, TC and ET for brain tumours.
        report: Result of `report.make_report`.
        task: Task that defines the names of the regions.
        truth: Regions of the ground truth, `(R, D, H, W)` bool on the grid of the images.
        truth_note: File name of the ground truth, or the reason why the page shows no ground truth.
        probabilities: Probabilities of the regions in [0, 1], `(R, D, H, W)`.
        uncertainty: Entropy of each voxel in bits, `(D, H, W)`.
        picture: File with a picture of the result, for browsers that cannot show slices.
    """
    affine = next(iter(images.values())).affine
    volumes = {name: to_canonical(np.asarray(image.dataobj, np.float32), affine) for name, image in images.items()}
    brain = brain_of(volumes.values())
    labels = {SEGMENTATION: regions} | ({} if truth is None else {TRUTH: truth})
    # One bit per region, because regions may overlap without being nested.
    bits = {
        name: to_canonical(np.packbits(sets, axis=0, bitorder="little")[0], affine) for name, sets in labels.items()
    }
    box = _with_margin(
        bounds(np.logical_or.reduce([brain, *(found > 0 for found in bits.values())]), 0), canonical_spacing_mm(affine)
    )
    own = _to_own_voxels(affine, regions.shape[1:], box)
    canonical = np.stack([_cut(to_canonical(region, affine), box) for region in regions])
    found = np.any(canonical, axis=0)
    levels, sequences = _encoded({name: _cut(volume, box) for name, volume in volumes.items()}, found)
    maps: dict[str, Any] = {}
    if probabilities is not None:
        for region, volume in zip(task.regions, probabilities, strict=True):
            maps[f"probability of {shown(region)}"] = _map(_cut(to_canonical(volume, affine), box), 1.0)
    if uncertainty is not None:
        maps["uncertainty, bits"] = _map(_cut(to_canonical(uncertainty, affine), box), float(uncertainty.max()))
    bit_volumes = {
        name: {"data": packed(_cut(volume, box)), "window": [0, 255], "colours": "gray"}
        for name, volume in bits.items()
    }
    for volume in (*sequences.values(), *maps.values(), *bit_volumes.values()):
        header = _nifti_header(found.shape, affine @ own, slope=volume.pop("slope", 1.0))
        volume["header"] = base64.b64encode(header).decode()
    outer, inner = best_background(images), best_background(images, BEST_FOR_INNER)
    case = {
        "shape": found.shape,
        "affine": (affine @ own).tolist(),
        "own": own.tolist(),
        "start": planes_through(canonical, _cut(brain, box), task),
        "inside": [
            (max(-part.start, 0), min(part.stop, edge) - part.start - 1)
            for part, edge in zip(box, brain.shape, strict=True)
        ],
        "levels": levels,
        "sequences": sequences,
        "maps": maps,
        "labels": bit_volumes,
        "regions": _regions(task),
        "first": [outer, SEGMENTATION],
        "second": [inner, SEGMENTATION] if truth is None else [outer, TRUTH],
    }
    filled = filled_page(
        "page.html",
        script_file="page.js",
        unpacked_script=_niivue(),
        title=html.escape(f"{report['case_id']}: from {' + '.join(images)}"),
        notice=html.escape(report["notice"]),
        target=html.escape(task.target),
        state=_state(report, task),
        regions=_region_table(
            report, task, None if truth is None else (truth.sum(axis=(1, 2, 3)) * voxel_ml(affine)).tolist()
        ),
        facts=_facts(report, truth_note),
        picture=_picture(picture),
        version=json.loads((PAGES / "niivue/version.json").read_text())["version"],
        niivue=_packed_niivue(),
        # Escape `<`, so that no text can end the script element.
        case=json.dumps(case).replace("<", "\\u003c"),
    )
    with replacing(path) as scratch:
        scratch.write_text(printable(filled), encoding="utf-8")


@cache
def _niivue() -> str:
    """Code of the viewer NiiVue, preceded by a comment with the licences of NiiVue and of its libraries."""
    licences = "\n\n".join(
        (PAGES / "niivue" / name).read_text("utf-8") for name in ("LICENSE", "LICENSES-bundled.txt")
    )
    return f"/*!\n{licences}*/\n" + (PAGES / "niivue/niivue.umd.js").read_text("utf-8")


@cache
def _packed_niivue() -> str:
    return _gzip_base64(_niivue().encode())


def _gzip_base64(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def filled_page(template: str, *, script_file: str, unpacked_script: str = "", **parts: str) -> str:
    """Fill the placeholders of a template, and add the style sheet of all pages and the template's script.

    The page's Content-Security-Policy allows a browser to run only `script_file` and `unpacked_script`, and forbids
    all network access.

    Args:
        template: File name of the template in the folder `pages`.
        script_file: File name of the template's script.
        unpacked_script: Text of a second script. The page contains it compressed, and the first script unpacks it.
        parts: HTML for each placeholder of the template. Text from a case or a user must be escaped.
    """
    style, script = ((PAGES / name).read_text("utf-8") for name in ("page.css", script_file))
    allowed = " ".join(_hash(text) for text in (script, unpacked_script) if text)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed}; base-uri 'none'; "
        "form-action 'none'"
    )
    return Template((PAGES / template).read_text("utf-8")).substitute(parts, policy=policy, style=style, script=script)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def packed(volume: np.ndarray) -> str:
    """Compress a `(W, H, D)` uint8 volume for the page.

    Each byte to compress is a difference: a voxel minus the mean of its three predecessors, one along each axis.
    Differences compress to 10 to 20 % fewer bytes than voxels. The first axis varies fastest.
    """
    before = np.zeros(volume.shape, np.uint16)
    before[1:] += volume[:-1]
    before[:, 1:] += volume[:, :-1]
    before[:, :, 1:] += volume[:, :, :-1]
    difference = volume - (before // 3).astype(np.uint8)
    return _gzip_base64(difference.tobytes("F"))


def _encoded(volumes: Mapping[str, np.ndarray], found: np.ndarray) -> tuple[int, dict[str, Any]]:
    """Encode the sequences with as many grey levels as the size limit of the page allows.

    Returns:
        Number of grey levels, and the encoded sequences by name.
    """
    for levels in LEVELS:
        encoded = {name: _grey(volume, found, levels) for name, volume in volumes.items()}
        if sum(len(sequence["data"]) for sequence in encoded.values()) <= MOST_BYTES:
            break
    return levels, encoded


def _grey(volume: np.ndarray, found: np.ndarray, levels: int) -> dict[str, Any]:
    """Encode a volume in grey levels from 1 to `levels`. Voxels outside the brain become 0."""
    brain = volume != 0
    dark, bright = window_of(volume, brain, found)
    low, high = np.percentile(volume[brain], (0.1, 99.95)).tolist() if brain.any() else (dark, bright)
    low, high = min(low, dark), max(high, bright)
    scale = (levels - 1) / (high - low)
    grey = np.where(brain, 1 + ((volume - low) * scale).clip(0, levels - 1).round(), 0).astype(np.uint8)
    window = [1 + (dark - low) * scale, 1 + (bright - low) * scale]
    return {"data": packed(grey), "first": 1, "low": low, "step": 1 / scale, "window": window, "colours": "gray"}


def _map(volume: np.ndarray, most: float) -> dict[str, Any]:
    """Encode a map in 8 bits per voxel. The values of the map are between 0 and `most`."""
    step = max(most, 1e-6) / 255
    scaled = (volume / step).clip(0, 255).round().astype(np.uint8)
    # Values below a third of the highest value get no colour, so that the image below the map can be seen.
    shown_as = {"window": [85 * step, 255 * step], "colours": "map", "slope": step}
    return {"data": packed(scaled), "first": 0, "low": 0.0, "step": step, **shown_as}


def _with_margin(box: tuple[slice, ...], spacing_mm: tuple[float, ...]) -> tuple[slice, ...]:
    """Enlarge a box by MARGIN_MM on each side. The enlarged box may reach beyond the array."""
    margins = [math.ceil(MARGIN_MM / edge) for edge in spacing_mm]
    return tuple(slice(part.start - margin, part.stop + margin) for part, margin in zip(box, margins, strict=True))


def _cut(volume: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    """Cut a box out of a volume. Where the box reaches beyond the volume, the result is zero."""
    cut = np.zeros([part.stop - part.start for part in box], volume.dtype)
    inside = [slice(max(part.start, 0), min(part.stop, edge)) for part, edge in zip(box, volume.shape, strict=True)]
    target = [slice(own.start - part.start, own.stop - part.start) for own, part in zip(inside, box, strict=True)]
    cut[tuple(target)] = volume[tuple(inside)]
    return cut


def _to_own_voxels(affine: np.ndarray, shape: tuple[int, ...], box: tuple[slice, ...]) -> np.ndarray:
    """Matrix `(4, 4)` from voxel indices in `box`, whose axes are in RAS order, to indices in the case's own array."""
    axes, flips = orientation(affine)
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for canonical, (axis, flipped, part) in enumerate(zip(axes, flips, box, strict=True)):
        matrix[axis, canonical] = -1 if flipped else 1
        matrix[axis, 3] = shape[axis] - 1 - part.start if flipped else part.start
    return matrix


def _nifti_header(shape: tuple[int, ...], affine: np.ndarray, *, slope: float) -> bytes:
    """All bytes before the first voxel of a NIfTI file with uint8 voxels: the header and four zeros."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    header.set_sform(affine, code="scanner")
    header.set_slope_inter(slope, 0.0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4)


def _regions(task: Task) -> list[dict[str, Any]]:
    """Name and colour of each region. A voxel of a label volume has one bit per region, the lowest for the first."""
    return [{"name": name, "rgb": _rgb(colour)} for name, colour in colours_of(task).items()]


def _rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _state(report: Mapping[str, Any], task: Task) -> str:
    """HTML for the top of the page. It lists the warnings, or says that there are none."""
    if report["warnings"]:
        items = "".join(f"<li>{html.escape(warning)}</li>" for warning in report["warnings"])
        headline = html.escape(doubt_headline(report, task))
        return f'<div class="doubt" role="alert"><h2>{headline}</h2><ul>{items}</ul></div>'
    return f'<div class="calm"><p>{NO_WARNINGS}</p></div>'


def _region_table(report: Mapping[str, Any], task: Task, truth_ml: Sequence[float] | None) -> str:
    """HTML table of the regions. The checkbox of a region shows or hides the region.

    Args:
        report: Result of `report.make_report`.
        task: Task that defines the names of the regions.
        truth_ml: Volumes of the regions of the ground truth in millilitres; `None` without a ground truth.
    """
    columns = ["region", SEGMENTATION, *([] if truth_ml is None else [TRUTH]), "expected Dice"]
    rows = []
    for number, (region, colour) in enumerate(zip(task.regions, colours_of(task).values(), strict=True)):
        dice = dice_text(report["confidence"][region])
        box = f'<input type="checkbox" id="region-{number}" checked disabled>'
        swatch = f'<svg class="swatch" aria-hidden="true"><rect fill="{colour}"/></svg>'
        label = f"<label>{box}{swatch}{html.escape(shown(region))}</label>"
        volumes = [report["volumes_ml"][region], *([] if truth_ml is None else [truth_ml[number]])]
        texts = [*map(volume_text, volumes), dice]
        cells = "".join(f'<td class="number">{html.escape(text)}</td>' for text in texts)
        rows.append(f"<tr><td>{label}</td>{cells}</tr>")
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    caption = "Volumes in mL" + ("" if truth_ml is None else ". The expected Dice does not use the ground truth.")
    table = f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<div class="wide">{table}</div>'


def _facts(report: Mapping[str, Any], truth_note: str) -> str:
    """HTML table with the rest of the report: sequences, grid, weights and versions."""
    rows = {
        "sequences used": ", ".join(report["sequences_used"]),
        "not used": ", ".join(report["sequences_not_used"]) or "none",
        "sequences resampled to the grid of the result": ", ".join(report["interpolated"]) or "none",
        TRUTH: truth_note,
        "grid": f"{' x '.join(map(str, report['shape']))} voxels of "
        f"{' x '.join(f'{edge:g}' for edge in report['spacing_mm'])} mm",
        "weights": report["checkpoint"],
        **({"source": EXAMPLE_SOURCE} if report["case_id"] == EXAMPLE_ID else {}),
        "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    }
    cells = (f'<tr><th scope="row">{name}</th><td>{html.escape(text)}</td></tr>' for name, text in rows.items())
    return f"<table><caption>Report</caption>{''.join(cells)}</table>"


def _picture(path: Path | None) -> str:
    """HTML element with the compressed picture, or an empty text if `path` is `None`."""
    if path is None:
        return ""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "webp", quality=80)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="picture" src="{source}" alt="Three planes through the result, with outlines of the regions.">'

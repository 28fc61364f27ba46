"""Pictures of a segmentation: outlines of the regions on three planes through the segmented object."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from .files import counted, replacing, volume_text
from .masks import bounds, largest_part
from .model.brain import brain_of
from .model.geometry import canonical_spacing_mm, canonical_view
from .model.task import BRAIN_TUMOUR, Task, shown
from .subsets import sequence_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Colour-blind safe (Okabe and Ito), bright on grey.
PALETTE = ("#56b4e9", "#f0e442", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#0072b2", "#ffffff")
LINE_WIDTH = 1.6
# Length of a dash and of the gap after it, in line widths. Where two regions share a border, the line of the inner
# region is dashed, so that the line of the outer region shows in the gaps.
DASHES = (2.5, 2.5)
DOUBT = "#ff8c1a"
# The sequence that shows oedema best comes first.
BEST_FOR_OUTER = ("flair", "t2", "t1c", "t1")
# The sequence that shows the tumour core best comes first.
BEST_FOR_INNER = ("t1c", "t1", "t2", "flair")
MOST_WARNINGS = 6
WIDTH_IN = 9.6
MARGIN = 2
# Width of the strip around each plane in which the orientation letters are written.
STRIP_IN = 0.17
# Gap between neighbouring planes. Without it, letters of two planes would read as one word.
GAP_IN = 0.4
# Left and right border of the picture, as a share of its width.
BORDER = 0.01
PLANES_IN = (1 - 2 * BORDER) * WIDTH_IN - 2 * GAP_IN
# Gap between rows of planes, as a share of the height of a row.
ROW_GAP = 0.08


def colours_of(task: Task) -> dict[str, str]:
    """Colour of each region, by its display name."""
    return dict(zip(map(shown, task.regions), PALETTE, strict=False))


def best_background(names: Iterable[str], order: Sequence[str] = BEST_FOR_OUTER) -> str:
    """Choose the sequence to draw on: the first of `order` that is in `names`, or else the first of `names`."""
    present = list(names)
    return next((name for name in order if name in present), present[0])


COLOURS = colours_of(BRAIN_TUMOUR)

# Canonical axes of each plane: the horizontal axis, the vertical axis, and the axis that the plane cuts.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
# Letters at the two ends of each canonical axis. The first letter is at the top of a vertical axis and on the left of
# a horizontal axis.
ENDS = (("R", "L"), ("A", "P"), ("S", "I"))


def save_overlay(
    path: Path,
    images: Mapping[str, nib.Nifti1Image],
    sets: Mapping[str, np.ndarray],
    *,
    title: str,
    volumes_ml: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    task: Task = BRAIN_TUMOUR,
) -> None:
    """Write a PNG with the outlines of one or more sets of regions, such as found and true regions, on three planes.

    The picture has a row for each set of regions and each sequence on which the set is drawn.

    Outermost regions, such as WT, are outlined on FLAIR. If FLAIR is missing, the next sequence of `BEST_FOR_OUTER` is
    used. Regions that are inside another region, such as TC and ET, are outlined on T1c. If T1c is missing, the next
    sequence of `BEST_FOR_INNER` is used. `planes_through` chooses the planes for the regions of the first set.

    The patient's left is on the right of axial and coronal planes, in the radiological convention. The patient's front
    is on the left of the sagittal plane.

    Args:
        path: PNG file, written atomically.
        images: Images by the name of their sequence, all on one grid, zero outside the brain.
        sets: Dictionary from the name of each set to its regions, `(R, D, H, W)` bool on the grid of the images.
        title: Title of the picture.
        volumes_ml: Volume of each region in millilitres, for the legend.
        warnings: Warnings about the result. If there is at least one warning, the picture has a frame and lists the
            warnings.
        task: Task that defines the regions, and which regions contain others.
    """
    # Import matplotlib only here, because the import takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    affine = next(iter(images.values())).affine
    spacing = canonical_spacing_mm(affine)
    views = _views(images, task)
    volumes = {name: canonical_view(np.asarray(images[name].dataobj), affine) for name in dict(views)}
    brain = brain_of(volumes.values())
    box = bounds(brain, MARGIN)
    # Copy only masks, and only inside the box, because a case may have 10^8 voxels.
    brain = np.ascontiguousarray(brain[box])
    volumes = {name: volume[box].astype(np.float32, copy=False) for name, volume in volumes.items()}
    regions = {name: canonical_view(masks, affine)[:, *box].copy() for name, masks in sets.items()}
    first = next(iter(regions.values()))
    found, cut = np.logical_or.reduce(first), planes_through(first, brain, task)
    widths = [brain.shape[across] * spacing[across] for across, _, _ in PLANES.values()]
    strip_mm = STRIP_IN * sum(widths) / (PLANES_IN - 2 * len(PLANES) * STRIP_IN)
    widths = [width + 2 * strip_mm for width in widths]
    heights = [brain.shape[up] * spacing[up] + 2 * strip_mm for _, up, _ in PLANES.values()]
    text = _warning_lines(warnings)
    rows = len(regions) * len(views)
    panels = PLANES_IN * max(heights) / sum(widths) * (rows + ROW_GAP * (rows - 1))
    head, foot = 0.5, 0.32 + 0.16 * len(text)
    height = head + panels + foot
    figure = Figure(figsize=(WIDTH_IN, height), facecolor="black", linewidth=6 if text else 0, edgecolor=DOUBT)
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(PLANES), squeeze=False, width_ratios=widths)
    remaining = iter(grid)
    for sequence, numbers in views:
        window = window_of(volumes[sequence], brain, found)
        for name, masks in regions.items():
            axes = next(remaining)
            for axis, (plane, (across, up, through)) in zip(axes, PLANES.items(), strict=True):
                # In a z-scored image, the background is zero, which would be grey. Make it black.
                picture = np.where(_plane(brain, through, cut), _plane(volumes[sequence], through, cut), window[0])
                aspect = spacing[up] / spacing[across]
                axis.imshow(picture, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", aspect=aspect)
                _outlines(axis, {PALETTE[number]: _plane(masks[number], through, cut) for number in numbers})
                x, y = strip_mm / spacing[across] + 0.5, strip_mm / spacing[up] + 0.5
                axis.set(xlim=(picture.shape[1] - 1 + x, -x), ylim=(-y, picture.shape[0] - 1 + y))
                axis.set_axis_off()
                axis.set_anchor("N")
                named = (plane, sequence_shown(sequence), *([name] if len(regions) > 1 else []))
                axis.set_title(", ".join(named), color="white", fontsize=9, pad=3)
                _letters(axis, ENDS[across], ENDS[up])
            if not masks.any():
                axes[1].text(
                    0.5,
                    0.1,
                    f"no {task.target} found",
                    color="white",
                    backgroundcolor="black",
                    ha="center",
                    transform=axes[1].transAxes,
                )
    figure.suptitle(title, color="white", fontsize=11, y=1 - 0.1 / height, va="top")
    figure.legend(
        handles=_legend(task, volumes_ml),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.16 * len(text) / height),
        ncols=len(task.regions),
        frameon=False,
        labelcolor="white",
        fontsize=9,
    )
    if text:
        figure.text(0.015, 0.06 / height, "\n".join(text), color=DOUBT, fontsize=8, va="bottom", linespacing=1.3)
    figure.subplots_adjust(
        left=BORDER,
        right=1 - BORDER,
        bottom=foot / height,
        top=1 - head / height,
        # Matplotlib measures this gap in mean widths of a plane.
        wspace=GAP_IN * len(PLANES) / PLANES_IN,
        hspace=ROW_GAP,
    )
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png", facecolor="black", edgecolor=figure.get_edgecolor())


def _views(names: Iterable[str], task: Task) -> list[tuple[str, list[int]]]:
    """Sequences to draw on, each with the indices of the regions that are drawn on it."""
    present = list(names)
    outer = [number for number, around in enumerate(task.around) if not around]
    inner = [number for number, around in enumerate(task.around) if around]
    views = [(best_background(present, BEST_FOR_OUTER), outer), (best_background(present, BEST_FOR_INNER), inner)]
    if not inner or views[0][0] == views[1][0]:
        return [(views[0][0], sorted(outer + inner))]
    return views


def planes_through(regions: np.ndarray, brain: np.ndarray, task: Task) -> tuple[int, ...]:
    """Choose a plane along each axis, and return the indices of the planes.

    The planes pass through the core, which is the union of all regions that are inside another region. If no core was
    found, they pass through the union of all regions. If no region was found, they pass through the brain. Along each
    axis, the plane with the most voxels of the largest connected part is chosen.
    """
    inner = [region for region, around in zip(regions, task.around, strict=True) if around]
    core = np.logical_or.reduce(inner) if inner else np.zeros_like(brain)
    mask = next((found for found in (core, np.logical_or.reduce(regions)) if found.any()), brain)
    part = largest_part(mask)
    return tuple(int(part.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))


def window_of(volume: np.ndarray, brain: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Choose the image values that are drawn as black and as white.

    0.5 % of the brain has values below black. At most 0.3 % of the brain, and at most 1 % of the segmented voxels,
    have values above white. If white were chosen for the brain alone, a small bright tumour would be a white spot
    without structure.
    """
    if not brain.any():
        return 0.0, 1.0
    low, high = np.percentile(volume[brain], (0.5, 99.7))
    if found.any():
        high = max(high, np.percentile(volume[found], 99))
    return float(low), float(max(high, low + 1e-6))


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    """Break the warnings into lines that fit below the picture."""
    lines: list[str] = []
    for warning in warnings[:MOST_WARNINGS]:
        lines += textwrap.wrap(f"Warning: {warning}", 135, subsequent_indent="    ")
    if len(warnings) > MOST_WARNINGS:
        lines.append(f"See report.json for {counted(len(warnings) - MOST_WARNINGS, 'more warning')}.")
    return lines


def _legend(task: Task, volumes_ml: Mapping[str, float] | None) -> list[Line2D]:
    """Legend with the colour, name and volume of each region."""
    from matplotlib.lines import Line2D

    lines = []
    for region, (name, colour) in zip(task.regions, colours_of(task).items(), strict=True):
        label = name if volumes_ml is None else f"{name} {volume_text(volumes_ml[region])} mL"
        lines.append(Line2D([], [], color=colour, linewidth=2, label=label))
    return lines


def _letters(axis: Axes, across: tuple[str, str], up: tuple[str, str]) -> None:
    """Write the letter of the anatomical direction at each side of a plane, outside the brain."""

    def write(x: float, y: float, letter: str, **aligned: Any) -> None:
        axis.text(x, y, letter, color="white", fontsize=8, transform=axis.transAxes, **aligned)

    for x, letter, side in ((0, across[0], "left"), (1, across[1], "right")):
        write(x, 0.5, letter, ha=side, va="center")
    for y, letter, side in ((1, up[0], "top"), (0, up[1], "bottom")):
        write(0.5, y, letter, ha="center", va=side)


def _outlines(axis: Axes, masks: Mapping[str, np.ndarray]) -> None:
    """Draw the border of each mask on a plane. The key of a mask is its colour.

    A mask must come after the masks that contain it, so that its line is drawn over theirs.

    Where a border coincides with the border of an earlier mask, the line is dashed, so that both colours show.
    """
    from matplotlib.collections import LineCollection

    earlier: set[tuple[float, float]] = set()
    for colour, mask in masks.items():
        lines = _border(mask)
        own: list[np.ndarray] = []
        shared: list[np.ndarray] = []
        for line in lines:
            also = np.array([(x, y) in earlier for x, y in line.tolist()])
            ends = np.flatnonzero(np.diff(also)) + 1
            for start, end in zip([0, *ends], [*ends, len(line)], strict=True):
                # Include the next point, so that no gap opens between a solid and a dashed part.
                (shared if also[start] else own).append(line[start : end + 1])
        axis.add_collection(LineCollection(own, colors=colour, linewidths=LINE_WIDTH))
        axis.add_collection(LineCollection(shared, colors=colour, linewidths=LINE_WIDTH, linestyles=[(0, DASHES)]))
        earlier |= {(x, y) for line in lines for x, y in line.tolist()}


def _border(mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines around a mask, also around parts one pixel wide. Each line is `(points, 2)`: x and y in pixels."""
    # A dependency of matplotlib.
    from contourpy import LineType, contour_generator

    # contourpy needs at least two rows and two columns, and leaves lines open at the edge. A frame of zeros avoids
    # both problems.
    rows, columns = (np.arange(-1, edge + 1) for edge in mask.shape)
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contour_generator(columns, rows, padded, name="serial", line_type=LineType.Separate)
    return [np.asarray(line) for line in generator.lines(0.5)]


def _plane(volume: np.ndarray, through: int, cut: tuple[int, ...]) -> np.ndarray:
    """Cut a plane out of `volume`. The plane's first axis is vertical, its second axis horizontal."""
    # `take` keeps the order of the two other axes. In every plane of PLANES, the horizontal axis comes before the
    # vertical one.
    return volume.take(cut[through], axis=through).T

"""Pictures of a segmentation: three planes through the tumour with the outlines of the regions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .files import replacing
from .model.geometry import canonical_spacing_mm, to_canonical

# Colour-blind safe (Okabe and Ito), bright on grey.
COLOURS = {"WT": "#56b4e9", "TC": "#f0e442", "ET": "#d55e00"}
# Inner regions are drawn last, with thinner lines. On a shared border, the outer region's wider line stays visible.
LINE_WIDTHS = {"WT": 3.2, "TC": 2.2, "ET": 1.1}
# The sequence on which a tumour is easiest to see comes first.
BEST_BACKGROUND = ("flair", "t1c", "t2", "t1")

# Each plane shows two canonical axes (across, up), cut at the third.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


def save_overlay(path: Path, background: nib.Nifti1Image, rows: Mapping[str, np.ndarray], *, title: str) -> None:
    """Draw each set of regions over the same planes of `background`, one row per set, and write a PNG.

    The patient's left is on the right of axial and coronal planes, in the radiological convention. The front is on the
    left of the sagittal plane. The planes cut the whole tumour of the first set where it is largest, or the brain if
    there is no tumour.

    Args:
        path: PNG file, written atomically.
        background: Sequence to draw on.
        rows: Name of each row and its regions WT, TC and ET, `(3, D, H, W)` on the background's grid.
        title: Title of the picture.
    """
    affine = background.affine
    image = to_canonical(np.asarray(background.dataobj, dtype=np.float32), affine)
    regions = {name: np.stack([to_canonical(region, affine) for region in masks]) for name, masks in rows.items()}
    brain = image != 0
    box = _bounds(brain)
    first = next(iter(regions.values()))[0]
    cut = _largest_planes(first if first.any() else brain)
    low, high = np.percentile(image[brain], (0.5, 99.7)) if brain.any() else (0.0, 1.0)
    # In a z-scored image, the background is zero, which would be grey. Make it black.
    image = np.where(brain, image, low)
    spacing = canonical_spacing_mm(affine)
    widths = [(box[across].stop - box[across].start) * spacing[across] for across, _, _ in PLANES.values()]
    heights = [(box[up].stop - box[up].start) * spacing[up] for _, up, _ in PLANES.values()]
    figure = Figure(figsize=(9.6, 9.6 * max(heights) / sum(widths) * len(rows) + 0.9), facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths)
    for axes, (name, masks) in zip(grid, regions.items(), strict=True):
        for axis, (plane, (across, up, through)) in zip(axes, PLANES.items(), strict=True):
            picture = _plane(image, box, through, cut)
            aspect = spacing[up] / spacing[across]
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
            for mask, (region, colour) in zip(masks, COLOURS.items(), strict=True):
                inside = _plane(mask, box, through, cut)
                if inside.any():
                    _outline(axis, inside, color=colour, linewidth=LINE_WIDTHS[region])
            axis.set(xlim=(picture.shape[1] - 0.5, -0.5), ylim=(-0.5, picture.shape[0] - 0.5))
            axis.set_axis_off()
            axis.set_anchor("N")
            axis.set_title(f"{plane}, {name}", color="white", fontsize=9, pad=3)
        if not masks.any():
            axes[1].text(0.5, 0.03, "no tumour found", color="white", ha="center", transform=axes[1].transAxes)
        axes[0].text(0.02, 0.5, "R", color="white", fontsize=9, transform=axes[0].transAxes)
        axes[0].text(0.98, 0.5, "L", color="white", fontsize=9, ha="right", transform=axes[0].transAxes)
    lines = [Line2D([], [], color=colour, lw=LINE_WIDTHS[name], label=name) for name, colour in COLOURS.items()]
    figure.suptitle(title, color="white", fontsize=11, y=0.99, va="top")
    figure.legend(handles=lines, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=9)
    top = 1 - 0.5 / figure.get_figheight()
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.3 / figure.get_figheight(), top=top, wspace=0.02, hspace=0.08
    )
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png", facecolor="black")


def _outline(axis: Axes, inside: np.ndarray, *, color: str, linewidth: float) -> None:
    """Draw the border of a mask on a plane, also at the plane's edge and on a plane that is one voxel wide."""
    # Contours need two rows and two columns, and are open at the edge. A frame of zeros solves both.
    rows, columns = (np.arange(-1, edge + 1) for edge in inside.shape)
    axis.contour(columns, rows, np.pad(inside, 1), levels=[0.5], colors=[color], linewidths=linewidth)


def _bounds(mask: np.ndarray) -> tuple[slice, ...]:
    """Box around `mask`, two voxels wider on each side; the whole array if the mask is empty."""
    if not mask.any():
        return tuple(slice(0, edge) for edge in mask.shape)
    found = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(max(int(index[0]) - 2, 0), int(index[-1]) + 3) for index in found)


def _largest_planes(mask: np.ndarray) -> tuple[int, ...]:
    """Index of the plane with most voxels of `mask`, along each axis."""
    return tuple(int(mask.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))


def _plane(volume: np.ndarray, box: tuple[slice, ...], through: int, cut: tuple[int, ...]) -> np.ndarray:
    """Cut a plane out of `volume`. Its rows run along the axis `up` and its columns along the axis `across`."""
    index: list[slice | int] = list(box)
    index[through] = cut[through]
    # The two remaining axes keep their order, and `across` comes before `up` in every plane.
    return volume[tuple(index)].T

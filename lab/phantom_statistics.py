"""Phantoms beside real cases in numbers: each statistic's 10th, 50th and 90th percentile, as a table.

`python lab/phantom_statistics.py --data ROOT` measures the labelled cases in ROOT and as many phantoms as asked
for, both as the network gets them: on the shipped spacing, normalised. `--picture FILE` draws some phantoms, and the
ranges of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.phantoms.statistics import case_statistics
from lora_moe_hgd.phantoms.style import NARROW, WIDE
from lora_moe_hgd.pictures import COLOURS
from lora_moe_hgd.training.data.datasets import Case, CaseDataset, CaseSource, PhantomDataset

PERCENTILES = (10, 50, 90)
NUM_SHOWN = 5
STYLES = {"wide": WIDE, "narrow": NARROW}
LEGEND = {"real cases": "black", "phantoms": "#d55e00"}


def statistics_of(cases: Iterable[Case], spacing_mm: float) -> dict[str, list[float]]:
    """Values of each statistic, one per case."""
    found: dict[str, list[float]] = {}
    for case in cases:
        volumes = dict(zip(MODALITIES, case["pixel_values"], strict=True))
        for name, value in case_statistics(volumes, case["labels"].bool(), spacing_mm).items():
            found.setdefault(name, []).append(value)
    return found


def each(source: CaseSource) -> Iterable[Case]:
    return (source[index] for index in range(len(source)))


def cell(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in np.nanpercentile(values, PERCENTILES))


def draw(path: Path, phantoms: CaseSource, real: dict[str, list[float]], made_up: dict[str, list[float]]) -> None:
    """Axial slices of the first phantoms, and below them each statistic's 10th to 90th percentile."""
    shown = range(min(NUM_SHOWN, len(phantoms)))
    figure = Figure(figsize=(11, 15), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(0.8, 1))
    grid = upper.subplots(len(MODALITIES), len(shown), gridspec_kw={"wspace": 0, "hspace": 0})
    for column, index in enumerate(shown):
        case = phantoms[index]
        regions = case["labels"].bool()
        height = int(regions[0].sum(dim=(0, 1)).argmax())
        for row, name in enumerate(MODALITIES):
            axis = grid[row, column]
            volume = case["pixel_values"][row]
            low, high = np.percentile(volume[volume != 0], (0.5, 99.5))
            plane = np.where(volume[:, :, height] != 0, volume[:, :, height], low)
            axis.imshow(plane.T, cmap="gray", vmin=low, vmax=high, origin="lower")
            for region, colour in zip(regions, COLOURS.values(), strict=True):
                if row == len(MODALITIES) - 1 and region[:, :, height].any():
                    axis.contour(region[:, :, height].T, levels=[0.5], colors=[colour], linewidths=0.9)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name)
    axis = lower.subplots()
    # In units of the real median, so that all fit one axis; what is near zero has the unit of the spread.
    for place, name in enumerate(reversed(real)):
        unit = max(abs(np.nanmedian(real[name])), np.nanpercentile(real[name], 90) - np.nanpercentile(real[name], 10))
        for values, colour, shift in ((real[name], "black", 0.16), (made_up[name], "#d55e00", -0.16)):
            low, middle, high = np.nanpercentile(values, PERCENTILES) / unit
            axis.plot([low, high], [place + shift] * 2, color=colour, linewidth=3, solid_capstyle="butt")
            axis.plot(middle, place + shift, "o", color=colour, markersize=5)
    axis.set_yticks(range(len(real)), list(reversed(real)), fontsize=7)
    axis.set_xlabel("10th, 50th and 90th percentile, in units of the real median or spread")
    handles = [Line2D([], [], color=colour, linewidth=3, label=label) for label, colour in LEGEND.items()]
    axis.legend(handles=handles, loc="lower right")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases, all sequences present")
    parser.add_argument("--phantoms", type=int, default=24)
    parser.add_argument("--label-maps", type=Path, help="folder of FreeSurfer-style label maps for the phantoms")
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--style", choices=STYLES, default="wide", help="ranges that phantoms are drawn from")
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/lora-moe-hgd"))
    args = parser.parse_args()
    _, processor = load_checkpoint("tiny")
    cache_dir = args.cache_dir.expanduser()
    cases = CaseDataset(find_cases(args.data), processor=processor, cache_dir=cache_dir)
    phantoms = PhantomDataset(
        args.phantoms,
        seed=args.seed,
        label_maps=args.label_maps,
        style=STYLES[args.style],
        processor=processor,
        cache_dir=cache_dir,
    )
    (spacing_mm, *_) = processor.target_spacing_mm
    real, made_up = (statistics_of(each(source), spacing_mm) for source in (cases, phantoms))
    print(f"| statistic | {len(cases)} real cases: p10 / p50 / p90 | {len(phantoms)} phantoms |\n|---|---|---|")
    for name in real:
        print(f"| {name} | {cell(real[name])} | {cell(made_up[name])} |")
    if args.picture:
        draw(args.picture, phantoms, real, made_up)


if __name__ == "__main__":
    main()

"""Plots of a run from its `metrics.jsonl`: training curves, and the share of each expert in the routing choices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..arguments import CommandParser
from ..files import read_json, replacing
from ..model.task import BRAIN_TUMOUR, Task
from .metrics_log import FILE_NAME, read_metrics
from .run_folder import RUN_FILE

Rows = Sequence[dict[str, float]]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Draw the training curves of a run and the share of each expert in the routing choices."
    )
    parser.add_argument("run", type=Path, help="folder of the run, such as checkpoints")
    return parser


def main(argv: Sequence[str]) -> None:
    """Draw `curves.png` and `router_load.png` into the folder of a run."""
    folder = build_parser().parse_args(argv).run
    if not (folder / FILE_NAME).is_file():
        raise ValueError(
            f"{folder} is not the folder of a run, because it contains no {FILE_NAME}. Give the folder of a run, such "
            "as checkpoints."
        )
    rows = read_metrics(folder)
    if not rows:
        raise ValueError(f"{folder / FILE_NAME} contains no steps yet. Draw the curves after the first step.")
    remedy = (
        "This file records the task of the run. Restore the file. If the task is brain tumours, you can also copy "
        f"{FILE_NAME} alone to another folder and plot that folder."
    )
    run = read_json(folder / RUN_FILE, remedy=remedy) if (folder / RUN_FILE).is_file() else {}
    task = Task.from_dict(run["task"]) if run.get("task") else BRAIN_TUMOUR
    _save(plot_curves(rows, task), folder / "curves.png")
    _save(plot_router_load(rows, task), folder / "router_load.png")
    print(f"The plots curves.png and router_load.png are in {folder}.")


def plot_curves(rows: Rows, task: Task = BRAIN_TUMOUR) -> Figure:
    """Plot losses, Dice or reconstruction error, learning rate, gradient norm and throughput over the steps."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True).flatten()
    parts = sorted({name for row in rows for name in row if name.startswith("loss/")})
    _curves(panels[0], rows, {name.removeprefix("loss/"): name for name in parts}, title="loss", log=True)
    if any("reconstruction_error" in row for row in rows):
        panels[1].set_axis_off()
        _curves(panels[2], rows, {"hidden voxels": "reconstruction_error"}, title="mean absolute error in validation")
    else:
        _dice_panels(panels[1], panels[2], rows, task)
    _curves(
        panels[3],
        rows,
        {"learning rate": "lr", "gradient norm": "gradient_norm"},
        title="learning rate and gradient norm",
        log=True,
    )
    _curves(panels[4], rows, {"samples per second": "time/samples_per_second"}, title="samples per second")
    _curves(panels[5], rows, {"waiting for data": "time/data_wait_share"}, title="share of time waiting for data")
    for panel in panels[4:]:
        panel.set_xlabel("step")
    return figure


def _dice_panels(training: Axes, validation: Axes, rows: Rows, task: Task) -> None:
    _curves(training, rows, {name: f"train_dice/{name}" for name in task.regions}, title="Dice of training crops")
    subsets = sorted({name.split("/")[0] for row in rows for name in row if name.startswith("dice_")})
    for subset in subsets:
        scored = [row for row in rows if f"{subset}/{task.regions[0]}" in row]
        means = [np.mean([row[f"{subset}/{region}"] for region in task.regions]) for row in scored]
        validation.plot([row["step"] for row in scored], means, marker="o", label=subset.removeprefix("dice_"))
    validation.set(title="Dice of validation cases, mean of the regions", ylim=(0, 1))
    validation.legend(fontsize=8)


def plot_router_load(rows: Rows, task: Task = BRAIN_TUMOUR) -> Figure:
    """Plot the share of each expert in the routing choices over the steps, with one panel per MoE layer."""
    layers = sorted({int(name.split("/")[1]) for row in rows for name in row if name.startswith("router_load/")})
    figure = Figure(figsize=(12, 1 + 2 * max(len(layers), 1)), layout="constrained")
    for layer, panel in zip(layers, figure.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0], strict=True):
        prefix = f"router_load/{layer}/"
        seen = [row for row in rows if f"{prefix}0" in row]
        number = sum(name.startswith(prefix) for name in seen[0])
        load = np.array([[row[f"{prefix}{expert}"] for row in seen] for expert in range(number)])
        names = [*task.modalities, *(f"free {index + 1}" for index in range(number - len(task.modalities)))]
        steps = (seen[0]["step"] - 0.5, seen[-1]["step"] + 0.5)
        image = panel.imshow(
            load, aspect="auto", vmin=0, cmap="viridis", interpolation="nearest", extent=(*steps, number - 0.5, -0.5)
        )
        panel.set_yticks(range(number), names, fontsize=8)
        panel.set_title(f"MoE layer {layer + 1}: share of each expert in the routing choices", fontsize=10)
        figure.colorbar(image, ax=panel)
        panel.set_xlabel("step")
    return figure


def _curves(panel: Axes, rows: Rows, names: dict[str, str], *, title: str, log: bool = False) -> None:
    for label, name in names.items():
        seen = [row for row in rows if name in row]
        # A line of one point would be invisible.
        marker = "o" if len(seen) == 1 else None
        panel.plot([row["step"] for row in seen], [row[name] for row in seen], label=label, linewidth=1, marker=marker)
    panel.set(title=title, yscale="log" if log else "linear")
    if not log:
        panel.set_ylim(bottom=0)
    if len(names) > 1:
        panel.legend(fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with replacing(path) as scratch:
        figure.savefig(scratch, dpi=110, format="png")

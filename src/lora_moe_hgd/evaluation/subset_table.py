"""Table in the layout of published papers: Dice by subset of the sequences, for one or several networks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from functools import reduce

import pandas as pd

from ..model.task import BRAIN_TUMOUR, Task, shown
from ..subsets import every_subset, sequence_shown, subset_name
from .compare import NOTHING_IN_COMMON

FORMATS = {"markdown": "md", "latex": "tex", "csv": "csv"}
"""File extension of each format."""


def subset_table(scores: Mapping[str, pd.DataFrame], form: str, task: Task = BRAIN_TUMOUR) -> str:
    """Write the mean Dice of each subset and region in percent, and a last row with the mean over the subsets.

    Filled dots mark the sequences of a subset. The Dice of a case, subset and region is used only if it is defined in
    all evaluations, so that all evaluations are compared on the same cases. If there are several evaluations, the best
    value of each subset and region is in bold. If several values are equally good after rounding, all of them are in
    bold.

    Args:
        scores: Name of each evaluation, and the rows of its `scores.csv`.
        form: Format of the table, a key of `FORMATS`.
        task: Task that defines the sequences and regions.

    Raises:
        ValueError: If there is no case, subset and region whose Dice is defined in all evaluations.
    """
    means = _means(scores, task)
    subsets = [name for name in (*_names(task), "mean") if name in means.index.get_level_values("subset")]
    heads = [(region, network) for region in task.regions for network in scores]
    values = {name: [means.loc[(name, region), network] for region, network in heads] for name in subsets}
    if form == "csv":
        return _csv(heads, values)
    cells = {name: _cells(row, len(scores), bold=BOLD[form]) for name, row in values.items()}
    return {"markdown": _markdown, "latex": _latex}[form](heads, cells, task)


BOLD = {"markdown": "**{}**", "latex": r"\textbf{{{}}}"}


def _names(task: Task) -> list[str]:
    return [subset_name(subset, task.modalities) for subset in every_subset(task.modalities)]


def _means(scores: Mapping[str, pd.DataFrame], task: Task) -> pd.DataFrame:
    """Mean Dice in percent over the cases in all evaluations, by subset and region (row) and evaluation (column)."""
    keys = ["case_id", "subset", "region"]
    tables = [rows.set_index(keys)[["dice"]].set_axis([name], axis=1) for name, rows in scores.items()]
    common = reduce(lambda first, second: first.join(second, how="inner"), tables).dropna()
    if common.empty:
        raise ValueError(NOTHING_IN_COMMON)
    by_subset = 100 * common.groupby(level=["subset", "region"]).mean()
    overall = by_subset.groupby(level="region").mean()
    overall.index = pd.MultiIndex.from_product([["mean"], overall.index], names=["subset", "region"])
    every = pd.MultiIndex.from_product(
        [[*by_subset.index.unique("subset"), "mean"], task.regions], names=["subset", "region"]
    )
    return pd.concat([by_subset, overall]).reindex(every)


def _cells(row: list[float], networks: int, *, bold: str) -> list[str]:
    """Format a row with one decimal. With several evaluations, the best value of each region is in bold."""
    shown_values = ["-" if pd.isna(value) else f"{value:.1f}" for value in row]
    cells = []
    for place in range(0, len(row), networks):
        group = shown_values[place : place + networks]
        best = max((float(text) for text in group if text != "-"), default=None)
        several = networks > 1 and best is not None
        cells += [bold.format(text) if several and text != "-" and float(text) == best else text for text in group]
    return cells


def _dots(name: str, task: Task, full: str, empty: str) -> list[str]:
    return [full if sequence in name.split("+") else empty for sequence in task.modalities]


def _markdown(heads: list[tuple[str, str]], cells: Mapping[str, list[str]], task: Task) -> str:
    single = len({network for _, network in heads}) == 1
    columns = [shown(region) if single else f"{shown(region)} {network}" for region, network in heads]
    sequences = [sequence_shown(name) for name in task.modalities]
    lines = [[*sequences, *columns], ["---"] * (len(sequences) + len(columns))]
    for name, row in cells.items():
        first = ["mean", *[""] * (len(sequences) - 1)] if name == "mean" else _dots(name, task, "●", "○")
        lines.append([*first, *row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _latex(heads: list[tuple[str, str]], cells: Mapping[str, list[str]], task: Task) -> str:
    """LaTeX `tabular` that needs the package booktabs."""
    networks = list(dict.fromkeys(network for _, network in heads))
    sequences = [_escaped(sequence_shown(name)) for name in task.modalities]
    width = len(sequences)
    over = [f"\\multicolumn{{{len(networks)}}}{{c}}{{{_escaped(shown(region))}}}" for region in task.regions]
    rules = [
        f"\\cmidrule(lr){{{width + 1 + place * len(networks)}-{width + (place + 1) * len(networks)}}}"
        for place in range(len(task.regions))
    ]
    lines = [f"\\begin{{tabular}}{{{'c' * width}{'c' * len(heads)}}}", "\\toprule"]
    lines += [f"{' & ' * width}{' & '.join(over)} \\\\", "".join(rules)]
    lines.append(f"{' & '.join([*sequences, *(_escaped(network) for _, network in heads)])} \\\\")
    lines.append("\\midrule")
    for name, row in cells.items():
        if name == "mean":
            lines.append("\\midrule")
            first = [f"\\multicolumn{{{width}}}{{l}}{{mean}}"]
        else:
            first = _dots(name, task, "$\\bullet$", "$\\circ$")
        lines.append(f"{' & '.join([*first, *row])} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))


def _csv(heads: list[tuple[str, str]], values: Mapping[str, list[float]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["sequences", *(f"{region} {network}" for region, network in heads)])
    for name, row in values.items():
        writer.writerow([name, *("" if pd.isna(value) else f"{value:.4f}" for value in row)])
    return out.getvalue()

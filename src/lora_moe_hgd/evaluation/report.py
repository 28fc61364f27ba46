"""Tables and plots of an evaluation: means with intervals, contributions of the sequences, calibration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from ..files import counted, replacing
from ..model.task import BRAIN_TUMOUR, Task, shown
from ..pictures import colours_of
from ..subsets import every_subset, subset_name
from .calibration import NUM_BINS, average_calibration_error
from .metrics import MEANINGS

NUM_RESAMPLES = 2000
# An interval, an R2 or a rank correlation of fewer cases would be meaningless.
LEAST_CASES = 3
CONFIDENCE = 0.95

# Counts `(R, 3, bins)` of `calibration.reliability_counts`, by case and subset.
Reliability = Mapping[tuple[str, str], Any]

FINDINGS = "findings.csv"
TRAINED_ON_NOTE = "Scores on training cases say nothing about new cases."
FINDING_COLUMNS = ["case_id", "level", "where", "message"]
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
# Columns that are not scores.
LABELS = ("case_id", "subset", "sequences", "region")


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over cases with bootstrap intervals, per subset, region and metric.

    In rows with the region `mean`, the score of a case is its mean over all regions. In rows with the subset `mean`,
    the score of a case is its mean over all subsets.
    Undefined values (NaN) are left out of each mean, and `cases` counts the cases that remain.

    Args:
        rows: Scores, one row for each case, subset and region.

    Returns:
        Columns `subset`, `region`, `metric`, `cases`, `mean`, `low`, `high`. `mean` is NaN if no
        case has a value. `low` and `high` are NaN with fewer than three cases, or if a value is infinite, as HD95 may
        be.
    """
    metrics = [name for name in rows.columns if name not in LABELS]
    whole = rows.groupby(["case_id", "subset"], sort=False)[metrics].mean().reset_index().assign(region="mean")
    rows = pd.concat([rows, whole])
    over_subsets = rows.groupby(["case_id", "region"], sort=False)[metrics].mean().reset_index().assign(subset="mean")
    rows = pd.concat([rows, over_subsets])
    summary = []
    for (subset, region), group in rows.groupby(["subset", "region"], sort=False):
        for metric in metrics:
            values = group[metric].dropna().to_numpy(dtype=float)
            summary.append((subset, region, metric, len(values), *_interval(values)))
    return pd.DataFrame(summary, columns=["subset", "region", "metric", "cases", "mean", "low", "high"])


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over cases, and lower and upper end of the percentile bootstrap interval of the mean."""
    if len(values) < LEAST_CASES or not np.isfinite(values).all():
        return (float(values.mean()) if len(values) else math.nan), math.nan, math.nan
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=NUM_RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
    )
    return float(values.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def shapley_values(worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Contribution of each sequence to a score, averaged over all orders in which the sequences may be acquired.

    Shapley 1953: `phi_i = sum over S without i of |S|! (M - |S| - 1)! / M! (v(S + i) - v(S))`. `i` is one of `M`
    sequences, and `S` is any set of the other sequences. `v` is the score of a subset, and 0 for the empty subset. The
    contributions add up to the score of all sequences together.

    Args:
        worth: Score of every non-empty subset of the sequences.

    Example:
        >>> shapley_values({frozenset("a"): 0.5, frozenset("b"): 0.25, frozenset("ab"): 1.0})
        {'a': 0.625, 'b': 0.375}
    """
    players = sorted(frozenset().union(*worth))
    worth = {frozenset(): 0.0, **worth}
    values = {}
    for player in players:
        others = [name for name in players if name != player]
        values[player] = sum(
            (worth[frozenset(chosen) | {player}] - worth[frozenset(chosen)])
            / (len(players) * math.comb(len(others), size))
            for size in range(len(players))
            for chosen in itertools.combinations(others, size)
        )
    return values


def worth_of_sequences(rows: pd.DataFrame, task: Task = BRAIN_TUMOUR) -> dict[str, dict[str, float]]:
    """Contribution of each sequence to the mean Dice of each region (Shapley values).

    For a region, only cases are used whose Dice of this region is defined in every subset, so that all subsets have
    the same cases. A region without such a case is left out.
    """
    values = {}
    for region in task.regions:
        dice = rows[rows["region"] == region].pivot(index="case_id", columns="subset", values="dice").dropna()
        if len(dice) and len(dice.columns) == len(every_subset(task.modalities)):
            worth = {frozenset(subset.split("+")): mean for subset, mean in dice.mean().items()}
            values[region] = shapley_values(worth)
    return values


def volume_agreement(rows: pd.DataFrame, task: Task = BRAIN_TUMOUR) -> pd.DataFrame:
    """Agreement of predicted and true volumes, in one row for each number of sequences.

    A row covers all cases and all subsets with this number of sequences.

    Returns:
        Columns `sequences`, and for each region `error_<region>` and `r2_<region>`. `error_<region>` is the median
        absolute error in millilitres. `r2_<region>` is the coefficient of determination,
        `1 - sum (V - P)^2 / sum (V - mean V)^2`, with the true volumes `V` and the predicted volumes `P`. R2 is
        negative if the mean of the true volumes would be a better prediction. R2 is NaN if all true volumes are equal
        or if there are fewer than three cases.
    """
    table = []
    for count, group in rows.groupby("sequences"):
        values: dict[str, float] = {"sequences": float(count)}
        for region in task.regions:
            own = group[group["region"] == region]
            errors, true = own["volume_error_ml"].to_numpy(), own["true_volume_ml"].to_numpy()
            values[f"error_{region}"] = float(np.median(np.abs(errors))) if len(errors) else math.nan
            # The mean of equal volumes may differ from them by rounding.
            differ = own["case_id"].nunique() >= LEAST_CASES and len(set(true)) > 1
            values[f"r2_{region}"] = 1 - (errors**2).sum() / ((true - true.mean()) ** 2).sum() if differ else math.nan
        table.append(values)
    return pd.DataFrame(table)


def trust(rows: pd.DataFrame, reliability: Reliability, task: Task = BRAIN_TUMOUR) -> pd.DataFrame:
    """Calibration of the probabilities and of the expected Dice, in one row for each number of sequences.

    If the expected Dice or the true Dice of a region of a case is undefined, the columns about Dice leave this value
    out.

    Returns:
        Columns `sequences`, `ace_<region>` (average calibration error) for each region, `expected_dice` and `dice`
        (means over cases, subsets and regions), and `spearman` (rank correlation of `expected_dice` and `dice` over
        cases and subsets).
    """
    table = []
    pooled = pooled_reliability(rows, reliability)
    both = rows.dropna(subset=["dice", "expected_dice"])
    cases = both.groupby(["case_id", "subset", "sequences"])[["dice", "expected_dice"]].mean().reset_index()
    for count in sorted(pooled):
        group = cases[cases["sequences"] == count]
        errors = {f"ace_{name}": average_calibration_error(pooled[count][i]) for i, name in enumerate(task.regions)}
        enough = group["case_id"].nunique() >= LEAST_CASES
        varies = enough and group["dice"].nunique() > 1 and group["expected_dice"].nunique() > 1
        rank = stats.spearmanr(group["dice"], group["expected_dice"]).statistic if varies else math.nan
        means = {name: group[name].mean() for name in ("expected_dice", "dice")}
        table.append({"sequences": count, **errors, **means, "spearman": rank})
    return pd.DataFrame(table)


def pooled_reliability(rows: pd.DataFrame, reliability: Reliability) -> dict[int, np.ndarray]:
    """Sum `calibration.reliability_counts` over all cases and subsets with the same number of sequences.

    Returns:
        The summed counts, `(R, 3, NUM_BINS)`, by number of sequences.
    """
    pooled: dict[int, np.ndarray] = {}
    places = rows[["case_id", "subset", "sequences"]].drop_duplicates()
    for case_id, subset, count in places.itertuples(index=False):
        pooled[count] = pooled.get(count, 0) + np.array(reliability[case_id, subset])
    return pooled


def to_markdown(
    rows: pd.DataFrame, reliability: Reliability, *, notes: Iterable[str] = (), task: Task = BRAIN_TUMOUR
) -> str:
    """Notes and all tables of an evaluation as Markdown. A line above each table says what the table shows."""
    summary, worth = summarise(rows), worth_of_sequences(rows, task)
    regions = list(map(shown, task.regions))
    overall = summary[summary["subset"] == "mean"].set_index(["metric", "region"], drop=False)
    others = [name for name in overall.index.unique("metric") if name not in ("dice", "expected_dice")]
    most = overall["cases"].max()
    enough = rows["case_id"].nunique() >= LEAST_CASES
    parts = [
        *notes,
        "Dice of each subset of the sequences (row) and region (column); higher is better, 1 is perfect. "
        + (
            "Values are means over cases, with a 95 % bootstrap interval."
            if enough
            else f"Values are means over cases, without intervals: an interval needs at least {LEAST_CASES} cases."
        ),
        dice_table(summary, task),
        "Means of the other metrics over subsets and cases, for each region.",
        _table(
            ["metric", *regions, "meaning"],
            [
                [name, *(_mean(overall.loc[(name, region)], most) for region in task.regions), MEANINGS[name]]
                for name in others
            ],
        ),
    ]
    parts += [
        "Volumes by number of sequences. A row covers all cases and all subsets with this number of sequences. The "
        "error is the median absolute error in mL (lower is better). R2 is 1 if the predicted volumes are right, and "
        "negative if the mean of the true volumes would be a better prediction."
        + ("" if enough else f" R2 needs {LEAST_CASES} cases."),
        _table(
            ["sequences", *(f"{name} {what}" for name in regions for what in ("error mL", "R2"))],
            [[f"{count:.0f}", *_numbers(values)] for count, *values in volume_agreement(rows, task).to_numpy()],
        ),
    ]
    if worth:
        parts += [
            f"Contribution of each sequence to the mean Dice with all {NUMBERS[len(task.modalities) - 1]} sequences "
            "(Shapley values).",
            _table(
                ["sequence", *map(shown, worth)],
                [[name, *_numbers(values[name] for values in worth.values())] for name in task.modalities],
            ),
        ]
    if not reliability:
        return "\n\n".join(parts)
    parts += [
        "Calibration by number of sequences. ACE is the average calibration error of the probabilities: the mean "
        "vertical distance of the points in the reliability diagram from the diagonal (lower is better). The expected "
        "Dice and the true Dice are means over cases, subsets and regions. Spearman is the rank correlation of the "
        "expected Dice with the true Dice (1 is best)." + ("" if enough else f" It needs {LEAST_CASES} cases."),
        _table(
            ["sequences", *(f"ACE {name}" for name in regions), "expected Dice", "true Dice", "Spearman"],
            [[f"{count:.0f}", *_numbers(values)] for count, *values in trust(rows, reliability, task).to_numpy()],
        ),
    ]
    return "\n\n".join(parts)


def _numbers(values: Iterable[float]) -> list[str]:
    return ["-" if math.isnan(value) else f"{value:.3f}" for value in values]


def _mean(row: pd.Series, usual: int) -> str:
    """Format a mean. For Dice, append the interval. If the number of cases is not `usual`, append it."""
    text = f"{row['mean']:.3f}"
    if row["metric"] == "dice" and not math.isnan(row["low"]):
        text += f" ({row['low']:.3f} to {row['high']:.3f})"
    return text if row["cases"] == usual else f"{text}, {counted(row['cases'], 'case')}"


def dice_table(summary: pd.DataFrame, task: Task = BRAIN_TUMOUR) -> str:
    """Markdown table of Dice with one row for each subset and a last row for the mean over all subsets."""
    dice = summary[summary["metric"] == "dice"].set_index(["subset", "region"], drop=False)
    lines = []
    for subset in dice.index.unique("subset"):
        usual = dice.loc[(subset, "mean")]["cases"]
        lines.append(
            [subset, str(usual), *(_mean(dice.loc[(subset, region)], usual) for region in (*task.regions, "mean"))]
        )
    return _table(["sequences", "cases", *map(shown, task.regions), "mean"], lines)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))


def plot_heat_map(summary: pd.DataFrame, task: Task = BRAIN_TUMOUR) -> Figure:
    """Heat map of the Dice of each subset and region."""
    dice = summary[summary["metric"] == "dice"].set_index(["subset", "region"])["mean"]
    subsets = list(dice.index.unique("subset"))
    regions = [*task.regions, "mean"]
    values = np.array([[dice[subset, region] for region in regions] for subset in subsets])
    figure = Figure(figsize=(5, 1 + 0.34 * len(subsets)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(regions)), list(map(shown, regions)))
    axes.set_yticks(range(len(subsets)), subsets)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.55 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title("Dice by subset of the sequences")
    figure.colorbar(image, ax=axes)
    return figure


def plot_by_count(rows: pd.DataFrame, task: Task = BRAIN_TUMOUR) -> Figure:
    """Bar chart of the mean Dice for each number of sequences, with bootstrap intervals.

    The Dice of a case is its mean over all subsets with this number of sequences. Means and intervals are over cases.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = sorted(rows["sequences"].unique())
    step = 0.81 / len(task.regions)
    for place, region in enumerate(task.regions):
        means, ends = [], []
        for count in counts:
            chosen = rows[(rows["region"] == region) & (rows["sequences"] == count)]
            mean, low, high = _interval(chosen.groupby("case_id")["dice"].mean().dropna().to_numpy())
            means.append(mean)
            ends.append((mean - low, high - mean) if not math.isnan(low) else (0.0, 0.0))
        where = [index + (place - (len(task.regions) - 1) / 2) * step for index in range(len(counts))]
        colour = colours_of(task)[shown(region)]
        axes.bar(where, means, 0.25 / 0.27 * step, yerr=np.array(ends).T, label=shown(region), color=colour)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set(xlabel="sequences", ylabel="Dice", ylim=(0, 1))
    enough = rows["case_id"].nunique() >= LEAST_CASES
    axes.set_title("Dice by number of sequences" + (", 95 % intervals" if enough else ""))
    # The legend is below the axes, because bars of good scores reach the top.
    figure.legend(ncols=len(task.regions), loc="outside lower center")
    return figure


def plot_reliability(pooled: Mapping[int, np.ndarray], task: Task = BRAIN_TUMOUR) -> Figure:
    """Reliability diagram: share of voxels in the true region, by predicted probability, in one panel per region.

    Each panel has one curve per number of sequences.
    """
    figure = Figure(figsize=(2 + 3 * len(task.regions), 3.8), layout="constrained")
    panels = figure.subplots(1, len(task.regions), sharey=True, squeeze=False)[0]
    for index, (axes, region) in enumerate(zip(panels, task.regions, strict=True)):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for count, counts in sorted(pooled.items()):
            voxels, probability, true = counts[index]
            seen = voxels > 0
            shares = probability[seen] / voxels[seen], true[seen] / voxels[seen]
            axes.plot(*shares, marker="o", label=counted(count, "sequence"))
        axes.set(title=shown(region), xlabel=f"probability, in {NUM_BINS} bins", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("share of voxels in the true region")
    panels[0].legend()
    return figure


def write_report(
    rows: pd.DataFrame,
    reliability: Reliability,
    findings: Sequence[Mapping[str, str]],
    out: Path,
    *,
    about: Mapping[str, Any],
    task: Task = BRAIN_TUMOUR,
) -> str:
    """Write the tables and plots of an evaluation; return the text to print.

    Only `scores.csv` and `findings.csv` contain case ids, because the other files are published with a checkpoint.

    Args:
        rows: Scores, one row for each case, subset and region. At least one row is needed.
        reliability: Counts of `calibration.reliability_counts`, by case and subset.
        findings: Errors and warnings about cases, with the keys `FINDING_COLUMNS`.
        out: Folder for `scores.csv`, `findings.csv`, `table.md`, `table.json` and the plots.
        about: Facts for `table.json`: checkpoint, data and options; `failed`, the number of cases that were not
            scored; `trained_on`, the number of cases that were used to train the checkpoint.
        task: Task that defines the sequences and regions.
    """
    names = task.modalities
    order = {subset_name(subset, names): place for place, subset in enumerate(every_subset(names))}
    rows = rows.sort_values("subset", key=lambda names: names.map(order), kind="stable")
    warned = len({finding["case_id"] for finding in findings if finding["level"] == "warning"})
    about = {**about, "cases": int(rows["case_id"].nunique()), "with_warnings": warned}
    summary, markdown = summarise(rows), to_markdown(rows, reliability, notes=_notes(about), task=task)
    content = {
        "about": about,
        "summary": json.loads(summary.to_json(orient="records")),
        "shapley": worth_of_sequences(rows, task),
        "volumes": json.loads(volume_agreement(rows, task).to_json(orient="records")),
        "trust": json.loads(trust(rows, reliability, task).to_json(orient="records")) if reliability else [],
    }
    tables = {"scores.csv": rows, FINDINGS: pd.DataFrame(findings, columns=FINDING_COLUMNS)}
    for name, table in tables.items():
        with replacing(out / name) as scratch:
            table.to_csv(scratch, index=False)
    with replacing(out / "table.json") as scratch:
        scratch.write_text(json.dumps(content, indent=2))
    with replacing(out / "table.md") as scratch:
        scratch.write_text(markdown + "\n")
    pictures = {
        "heat_map.png": plot_heat_map(summary, task),
        "by_count.png": plot_by_count(rows, task),
    }
    if reliability:
        pictures["reliability.png"] = plot_reliability(pooled_reliability(rows, reliability), task)
    for name, figure in pictures.items():
        with replacing(out / name) as scratch:
            FigureCanvasAgg(figure).print_png(scratch)
    return f"{markdown}\n\nFiles in {out}: table.md, table.json, {', '.join((*tables, *pictures))}."


def _notes(about: Mapping[str, Any]) -> list[str]:
    """Notes on cases that failed, have warnings, or were used to train the checkpoint."""
    total = about["cases"]
    facts = (
        ("Not scored", about["failed"], total + about["failed"], f"{FINDINGS} says why."),
        ("With warnings", about["with_warnings"], total, f"{FINDINGS} lists the warnings."),
        (
            "Used to train the checkpoint",
            about["trained_on"],
            total,
            TRAINED_ON_NOTE,
        ),
    )
    return [
        f"{what}: {count} of {counted(number, 'case')}. {advice}" for what, count, number, advice in facts if count
    ]

"""Comparison of evaluations by paired differences between cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..files import replacing
from ..model.task import shown

# With five cases the smallest p value of Wilcoxon's test is 1/16: no difference could reach .05.
FEWEST_CASES = 6


def paired_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Dice of `second` minus Dice of `first`, over the cases and subsets in both evaluations.

    The differences are paired by case: the Dice of a case is its mean over the regions and subsets of the row. A value
    that is undefined in one evaluation is left out of both.

    Args:
        first: Rows of the first `scores.csv`.
        second: Rows of the second `scores.csv`.

    Returns:
        One row for each region, over all common subsets, then one for each subset, over all regions. There is no row
        without a case. Columns: `subset`, `region`, `cases`, `first`, `second`, `difference`, `low`, `high` (95 %
        bootstrap interval), `p` (Wilcoxon signed-rank, two-sided, not corrected for the number of rows; NaN for fewer
        than six cases) and `effect` (matched-pairs rank-biserial correlation, Kerby 2014: -1 if every case is worse, 1
        if every case is better).

    Raises:
        ValueError: If no case and subset has a defined Dice in both evaluations.
    """
    keys = ["case_id", "subset", "region"]
    pairs = first.merge(second, on=keys, suffixes=("_first", "_second"))[[*keys, "dice_first", "dice_second"]].dropna()
    if pairs.empty:
        raise ValueError("The evaluations have no case and subset in common in which Dice is defined.")
    groups = [("mean", region, pairs[pairs["region"] == region]) for region in pairs["region"].unique()]
    groups.append(("mean", "mean", pairs))
    groups += [(subset, "mean", group) for subset, group in pairs.groupby("subset", sort=False)]
    table = []
    for subset, region, group in groups:
        cases = group.groupby("case_id")[["dice_first", "dice_second"]].mean()
        difference = (cases["dice_second"] - cases["dice_first"]).to_numpy()
        low, high = np.nan, np.nan
        if len(difference) > 1:
            found = stats.bootstrap((difference,), np.mean, n_resamples=2000, method="percentile", rng=0)
            low, high = found.confidence_interval
        table.append(
            {
                "subset": subset,
                "region": region,
                "cases": len(cases),
                "first": cases["dice_first"].mean(),
                "second": cases["dice_second"].mean(),
                "difference": difference.mean(),
                "low": low,
                "high": high,
                "p": _p_value(difference),
                "effect": rank_biserial(difference),
            }
        )
    return pd.DataFrame(table)


def _p_value(difference: np.ndarray) -> float:
    if len(difference) < FEWEST_CASES:
        return np.nan
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values corrected for their number (Holm 1979); NaN stands for no test and stays.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03, np.nan]))
        array([0.03, 0.06, 0.06,  nan])
    """
    corrected = np.full_like(p_values, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected


def rank_biserial(difference: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation, from -1 (every case is worse) to 1 (every case is better).

    It is the share of the ranks of positive differences minus the share of the ranks of negative differences.

    Example:
        >>> rank_biserial(np.array([0.1, 0.2, -0.3]))
        0.0
    """
    difference = difference[difference != 0]
    if not len(difference):
        return 0.0
    ranks = stats.rankdata(np.abs(difference))
    return float((ranks * np.sign(difference)).sum() / ranks.sum())


def write_comparison(folders: Sequence[Path], out: Path) -> str:
    """Compare each evaluation with the first one; write `comparison.csv` and `comparison.md`, and return the text.

    The column `p_holm` of the table has the p values corrected for the number of all tests in it.

    Raises:
        ValueError: If there are fewer than two folders, if a folder contains no evaluation, or if the evaluations have
            no case in common.
    """
    if len(folders) < 2:
        raise ValueError(f"--compare needs at least two folders of evaluations, but there is only {folders[0]}.")
    scores = [read_scores(folder) for folder in folders]
    tables = [
        paired_differences(scores[0], other).assign(compared=str(folder))
        for folder, other in zip(folders[1:], scores[1:], strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    parts = [
        f"{folder} against {folders[0]}: Dice, paired by case.\n\n{_to_markdown(part)}"
        for folder, part in table.groupby("compared", sort=False)
    ]
    tests = int(table["p"].notna().sum())
    if tests:
        parts.append(
            f"p: Wilcoxon's signed-rank test, corrected by Holm's method for the {tests} tests of this comparison."
        )
    if tests < len(table):
        fewest = table["cases"].min()
        parts.append(
            f"There is no p value for fewer than {FEWEST_CASES} cases ({fewest} here), because no difference could be "
            "significant. Look at the intervals, and at the cases one by one."
        )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "comparison.csv") as scratch:
        table.to_csv(scratch, index=False)
    text = "\n\n".join(parts)
    with replacing(out / "comparison.md") as scratch:
        scratch.write_text(text + "\n")
    return text


def read_scores(folder: Path) -> pd.DataFrame:
    """Read the rows of an evaluation.

    Raises:
        ValueError: If the folder holds none.
    """
    if not (folder / "scores.csv").is_file():
        raise ValueError(f"{folder} holds no scores.csv: it is not the --out-path folder of an evaluation.")
    return pd.read_csv(folder / "scores.csv")


def _to_markdown(table: pd.DataFrame) -> str:
    lines = [
        "| sequences | region | cases | first | second | difference | p | effect |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        interval = "" if np.isnan(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
        cells = [row.subset, shown(row.region), str(row.cases)]
        cells += [f"{row.first:.3f}", f"{row.second:.3f}", f"{row.difference:+.3f}{interval}"]
        p_value = "" if np.isnan(row.p_holm) else f"{row.p_holm:.3f}"
        lines.append(f"| {' | '.join([*cells, p_value, f'{row.effect:+.2f}'])} |")
    return "\n".join(lines)

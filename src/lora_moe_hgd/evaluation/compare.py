"""Comparison of evaluations by paired differences between cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..files import counted, listed, replacing
from ..model.task import shown
from .score_files import check_conventions, read_scores, task_of

# With five cases, the smallest p value of Wilcoxon's test is 1/16, so no difference can reach 0.05.
FEWEST_CASES = 6
NOTHING_IN_COMMON = (
    "No case has a Dice score for the same subset in all evaluations. Evaluate all checkpoints on the same cases and "
    "subsets."
)


def paired_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Compare the Dice of each case in two evaluations: Dice in `second` minus Dice in `first`.

    The Dice of a case, subset and region is used only if it is defined in both evaluations. Each row of the result
    covers some subsets and regions. In this row, the Dice of a case is its mean over these subsets and regions.

    Args:
        first: Rows of the first `scores.csv`.
        second: Rows of the second `scores.csv`.

    Returns:
        First, one row for each region and one row for all regions together. These rows cover all subsets that both
        evaluations contain. Then, one row for each subset, which covers all regions. A region or subset without a case
        has no row.

        Columns: `subset`, `region`, `cases`, `first`, `second`, `difference`, `low`, `high`, `p`, `effect`. `first`
        and `second` are the mean Dice of the two evaluations. The 95 % bootstrap interval of the difference is from
        `low` to `high`. `p` is the two-sided p value of Wilcoxon's signed-rank test, without correction for the number
        of rows; it is NaN for fewer than six cases. `effect` is the matched-pairs rank-biserial correlation (Kerby
        2014): -1 if every case is worse in `second`, 1 if every case is better in `second`, NaN for one case.

    Raises:
        ValueError: If there is no case, subset and region whose Dice is defined in both evaluations.
    """
    keys = ["case_id", "subset", "region"]
    pairs = first.merge(second, on=keys, suffixes=("_first", "_second"))[[*keys, "dice_first", "dice_second"]].dropna()
    if pairs.empty:
        raise ValueError(NOTHING_IN_COMMON)
    groups = [("mean", region, pairs[pairs["region"] == region]) for region in pairs["region"].unique()]
    groups.append(("mean", "mean", pairs))
    groups += [(subset, "mean", group) for subset, group in pairs.groupby("subset", sort=False)]
    table = []
    for subset, region, group in groups:
        cases = group.groupby("case_id")[["dice_first", "dice_second"]].mean()
        difference = (cases["dice_second"] - cases["dice_first"]).to_numpy()
        low, high, effect = np.nan, np.nan, np.nan
        if len(difference) > 1:
            effect = rank_biserial(difference)
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
                "effect": effect,
            }
        )
    return pd.DataFrame(table)


def _p_value(difference: np.ndarray) -> float:
    if len(difference) < FEWEST_CASES:
        return np.nan
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: np.ndarray) -> np.ndarray:
    """Correct p values for multiple testing (Holm 1979). A p value of NaN, for a test that was not made, stays NaN.

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
    """Matched-pairs rank-biserial correlation, from -1 (all differences are negative) to 1 (all are positive).

    Differences of zero are left out. The other differences are ranked by absolute value. The correlation is the sum of
    the ranks of positive differences minus the sum of the ranks of negative differences, divided by the sum of all
    ranks.

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
    """Compare each further evaluation with the first. Write `comparison.csv` and `comparison.md`; return the Markdown.

    The column `p_holm` contains the p values after Holm's correction for all tests in the table.

    Args:
        folders: Folders of evaluations, or CSV files; see `read_scores`.
        out: Output folder.

    Raises:
        ValueError: If there are fewer than two folders, if a folder contains no evaluation, if the evaluations have no
            case in common, or if the evaluations score empty regions by different conventions.
    """
    if len(folders) < 2:
        raise ValueError(f"--compare needs at least two folders of evaluations, but got only {folders[0]}.")
    check_conventions(folders)
    task = task_of(folders)
    scores = [read_scores(folder, task) for folder in folders]
    tables: list[pd.DataFrame] = []
    left_out: dict[str, str] = {}
    for folder, other in zip(folders[1:], scores[1:], strict=True):
        tables.append(paired_differences(scores[0], other).assign(compared=str(folder)))
        only_one = sorted(set(scores[0]["case_id"]) ^ set(other["case_id"]))
        if only_one:
            left_out[str(folder)] = (
                f"\n\nThese cases are left out, because only one evaluation has them: {listed(only_one)}."
            )
    table = pd.concat(tables, ignore_index=True)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=float))
    parts = [
        f"Dice of {folder} (second) minus Dice of {folders[0]} (first), compared case by case.\n\n{_to_markdown(part)}"
        + left_out.get(folder, "")
        for folder, part in table.groupby("compared", sort=False)
    ]
    parts.append(
        "A positive difference means that the second evaluation is better. effect is the rank-biserial correlation, "
        "from -1 (worse in every case) to 1 (better in every case)."
    )
    tests = int(table["p"].notna().sum())
    if tests:
        parts.append(
            "p is the p value of Wilcoxon's signed-rank test, with Holm's correction for "
            f"{counted(tests, 'test')} in this comparison."
        )
    if tests < len(table):
        fewest = table["cases"].min()
        parts.append(
            f"A row has a p value only if it has at least {FEWEST_CASES} cases, because no difference between fewer "
            f"cases could be significant. The row with the fewest cases has {counted(fewest, 'case')}. Look at the "
            "intervals and at the scores of each case instead."
        )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "comparison.csv") as scratch:
        table.to_csv(scratch, index=False)
    text = "\n\n".join(parts)
    with replacing(out / "comparison.md") as scratch:
        scratch.write_text(text + "\n")
    return text


def _to_markdown(table: pd.DataFrame) -> str:
    lines = [
        "| sequences | region | cases | first | second | difference | p | effect |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        interval = "" if np.isnan(row.low) else f" ({row.low:+.3f} to {row.high:+.3f})"
        cells = [row.subset, shown(row.region), str(row.cases)]
        cells += [f"{row.first:.3f}", f"{row.second:.3f}", f"{row.difference:+.3f}{interval}"]
        cells.append("-" if np.isnan(row.p_holm) else f"{row.p_holm:.3f}")
        cells.append("-" if np.isnan(row.effect) else f"{row.effect:+.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

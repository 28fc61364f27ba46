"""Fit the weights of the confidence, and say how well it holds on cases left out.

`python lab/fit_confidence.py lab/confidence.csv` prints `confidence_weights` for `preprocessor_config.json` and the
tables of docs/confidence.md. Each case is predicted by weights that were fitted to the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import spearmanr

from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES, REGIONS

BAD = 0.6
FALSE_ALARMS = 0.1


def features(rows: pd.DataFrame) -> np.ndarray:
    """The features of `calibrated_dice`, a row each."""
    inside = rows["expected_dice"].clip(1e-3, 1 - 1e-3)
    volumes = [np.log10(rows[f"volume_ml_{region}"] + 0.1) for region in REGIONS]
    present = [rows["sequences"].str.split("+").map(lambda names, name=name: name in names) for name in MODALITIES]
    columns = [np.ones(len(rows)), np.log(inside / (1 - inside)), *volumes, *present]
    return np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)


def predict(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-features(rows) @ weights))


def fit(rows: pd.DataFrame) -> np.ndarray:
    """Least absolute error, smoothed, drawn a little towards the expected Dice itself."""
    start = np.zeros(2 + len(REGIONS) + len(MODALITIES))
    start[1] = 1.0
    truth, inputs = rows["dice"].to_numpy(), features(rows)

    def loss(weights: np.ndarray) -> float:
        error = np.sqrt((1 / (1 + np.exp(-inputs @ weights)) - truth) ** 2 + 1e-3).mean()
        return float(error + 0.002 * ((weights - start)[1:] ** 2).sum())

    return minimize(loss, start, method="BFGS").x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    rows = pd.read_csv(parser.parse_args().table)
    volumes = rows.pivot(index=["case", "sequences"], columns="region", values="volume_ml").add_prefix("volume_ml_")
    rows = rows.join(volumes, on=["case", "sequences"])
    rows["calibrated"] = 0.0
    weights = []
    for region in REGIONS:
        of_region = rows[rows["region"] == region]
        weights.append(fit(of_region).round(3).tolist())
        for case in of_region["case"].unique():
            left_out = of_region["case"] == case
            rows.loc[of_region.index[left_out], "calibrated"] = predict(of_region[left_out], fit(of_region[~left_out]))
    print(json.dumps(weights))
    complete = rows["sequences"] == "+".join(MODALITIES)
    print("| region | mean Dice | error, expected | error, calibrated | with four sequences | rank correlation |")
    print("|---|---|---|---|---|---|")
    for name, part in [*((region, rows["region"] == region) for region in REGIONS), ("all", rows["region"] != "")]:
        chosen = rows[part]
        errors = [(chosen[kind] - chosen["dice"]).abs().mean() for kind in ("expected_dice", "calibrated")]
        four = rows[part & complete]
        errors.append((four["calibrated"] - four["dice"]).abs().mean())
        rank = spearmanr(chosen["calibrated"], chosen["dice"]).statistic
        print(
            f"| {name} | {chosen['dice'].mean():.3f} | {' | '.join(f'{error:.3f}' for error in errors)} | {rank:.2f} |"
        )
    bad = rows["dice"] < BAD
    print("\n| confidence | bias | bad results caught | area under the risk-coverage curve |")
    print("|---|---|---|---|")
    for kind in ("expected_dice", "calibrated"):
        threshold = rows.loc[~bad, kind].quantile(FALSE_ALARMS)
        caught = (rows.loc[bad, kind] < threshold).mean()
        risks = 1 - rows.sort_values(kind, ascending=False)["dice"].expanding().mean()
        print(f"| {kind} | {(rows[kind] - rows['dice']).mean():+.3f} | {caught:.2f} | {risks.mean():.3f} |")


if __name__ == "__main__":
    main()

"""Confidence of a segmentation: the expected Dice of each region, calibrated on real cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal

import numpy as np

from .findings import WHOLE_CASE, Finding
from .task import shown

# A region with a lower expected Dice should not be used without correction.
LOW_CONFIDENCE = 0.6


def expected_dice(probabilities: np.ndarray, regions: np.ndarray) -> list[float]:
    """Return the Dice that the probabilities `p` imply for each region mask `m`: `2 sum(p m) / (sum(p) + sum(m))`.

    The implied Dice is the soft Dice between the mask of a region and the probabilities of the region. If all
    probabilities are 0 or 1, the implied Dice is 1. On real cases the implied Dice is too high, so `calibrated_dice`
    corrects it.

    Args:
        probabilities: Probabilities of the regions, `(R, D, H, W)` in [0, 1].
        regions: Masks of the segmented regions, `(R, D, H, W)` bool.

    Example:
        >>> probabilities = np.array([[1.0, 1.0, 0.0], [0.75, 0.25, 0.0]])
        >>> expected_dice(probabilities, probabilities > 0.5)
        [1.0, 0.75]
    """
    found = []
    # Compute one region after the other, without copies, because a case may have 10^8 voxels.
    for probability, region in zip(probabilities, regions, strict=True):
        total = float(probability.sum(dtype=np.float64)) + int(np.count_nonzero(region))
        overlap = float(probability[region].sum(dtype=np.float64))
        found.append(2 * overlap / total if total else 1.0)
    return found


def calibrated_dice(
    expected: float, volumes_ml: Sequence[float], present: Sequence[bool], weights: Sequence[float]
) -> float:
    """Return the expected Dice of a region, in (0, 1), by a logistic regression that was fitted to real cases.

    The expected Dice is `sigmoid(w_0 + w_1 logit(e) + sum_r w_(2+r) log10(V_r + 0.1) + sum_m w_(2+R+m) present_m)`.
    The regression uses the volumes of all regions, because a core that is very large or very small for its tumour is
    often wrong.

    Args:
        expected: `e`, the Dice that the probabilities imply for the region, see `expected_dice`.
        volumes_ml: `V`, the volume of each of the R regions in millilitres.
        present: Whether each sequence is available, in channel order.
        weights: `w`, the weights of the regression: two numbers, then one for each region, then one for each sequence.

    Example:
        >>> round(calibrated_dice(0.9, [9.9], [True], [0.0, 1.0, 0.0, 0.0]), 6)
        0.9
    """
    inside = min(max(expected, 1e-3), 1 - 1e-3)
    volumes = [math.log10(volume + 0.1) for volume in volumes_ml]
    features = [1.0, math.log(inside / (1 - inside)), *volumes, *map(float, present)]
    return 1 / (1 + math.exp(-sum(weight * value for weight, value in zip(weights, features, strict=True))))


def rounded_down(dice: float, decimals: int = 2) -> float:
    """Round an expected Dice down, so that a value below `LOW_CONFIDENCE` is never shown as `LOW_CONFIDENCE`.

    Example:
        >>> rounded_down(0.5999999999), rounded_down(0.29), rounded_down(0.5996, decimals=3)
        (0.59, 0.29, 0.599)
    """
    # Round the decimal digits: as a float, 0.29 * 100 is less than 29.
    return float(Decimal(repr(float(dice))).quantize(Decimal(10) ** -decimals, rounding=ROUND_FLOOR))


def dice_text(dice: float | None) -> str:
    """Text of an expected Dice, rounded down to two decimals; `not found` if the Dice is `None` (empty region).

    Example:
        >>> dice_text(0.598), dice_text(None)
        ('0.59', 'not found')
    """
    return "not found" if dice is None else f"{rounded_down(dice):.2f}"


def confidence_warnings(confidence: Mapping[str, float | None], target: str = "tumour") -> list[Finding]:
    """Return a warning for each region with a low confidence, or one warning if all regions are empty.

    Args:
        confidence: Expected Dice of each region, by the name of the region; `None` for an empty region.
        target: Word for the segmented object, such as `tumour`.
    """
    if all(value is None for value in confidence.values()):
        message = f"No {target} was found. Look at the images: the program can miss a {target}."
        return [Finding(WHOLE_CASE, message)]
    return [
        Finding(
            shown(name),
            f"The expected Dice is only {dice_text(value)}. An expert must correct this region before use.",
            "warning",
        )
        for name, value in confidence.items()
        if value is not None and value < LOW_CONFIDENCE
    ]

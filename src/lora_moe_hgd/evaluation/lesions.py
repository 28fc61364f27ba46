"""Lesion-wise scores of the BraTS challenges since 2023: all lesions count equally, whatever their size.

`MergedRules` are the rules of 2023 and 2024, from https://github.com/rachitsaluja/BraTS-2023-Metrics. In this module,
the surface of a lesion consists of its outermost voxels, as in `metrics`. In the official program,
https://github.com/google-deepmind/surface-distance finds the surface, which is the boundary between the voxels inside
and outside a lesion.

The rules for 2024 apply the procedure of 2023 with the volumes and penalties of
https://github.com/rachitsaluja/BraTS-2024-Metrics. Their scores therefore differ from the official scores of 2024. The
official programs of 2024 also merge predicted lesions by dilation, remove small predicted lesions, count pieces of
enhancing tumour that touch the same necrosis as one lesion, and do not penalise false lesions in MEN-RT.

`PairedRules` are the rules of 2026. The official program of 2026 is https://pypi.org/project/brats-evaluation, which
runs panoptica (Kofler et al. 2023, https://arxiv.org/abs/2312.02608). The test tests/test_official_metrics.py compares
this module with brats-evaluation and panoptica, and docs/evaluate.md lists the differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage, optimize

from ..masks import bounds, dice
from .metrics import check_masks, missed_distance_mm, surface_distances_mm

# True lesions are dilated with 18 neighbours. Components are connected through 26 neighbours.
_EIGHTEEN = ndimage.generate_binary_structure(3, 2)
_TWENTY_SIX = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class MergedRules:
    """Rules that merge nearby true lesions, and that merge predicted components if they touch the same true lesion.

    Attributes:
        dilation: Number of times that the true region is dilated. Parts of the region that touch after dilation count
            as one lesion.
        ignored_mm3: True lesions of this volume or less are ignored.
        penalty_mm: HD95 in mm of a missed or false lesion. With `None`, it is the length of the image's diagonal.
        ignored_mm3_of: Volume that replaces `ignored_mm3` for some regions, by name of the region.
    """

    dilation: int
    ignored_mm3: float
    penalty_mm: float | None
    ignored_mm3_of: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedRules:
    """Rules that match true and predicted components one to one, without dilation.

    Attributes:
        least_iou: Smallest intersection over union of a match; 0 accepts any overlap.
        counted_mm3: A true lesion below this volume is left out of all scores, and so is the predicted component that
            matches it.
        penalty_mm: HD95 in mm of a missed or false lesion. The Dice of such a lesion is 0. `None` leaves missed and
            false lesions out of the means.
        found_dice: A true lesion also counts in `lesions_missed` if the Dice of its match is below `found_dice`. The
            mean scores do not depend on `found_dice`.
    """

    least_iou: float = 0.0
    counted_mm3: float = 0.0
    penalty_mm: float | None = None
    found_dice: float = 0.0


LESION_RULES: dict[str, MergedRules | PairedRules] = {
    "gli2023": MergedRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "ssa2023": MergedRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "ped2023": MergedRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "men2023": MergedRules(dilation=1, ignored_mm3=50, penalty_mm=374.0),
    "met2023": MergedRules(dilation=1, ignored_mm3=2, penalty_mm=374.0),
    "gli2024": MergedRules(dilation=3, ignored_mm3=20, penalty_mm=337.0, ignored_mm3_of={"et": 10}),
    "ped2024": MergedRules(dilation=5, ignored_mm3=10, penalty_mm=374.0),
    "ssa2024": MergedRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "met2024": MergedRules(dilation=1, ignored_mm3=2, penalty_mm=None),
    "men_rt2024": MergedRules(dilation=1, ignored_mm3=50, penalty_mm=None),
    "gli2026": PairedRules(),
    "ped2026": PairedRules(),
    "goat2026": PairedRules(),
    "men2026": PairedRules(),
    "men_rt2026": PairedRules(),
    # The thresholds are those of the organisers: https://github.com/Sage-Bionetworks-Challenges/brats-infra.
    "met2026": PairedRules(counted_mm3=27, penalty_mm=373.0, found_dice=0.2),
    # Panoptica contains this configuration for BraTS.
    "panoptica": PairedRules(least_iou=0.5),
}


def lesion_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    region: str,
    rules: MergedRules | PairedRules,
) -> dict[str, float]:
    """Lesion-wise scores of one region of a case.

    With `MergedRules`, each true lesion is compared with the union of all predicted components that touch the dilated
    lesion. A true lesion without such a component is missed: its Dice is 0, and its HD95 is the penalty. A predicted
    component that touches no dilated lesion is false and has the same scores as a missed lesion. True lesions that are
    too small are ignored, and so are the components that touch them. The mean scores are over all false lesions and
    all true lesions that are not ignored. If there are no lesions of either kind, the mean Dice is 1 and the mean HD95
    is 0.

    With `PairedRules`, each true lesion is matched with at most one predicted component. The pairs are chosen so that
    the sum of their Dice values is as large as possible. If `penalty_mm` is `None`, the mean scores are over the
    matched pairs; if there is no pair, the mean Dice and NSD are 0 and the mean HD95 is infinite. With a penalty, the
    mean scores are over all false lesions and over the true lesions of at least `counted_mm3`; if no true lesion has
    this volume, all mean scores are NaN. Whatever the penalty, all mean scores are NaN if both masks are empty.

    Args:
        prediction: `(D, H, W)` bool.
        target: `(D, H, W)` bool.
        spacing_mm: Voxel size along each axis.
        region: Name of the region.
        rules: Rules that define lesions, matches and means.

    Returns:
        `lesion_dice` and `lesion_hd95_mm`: means over lesions. `lesion_nsd`, only with `PairedRules`: mean of the
        normalised surface distance (NSD) over lesions. For the NSD, a voxel of one surface counts as close if its
        distance to the other surface is at most the shortest edge of a voxel. Each surface has a share of close
        voxels, and the NSD is the mean of these two shares. `lesions`, `lesions_missed`, `lesions_false`: numbers of
        true, missed and false lesions.

    Raises:
        ValueError: If the shapes differ, or the spacing is not three positive numbers.
    """
    check_masks(prediction, target, spacing_mm)
    shape = target.shape
    either = prediction | target
    if either.any():
        box = bounds(either, 1)
        prediction, target = prediction[box], target[box]
    if isinstance(rules, PairedRules):
        return _paired_scores(prediction, target, spacing_mm, rules)
    penalty = missed_distance_mm(rules.penalty_mm, shape, spacing_mm)
    return _merged_scores(prediction, target, spacing_mm, region, rules, penalty)


def _merged_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    spacing_mm: Sequence[float],
    region: str,
    rules: MergedRules,
    penalty: float,
) -> dict[str, float]:
    dilated = ndimage.binary_dilation(target, _EIGHTEEN, iterations=rules.dilation)
    lesions, num_lesions = ndimage.label(dilated, _TWENTY_SIX)
    components, num_components = ndimage.label(prediction, _TWENTY_SIX)
    ignored_voxels = rules.ignored_mm3_of.get(region, rules.ignored_mm3) / math.prod(spacing_mm)
    matched: set[int] = set()
    dices: list[float] = []
    distances: list[float] = []
    missed = 0
    for number in range(1, num_lesions + 1):
        lesion = lesions == number
        own = {int(component) for component in np.unique(components[lesion])} - {0}
        matched |= own
        truth = target & lesion
        if np.count_nonzero(truth) <= ignored_voxels:
            continue
        if not own:
            missed += 1
            dices.append(0.0)
            distances.append(penalty)
            continue
        found = np.isin(components, list(own))
        around = bounds(found | truth, 1)
        dices.append(dice(found[around], truth[around]))
        there, back = surface_distances_mm(found[around], truth[around], spacing_mm)
        distances.append(float(max(np.percentile(there, 95), np.percentile(back, 95))))
    false = num_components - len(matched)
    total = len(dices) + false
    return {
        "lesion_dice": sum(dices) / total if total else 1.0,
        "lesion_hd95_mm": (sum(distances) + false * penalty) / total if total else 0.0,
        "lesions": float(len(dices)),
        "lesions_missed": float(missed),
        "lesions_false": float(false),
    }


def _paired_scores(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], rules: PairedRules
) -> dict[str, float]:
    lesions, num_lesions = ndimage.label(target, _TWENTY_SIX)
    components, num_components = ndimage.label(prediction, _TWENTY_SIX)
    pairs, voxels = _matches(lesions, num_lesions, components, num_components, rules.least_iou)
    counted = voxels * math.prod(spacing_mm) >= rules.counted_mm3
    found: list[tuple[float, float, float]] = []
    for lesion, component in pairs:
        if counted[lesion - 1]:
            truth, match = lesions == lesion, components == component
            around = bounds(truth | match, 0)
            found.append(_pair_scores(match[around], truth[around], spacing_mm))
    num_counted = int(np.count_nonzero(counted))
    false = num_components - len(pairs)
    if rules.penalty_mm is not None:
        # Missed lesions and false ones have a Dice and an NSD of 0.
        others = num_counted - len(found) + false
        scored = [*found, *[(0.0, rules.penalty_mm, 0.0)] * others] if num_counted else []
    elif num_lesions or num_components:
        scored = found or [(0.0, math.inf, 0.0)]
    else:
        scored = []
    means = np.mean(scored, axis=0) if scored else np.full(3, math.nan)
    return {
        "lesion_dice": float(means[0]),
        "lesion_hd95_mm": float(means[1]),
        "lesion_nsd": float(means[2]),
        "lesions": float(num_counted),
        "lesions_missed": float(num_counted - sum(values[0] >= rules.found_dice for values in found)),
        "lesions_false": float(false),
    }


def _matches(
    lesions: np.ndarray, num_lesions: int, components: np.ndarray, num_components: int, least_iou: float
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Match lesions and components one to one.

    Returns:
        The matched pairs, and the number of voxels of each lesion. A pair is the number of a lesion in `lesions` and
        the number of its component in `components`.
    """
    shape = num_lesions + 1, num_components + 1
    places = np.ravel_multi_index((lesions.ravel(), components.ravel()), shape)
    table = np.bincount(places, minlength=math.prod(shape)).reshape(shape)
    voxels, voxels_found, both = table.sum(axis=1)[1:], table.sum(axis=0)[1:], table[1:, 1:]
    sums = voxels[:, None] + voxels_found
    possible = (both > 0) & (both / (sums - both) >= least_iou)
    # The small constant prefers more matches if several choices have the same sum of Dice.
    worth = np.where(possible, 2 * both / sums + 1e-6, 0.0)
    pairs = zip(*optimize.linear_sum_assignment(worth, maximize=True), strict=True)
    return [(int(row) + 1, int(column) + 1) for row, column in pairs if possible[row, column]], voxels


def _pair_scores(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float, float]:
    """Dice, HD95 in mm and NSD of one lesion and its match.

    The HD95 here is the 95th percentile of the distances of both surfaces together. `metrics.region_scores` instead
    computes a 95th percentile for each surface, and takes the larger one.
    """
    there, back = surface_distances_mm(prediction, target, spacing_mm)
    tolerance = min(spacing_mm)
    nsd = (np.mean(there <= tolerance) + np.mean(back <= tolerance)) / 2
    return dice(prediction, target), float(np.percentile(np.concatenate([there, back]), 95)), float(nsd)

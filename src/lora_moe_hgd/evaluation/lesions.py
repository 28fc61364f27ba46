"""Lesion-wise Dice and HD95 of the BraTS challenges since 2023: all lesions count equally, whatever their size.

The rules come from https://github.com/rachitsaluja/BraTS-2023-Metrics, with one exception: surfaces are defined as in
`metrics`, not with sub-voxel accuracy as in https://github.com/google-deepmind/surface-distance.

The rules for 2024 take sizes and penalties from https://github.com/rachitsaluja/BraTS-2024-Metrics, but the procedure
of 2023. So their scores differ from the official ones. The official programs of 2024 also merge predicted lesions by
dilation and remove small ones, count pieces of enhancing tumour that touch the same necrosis as one lesion, and do not
penalise false lesions in MEN-RT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from ..masks import bounds, dice
from .metrics import check_masks, missed_distance_mm, surface_distances_mm

# True lesions are dilated with 18 neighbours; components are connected through 26.
_EIGHTEEN = ndimage.generate_binary_structure(3, 2)
_TWENTY_SIX = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class LesionRules:
    """Definition of a lesion, and the penalty of missed and false lesions.

    Attributes:
        dilation: Number of dilations of the true region. Parts that touch afterwards are one lesion.
        ignored_mm3: True lesions of this volume or less are ignored.
        penalty_mm: HD95 of a missed or false lesion; `None` for the diagonal of the image.
        ignored_mm3_of: `ignored_mm3` for the regions where it differs.
    """

    dilation: int
    ignored_mm3: float
    penalty_mm: float | None
    ignored_mm3_of: Mapping[str, float] = field(default_factory=dict)


LESION_RULES: dict[str, LesionRules] = {
    "gli2023": LesionRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "ssa2023": LesionRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "ped2023": LesionRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "men2023": LesionRules(dilation=1, ignored_mm3=50, penalty_mm=374.0),
    "met2023": LesionRules(dilation=1, ignored_mm3=2, penalty_mm=374.0),
    "gli2024": LesionRules(dilation=3, ignored_mm3=20, penalty_mm=337.0, ignored_mm3_of={"et": 10}),
    "ped2024": LesionRules(dilation=5, ignored_mm3=10, penalty_mm=374.0),
    "ssa2024": LesionRules(dilation=3, ignored_mm3=50, penalty_mm=374.0),
    "met2024": LesionRules(dilation=1, ignored_mm3=2, penalty_mm=None),
    "men_rt2024": LesionRules(dilation=1, ignored_mm3=50, penalty_mm=None),
}


def lesion_scores(
    prediction: np.ndarray, target: np.ndarray, *, spacing_mm: Sequence[float], region: str, rules: LesionRules
) -> dict[str, float]:
    """Lesion-wise scores of one region of a case.

    All predicted components that touch a dilated true lesion are compared with it together. A true lesion without a
    component is missed (Dice 0 and the penalty). A predicted component that touches no true lesion is false and gets
    the same scores. True lesions that are too small are ignored, and so are the components that touch them.

    Args:
        prediction: `(D, H, W)` bool.
        target: `(D, H, W)` bool.
        spacing_mm: Voxel size along each axis.
        region: Name of the region.
        rules: Definition of a lesion.

    Returns:
        `lesion_dice` and `lesion_hd95_mm`: means over true lesions (without ignored ones) and false lesions; 1 and 0
        if there are no lesions at all. `lesions`, `lesions_missed`, `lesions_false`: numbers of lesions.

    Raises:
        ValueError: If the shapes differ, or the spacing is not three positive numbers.
    """
    check_masks(prediction, target, spacing_mm)
    penalty = missed_distance_mm(rules.penalty_mm, target.shape, spacing_mm)
    either = prediction | target
    if either.any():
        box = bounds(either, 1)
        prediction, target = prediction[box], target[box]
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

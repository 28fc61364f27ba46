"""Scores of a predicted region against the true region, such as Dice and HD95, with conventions for empty regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from ..masks import bounds

METRICS = ("dice", "hd95_mm", "nsd", "sensitivity", "volume_error_ml")

# Tolerance of the normalised surface distance.
NSD_TOLERANCE_MM = 1.0

MEANINGS = {
    "hd95_mm": "95th percentile of the surface distances (HD95) in mm; lower is better",
    "nsd": f"share of the surfaces within {NSD_TOLERANCE_MM:g} mm of each other (NSD); higher is better",
    "sensitivity": "share of the true voxels that were predicted; higher is better",
    "volume_error_ml": "predicted minus true volume in mL; 0 is best, but errors may cancel",
    "lesion_dice": "mean Dice over lesions; higher is better",
    "lesion_hd95_mm": "mean HD95 over lesions in mm; lower is better",
    "lesion_nsd": "mean NSD over lesions, with the shortest voxel edge as tolerance; higher is better",
    "lesions": "number of true lesions",
    "lesions_missed": "number of true lesions that were missed; lower is better",
    "lesions_false": "number of predicted lesions that are not true; lower is better",
    "true_volume_ml": "true volume in mL",
}
"""Meaning and unit of each score besides Dice, and which values are better."""


@dataclass(frozen=True)
class Convention:
    """Values of metrics that are undefined because a mask is empty.

    Attributes:
        both_empty: Value of Dice, NSD and sensitivity if both masks are empty. If this value is NaN, HD95 is NaN as
            well. Otherwise, HD95 is 0.
        missed_hd95_mm: HD95 in mm if only one mask is empty. With `None`, it is the length of the image's diagonal.
        eps: Number that is added to numerator and denominator of Dice.
        fewest_voxels: Smallest number of voxels of a predicted region, by name of the region. A smaller predicted
            region counts as empty.
    """

    both_empty: float = 1.0
    missed_hd95_mm: float | None = None
    eps: float = 0.0
    fewest_voxels: Mapping[str, int] = field(default_factory=dict)


# The diagonal of 240 x 240 x 155 voxels of 1 mm, as in the BraTS challenges up to 2022.
_BRATS_DIAGONAL_MM = 373.128664

CONVENTIONS: dict[str, Convention] = {
    "brats": Convention(missed_hd95_mm=_BRATS_DIAGONAL_MM),
    "nan": Convention(both_empty=math.nan, missed_hd95_mm=math.nan),
    "worst": Convention(),
    # Convention of RFNet (https://github.com/dyh127/RFNet) and of papers that compare with its table of 15 subsets.
    "rfnet": Convention(missed_hd95_mm=_BRATS_DIAGONAL_MM, eps=1e-8, fewest_voxels={"et": 500}),
}


def region_scores(
    prediction: np.ndarray, target: np.ndarray, *, spacing_mm: Sequence[float], region: str, convention: Convention
) -> dict[str, float]:
    """Compute the `METRICS` of one region of a case.

    As in MONAI, a surface consists of the voxels that erosion with six neighbours removes.

    Args:
        prediction: `(D, H, W)` bool.
        target: `(D, H, W)` bool.
        spacing_mm: Voxel size along each axis.
        region: Name of the region.
        convention: Values of undefined metrics.

    Returns:
        `dice`: Dice coefficient. `hd95_mm`: 95th percentile of the distances from the voxels of one surface to the
        other surface. It is computed from both surfaces, and the larger percentile counts. `nsd`: normalised surface
        distance (https://arxiv.org/abs/1809.04430), the share of the voxels of both surfaces whose distance to the
        other surface is at most 1 mm. `sensitivity`: share of the true voxels that were predicted. `volume_error_ml`:
        predicted volume minus true volume.

    Raises:
        ValueError: If the shapes differ, or the spacing is not three positive numbers.
    """
    check_masks(prediction, target, spacing_mm)
    if np.count_nonzero(prediction) < convention.fewest_voxels.get(region, 0):
        prediction = np.zeros_like(prediction)
    num_predicted, num_true = int(np.count_nonzero(prediction)), int(np.count_nonzero(target))
    volume_error = (num_predicted - num_true) * math.prod(spacing_mm) / 1000
    if not num_predicted and not num_true:
        undefined = convention.both_empty
        hd95 = math.nan if math.isnan(undefined) else 0.0
        return dict(zip(METRICS, (undefined, hd95, undefined, undefined, volume_error), strict=True))
    if not num_predicted or not num_true:
        overlap = convention.eps / (num_predicted + num_true + convention.eps)
        hd95 = missed_distance_mm(convention.missed_hd95_mm, target.shape, spacing_mm)
        # Without a true region, sensitivity is undefined: NaN if the convention uses NaN, otherwise 0.
        sensitivity = 0.0 if num_true else 0.0 * convention.both_empty
        return dict(zip(METRICS, (overlap, hd95, 0.0, sensitivity, volume_error), strict=True))
    box = bounds(prediction | target, 1)
    prediction, target = np.asarray(prediction[box], dtype=bool), np.asarray(target[box], dtype=bool)
    both = int(np.count_nonzero(prediction & target))
    there, back = surface_distances_mm(prediction, target, spacing_mm)
    close = np.count_nonzero(there <= NSD_TOLERANCE_MM) + np.count_nonzero(back <= NSD_TOLERANCE_MM)
    return {
        "dice": (2 * both + convention.eps) / (num_predicted + num_true + convention.eps),
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "nsd": float(close / (len(there) + len(back))),
        "sensitivity": both / num_true,
        "volume_error_ml": volume_error,
    }


def surface_distances_mm(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm between the surfaces of two masks, neither of which may be empty.

    Returns:
        Distance of each surface voxel of the prediction to the surface of the target. Distance of each surface voxel
        of the target to the surface of the prediction.
    """
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, target)]
    to_prediction, to_target = (ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces)
    return to_target[surfaces[0]], to_prediction[surfaces[1]]


def check_masks(prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Refuse masks of different shapes and an invalid spacing.

    Raises:
        ValueError: If the shapes differ, or the spacing is not three positive numbers.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"Both masks must have the same shape, got {prediction.shape} and {target.shape}.")
    if len(spacing_mm) != 3 or not all(0 < edge < math.inf for edge in spacing_mm):
        raise ValueError(f"`spacing_mm` must be three positive numbers, got {tuple(spacing_mm)}.")


def missed_distance_mm(penalty_mm: float | None, shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Return the HD95 of a missed or false region: `penalty_mm` or, if this is `None`, the image's diagonal in mm."""
    if penalty_mm is not None:
        return penalty_mm
    return math.hypot(*(edge * spacing for edge, spacing in zip(shape, spacing_mm, strict=True)))

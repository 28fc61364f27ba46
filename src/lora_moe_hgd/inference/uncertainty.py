"""Uncertainty of a segmentation: by voxel, and by case."""

from __future__ import annotations

import numpy as np


def voxel_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in bits of what a voxel is: outside, oedema, core without enhancement, or enhancing; `(D, H, W)`.

    Args:
        probabilities: Of the nested regions WT, TC and ET, `(3, D, H, W)`, each at most the one before.

    Example:
        >>> voxel_entropy(np.array([[0.5, 1.0], [0.0, 0.5], [0.0, 0.25]]))
        array([1. , 1.5])
    """
    outside, inside = np.ones_like(probabilities[:1]), np.zeros_like(probabilities[:1])
    nested = np.concatenate([outside, probabilities, inside])
    classes = nested[:-1] - nested[1:]
    logarithms = np.log2(classes, out=np.zeros_like(classes), where=classes > 0)
    return -(classes * logarithms).sum(axis=0) + 0.0


def expected_dice(probabilities: np.ndarray, regions: np.ndarray) -> list[float]:
    """Dice that the probabilities themselves promise of each region: `2 sum(p [found]) / (sum(p) + sum([found]))`.

    Dice of the found region with the soft one. It is 1 where no probability lies between 0 and 1 and nothing was left
    out, also for a region that is absent throughout.

    Args:
        probabilities: `(R, D, H, W)` in [0, 1].
        regions: What was found, `(R, D, H, W)` bool.

    Example:
        >>> probabilities = np.array([[1.0, 1.0, 0.0], [0.75, 0.25, 0.0]])
        >>> expected_dice(probabilities, probabilities > 0.5)
        [1.0, 0.75]
    """
    flat = probabilities.reshape(len(probabilities), -1).astype(np.float64)
    chosen = regions.reshape(flat.shape)
    total = flat.sum(axis=1) + chosen.sum(axis=1)
    overlap = 2 * (flat * chosen).sum(axis=1)
    return [float(over / both) if both else 1.0 for over, both in zip(overlap, total, strict=True)]

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

"""Uncertainty of a segmentation per voxel."""

from __future__ import annotations

import numpy as np


def voxel_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in bits of the class of each voxel, `(D, H, W)`. Classes: outside, oedema, non-enhancing core, ET.

    Args:
        probabilities: Probabilities of WT, TC and ET, `(3, D, H, W)`. Each is at most the probability before it.

    Example:
        >>> voxel_entropy(np.array([[0.5, 1.0], [0.0, 0.5], [0.0, 0.25]]))
        array([1. , 1.5])
    """
    outside, inside = np.ones_like(probabilities[:1]), np.zeros_like(probabilities[:1])
    nested = np.concatenate([outside, probabilities, inside])
    classes = nested[:-1] - nested[1:]
    logarithms = np.log2(classes, out=np.zeros_like(classes), where=classes > 0)
    return -(classes * logarithms).sum(axis=0) + 0.0

"""Overlap of two masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def dice(prediction: ArrayLike, target: ArrayLike) -> float:
    """Dice coefficient of two masks of one shape; two empty masks agree, so they score 1.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
        0.6666666666666666
    """
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"Both masks must have one shape, got {prediction.shape} and {target.shape}.")
    total = int(prediction.sum()) + int(target.sum())
    return 2 * int((prediction & target).sum()) / total if total else 1.0

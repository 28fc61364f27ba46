"""Dice coefficient, largest connected component and bounding box of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage


def dice(prediction: ArrayLike, target: ArrayLike) -> float:
    """Dice coefficient of two masks of the same shape. Two empty masks agree, so their Dice is 1.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> dice([1, 1, 0, 0], [1, 0, 0, 0])
        0.6666666666666666
    """
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"Both masks must have the same shape, got {prediction.shape} and {target.shape}.")
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(target))
    return 2 * int(np.count_nonzero(prediction & target)) / total if total else 1.0


def largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask. Voxels are connected if they share a face.

    Example:
        >>> largest_part(np.array([True, False, True, True])).tolist()
        [False, False, True, True]
    """
    # Label only the box around the mask, because the array of part numbers takes several times the memory of a mask.
    box = bounds(mask, 0)
    parts, count = ndimage.label(mask[box])
    if count <= 1:
        return mask
    found = np.zeros_like(mask)
    found[box] = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return found


def bounds(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Bounding box of `mask`, enlarged by `margin` voxels on each side. For an empty mask, the box is the full array.

    Example:
        >>> bounds(np.array([False, False, True, True, False]), 1)
        (slice(1, 5, None),)
    """
    box = []
    for axis, edge in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(found):
            return tuple(slice(0, edge) for edge in mask.shape)
        box.append(slice(max(int(found[0]) - margin, 0), min(int(found[-1]) + 1 + margin, edge)))
    return tuple(box)

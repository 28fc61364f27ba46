"""Uncertainty of a segmentation per voxel."""

from __future__ import annotations

import numpy as np

from ..model.task import BRAIN_TUMOUR, Task


def voxel_entropy(probabilities: np.ndarray, task: Task = BRAIN_TUMOUR) -> np.ndarray:
    """Entropy of the class probabilities of each voxel, in bits, `(D, H, W)`.

    For brain tumours, the classes are background, oedema, non-enhancing core and ET. If neither of two regions
    contains the other, they are assumed to be statistically independent inside the regions that contain both.

    Args:
        probabilities: Probabilities of the regions, `(R, D, H, W)`. A region must not have a higher probability than a
            region that contains it.
        task: Task that defines the regions, and which regions contain others.

    Example:
        The probabilities of WT, TC and ET in two voxels:

        >>> voxel_entropy(np.array([[0.5, 1.0], [0.0, 0.5], [0.0, 0.25]]))
        array([1. , 1.5])
    """
    parents = [around[-1] if around else None for around in task.around]
    total = np.zeros_like(probabilities[0])
    for number in range(len(parents)):
        children = parents.count(number)
        # The entropy of a chain includes that of its outer regions, which several chains share. Count it only once.
        if children != 1:
            total = total + (1 - children) * _chain_entropy(probabilities[_chain(number, parents)])
    return total


def _chain(number: int | None, parents: list[int | None]) -> list[int]:
    """Indices of a region and of all regions that contain it, outermost first."""
    return [] if number is None else [*_chain(parents[number], parents), number]


def _chain_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of the class probabilities of each voxel, in bits. Each region must contain the next region."""
    outside, inside = np.ones_like(probabilities[:1]), np.zeros_like(probabilities[:1])
    nested = np.concatenate([outside, probabilities, inside])
    classes = nested[:-1] - nested[1:]
    logarithms = np.log2(classes, out=np.zeros_like(classes), where=classes > 0)
    return -(classes * logarithms).sum(axis=0) + 0.0

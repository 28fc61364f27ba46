"""Uncertainty of a segmentation per voxel."""

from __future__ import annotations

import numpy as np

from ..model.task import BRAIN_TUMOUR, Task


def voxel_entropy(probabilities: np.ndarray, task: Task = BRAIN_TUMOUR) -> np.ndarray:
    """Entropy in bits of what a voxel is, `(D, H, W)`.

    Of a tumour that is outside, oedema, core without enhancement, or enhancing.

    Regions that are not nested in each other are taken as independent, within the region around them if there is one.

    Args:
        probabilities: Of the regions, `(R, D, H, W)`, each at most those of the regions around it.
        task: What the regions are.

    Example:
        >>> voxel_entropy(np.array([[0.5, 1.0], [0.0, 0.5], [0.0, 0.25]]))
        array([1. , 1.5])
    """
    parents = [around[-1] if around else None for around in task.around]
    total = np.zeros_like(probabilities[0])
    for number in range(len(parents)):
        children = parents.count(number)
        # The entropy of a chain includes those of the regions in it, which must not count once for each chain.
        if children != 1:
            total = total + (1 - children) * _chain_entropy(probabilities[_chain(number, parents)])
    return total


def _chain(number: int | None, parents: list[int | None]) -> list[int]:
    """The region with those around it, the outermost first."""
    return [] if number is None else [*_chain(parents[number], parents), number]


def _chain_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of the place of a voxel among nested regions."""
    outside, inside = np.ones_like(probabilities[:1]), np.zeros_like(probabilities[:1])
    nested = np.concatenate([outside, probabilities, inside])
    classes = nested[:-1] - nested[1:]
    logarithms = np.log2(classes, out=np.zeros_like(classes), where=classes > 0)
    return -(classes * logarithms).sum(axis=0) + 0.0

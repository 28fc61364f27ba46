"""Connected parts of a mask, in NumPy: the hub folder needs no SciPy.

The voxels of a mask are taken together as runs along the last axis, and the runs that touch are joined. Masks have few
runs, so this takes about as long as SciPy's labelling of all voxels.
"""

from __future__ import annotations

import numpy as np


def largest_parts(mask: np.ndarray, least_part: float) -> np.ndarray:
    """Without the parts, joined by faces, edges or corners, that are smaller than a share of the largest part.

    Args:
        mask: `(D, H, W)` bool.
        least_part: Share of the voxels of the largest part, in [0, 1].

    Example:
        >>> mask = np.array([[[True, True, False, False, True]]])
        >>> largest_parts(mask, 0.6).tolist()
        [[[True, True, False, False, False]]]
    """
    line, start, end = _runs(mask)
    if len(line) == 0:
        return mask.copy()
    part = _roots(len(line), *_touching(line, start, end, mask.shape))
    # Sums of whole numbers far below 2^53 are exact.
    sizes = np.bincount(part, weights=end - start)
    kept = sizes[part] >= least_part * sizes.max()
    found = np.zeros(mask.shape, dtype=bool)
    # Voxels of a mask are listed in the order of its runs.
    found[mask] = np.repeat(kept, end - start)
    return found


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Line (first two axes, flattened), first voxel and end along the last axis of each run, in order."""
    lines = mask.reshape(-1, mask.shape[-1])
    first, last = lines.copy(), lines.copy()
    first[:, 1:] &= ~lines[:, :-1]
    last[:, :-1] &= ~lines[:, 1:]
    line, start = np.nonzero(first)
    return line, start, np.nonzero(last)[1] + 1


def _touching(
    line: np.ndarray, start: np.ndarray, end: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs that share a face, an edge or a corner, each pair once."""
    _, height, width = shape
    # Empty lines and voxels around the volume, so that no neighbour is one of the opposite side.
    stride = width + 2
    at = (line // height * (height + 2) + line % height + 1) * stride
    starts, ends = at + start, at + end
    one, other = [], []
    for lines in (1, height + 1, height + 2, height + 3):
        # Runs of the neighbouring line that begin not behind the end and end not before the beginning.
        low = np.searchsorted(ends, starts + lines * stride, side="left")
        high = np.searchsorted(starts, ends + lines * stride, side="right")
        count = high - low
        one.append(np.repeat(np.arange(len(line)), count))
        other.append(np.arange(count.sum()) + np.repeat(low - (np.cumsum(count) - count), count))
    return np.concatenate(one), np.concatenate(other)


def _roots(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each of `count` runs the number of a run that stands for its part, from the pairs that touch."""
    root = np.arange(count)
    while len(one):
        # Of two parts that touch, the one with the larger number joins one with a smaller number: there is no circle.
        root[np.maximum(one, other)] = np.minimum(one, other)
        while not np.array_equal(root, above := root[root]):
            root = above
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return root

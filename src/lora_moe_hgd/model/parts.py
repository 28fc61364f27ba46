"""Connected parts of a mask, in NumPy, so that the code on the Hub needs no SciPy.

The voxels of a mask are grouped into runs along the last axis, and runs that touch are joined. A mask has few runs, so
the algorithm takes about as long as SciPy's labelling of all voxels.
"""

from __future__ import annotations

import numpy as np


def largest_parts(mask: np.ndarray, least_part: float) -> np.ndarray:
    """Remove connected parts of a mask that are smaller than a share of the largest part.

    Voxels that share a face, an edge or a corner are connected.

    Args:
        mask: Mask `(D, H, W)` bool.
        least_part: Smallest size of a part that is not removed, as a share of the largest part, in [0, 1].

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
    """For each run in voxel order: its line (index over the first two axes), first voxel, and last voxel plus one."""
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
    # Pad the volume with empty lines and voxels, so that no voxel is a neighbour of one on the opposite side.
    stride = width + 2
    at = (line // height * (height + 2) + line % height + 1) * stride
    starts, ends = at + start, at + end
    one, other = [], []
    for lines in (1, height + 1, height + 2, height + 3):
        # Two runs of neighbouring lines touch if neither begins more than one voxel behind the last voxel of the
        # other.
        low = np.searchsorted(ends, starts + lines * stride, side="left")
        high = np.searchsorted(starts, ends + lines * stride, side="right")
        count = high - low
        one.append(np.repeat(np.arange(len(line)), count))
        other.append(np.arange(count.sum()) + np.repeat(low - (np.cumsum(count) - count), count))
    return np.concatenate(one), np.concatenate(other)


def _roots(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each of `count` runs, the lowest index of all runs that belong to the same part.

    `one` and `other` hold indices of runs: the runs `one[i]` and `other[i]` touch.
    """
    root = np.arange(count)
    while len(one):
        # Of two parts that touch, the part with the larger number joins the other one, so there is no cycle.
        root[np.maximum(one, other)] = np.minimum(one, other)
        while not np.array_equal(root, above := root[root]):
            root = above
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return root

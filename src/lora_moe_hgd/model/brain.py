"""Separate brain and background; detect constant backgrounds, noise around brains, skulls, and partial brains."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import numpy as np

from .geometry import canonical_spacing_mm, close_gaps, to_canonical

# Brains of 24 cases of BraTS-Africa and 3 of open-ms take 1.1 to 1.9 litres.
LEAST_BRAIN_LITRES = 0.5
# After filling, six raw heads have 2.4 to 3.3 litres, and at least 1.27 times the volume of the ellipsoid with their
# extents, because the field of view cuts them off below. Brains have at most 1.21 times that volume.
HEAD_LITRES, HEAD_FILL = 2.2, 1.25
# Cropped to a height of 110 mm, these heads have at least 2.03 litres, of which at least 9 % are bone and air. Brains
# of BraTS-Africa, of open-ms and of phantoms have at most 3 % of gaps.
CUT_HEAD_LITRES, HEAD_GAPS = 1.95, 0.06
# A mask with a larger volume is a head, whatever its shape.
LARGEST_BRAIN_LITRES = 2.8
# A mask below both limits is a brain, so the slower checks for a head are skipped.
SMALL_LITRES, SMALL_EXTENTS_MM2 = 1.9, 24_000.0
COARSE_MM = 4.0
# A smaller constant region (as a share of the volume, or in voxels) is not a background.
LEAST_FILL, LEAST_FILL_VOXELS = 0.001, 64
# Noise around a brain is darker than the share `DARK` of bright tissue, and has at least the share `LEAST_RIM` of all
# foreground voxels.
DARK = 0.2
LEAST_RIM = 0.2


def brain_of(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Mask of the voxels where at least one sequence is not zero. `arrays` must contain at least one sequence."""
    # Combine the masks in place, because a case may have 10^8 voxels.
    return functools.reduce(operator.ior, (array != 0 for array in arrays))


def spread_of(values: np.ndarray) -> float:
    """Median absolute deviation from the median; 0 if more than half of the values are equal."""
    return float(np.median(np.abs(values - np.median(values))))


def constant_fills(array: np.ndarray) -> dict[float, np.ndarray]:
    """Find regions of one non-zero value that reach a corner of the volume; return a mask `(D, H, W)` per value.

    Registration and normalisation may fill the background with a non-zero constant: -1000, 1, the mean of the image,
    or the z-score that an intensity of zero gets.
    """
    corners = np.zeros(array.shape, dtype=bool)
    corners[:: array.shape[0] - 1 or 1, :: array.shape[1] - 1 or 1, :: array.shape[2] - 1 or 1] = True
    least = max(LEAST_FILL * array.size, LEAST_FILL_VOXELS)
    fills = {}
    for value in np.unique(array[corners]):
        equal = array == value
        if value == 0 or np.count_nonzero(equal) < least:
            continue
        region = flood(corners & equal, equal)
        # A region brighter than the brain is saturated tissue in a corner, not background.
        if value > np.percentile(array[~equal], 99):
            continue
        if np.count_nonzero(region) >= least:
            fills[float(value)] = region
    return fills


def dark_rim(array: np.ndarray) -> np.ndarray | None:
    """Mask of the dark, non-zero background around a stripped brain, `(D, H, W)`; `None` if it is small or missing.

    A stripped image should be zero there. This noise has two sources. Brain extraction with a wide margin leaves a rim
    of noise around the brain. Resampling with ringing fills the complete background with noise.
    """
    foreground = array != 0
    if np.count_nonzero(array < 0) > 0.25 * np.count_nonzero(foreground):
        # In a normalised image, voxels near zero are not dark.
        return None
    dark = foreground & (np.abs(array) < DARK * np.percentile(array[foreground], 90))
    if np.count_nonzero(dark) < LEAST_RIM * np.count_nonzero(foreground):
        return None
    rim = flood(_border(array.shape) | ~foreground, dark | ~foreground) & dark
    return rim if np.count_nonzero(rim) >= LEAST_RIM * np.count_nonzero(foreground) else None


def head_litres(brain: np.ndarray, affine: np.ndarray) -> float:
    """Volume in litres of a head with its skull, including its cavities; 0 if the mask shows a brain without skull."""
    canonical, spacing_mm = to_canonical(brain, affine), canonical_spacing_mm(affine)
    voxel_litres = float(np.prod(spacing_mm)) / 1e6
    extents_mm = [
        _extent(canonical.sum(axis=others)) * edge
        for others, edge in zip(((1, 2), (0, 2), (0, 1)), spacing_mm, strict=True)
    ]
    litres = np.count_nonzero(canonical) * voxel_litres
    if litres < SMALL_LITRES and extents_mm[0] * extents_mm[1] < SMALL_EXTENTS_MM2:
        return 0.0
    # A coarse grid is accurate enough for volumes, and much faster.
    steps = [max(1, int(COARSE_MM / edge)) for edge in spacing_mm]
    coarse_mm = (spacing_mm[0] * steps[0], spacing_mm[1] * steps[1], spacing_mm[2] * steps[2])
    closed = close_gaps(canonical[:: steps[0], :: steps[1], :: steps[2]], coarse_mm)
    # Fill the head from the sides only: where the field of view cuts the head, air inside it is open above and below.
    beside = np.zeros(closed.shape, dtype=bool)
    beside[[0, -1]] = True
    beside[:, [0, -1]] = True
    filled_litres = np.count_nonzero(~flood(beside, ~closed)) * float(np.prod(coarse_mm)) / 1e6
    ellipsoid_litres = np.pi / 6 * float(np.prod(extents_mm)) / 1e6
    has_gaps = litres < (1 - HEAD_GAPS) * filled_litres
    is_large = filled_litres > HEAD_LITRES or (filled_litres > CUT_HEAD_LITRES and has_gaps)
    is_head = is_large and filled_litres > HEAD_FILL * ellipsoid_litres
    return filled_litres if is_head or filled_litres > LARGEST_BRAIN_LITRES else 0.0


def cut_off_share(brain: np.ndarray) -> float:
    """Return how much brain the field of view cuts off: 0 for none, 1 for a cut through the brain's largest section.

    For each face of the volume, the brain area on this face is divided by the largest area of a brain section parallel
    to this face. The result is the maximum of the six faces.
    """
    shares = []
    for axis in range(3):
        planes = brain.sum(axis=tuple(other for other in range(3) if other != axis))
        shares.append(max(planes[0], planes[-1]) / max(planes.max(), 1))
    return float(max(shares))


def flood(start: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Mask `(D, H, W)` of the voxels in `allowed` that are connected with voxels in `start` through shared faces."""
    found = start & allowed
    count = -1
    while count != (count := int(np.count_nonzero(found))):
        for axis in range(3):
            reached, open_ = np.moveaxis(found, axis, 0), np.moveaxis(allowed, axis, 0)
            for index in range(1, len(reached)):
                reached[index] |= reached[index - 1] & open_[index]
            for index in range(len(reached) - 2, -1, -1):
                reached[index] |= reached[index + 1] & open_[index]
    return found


def _border(shape: tuple[int, ...]) -> np.ndarray:
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    return border


def _extent(counts: np.ndarray) -> int:
    """Length of a mask along one axis, in planes, without the outermost 0.2 % of the mask's voxels at each end.

    `counts` holds the number of mask voxels in each plane.
    """
    shares = np.cumsum(counts) / max(counts.sum(), 1)
    return int(np.count_nonzero((shares > 0.002) & (shares < 0.998)))

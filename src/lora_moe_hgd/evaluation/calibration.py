"""Calibration: how well probabilities agree with the ground truth."""

from __future__ import annotations

import numpy as np

NUM_BINS = 10


def reliability_counts(probabilities: np.ndarray, truth: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Count the voxels of the brain for a reliability diagram.

    Args:
        probabilities: `(R, D, H, W)` in [0, 1].
        truth: `(R, D, H, W)` bool.
        brain: `(D, H, W)` bool.

    Returns:
        `(R, 3, NUM_BINS)` for `R` regions. The three values of a region and a bin are the number of voxels whose
        probability is in the bin, the sum of their probabilities, and the number of those voxels that are in the true
        region. All bins have the same width.
    """
    counts = []
    for probability, region in zip(probabilities[:, brain], truth[:, brain], strict=True):
        place = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
        weights = (None, probability, region)
        counts.append([np.bincount(place, weights=weight, minlength=NUM_BINS) for weight in weights])
    return np.array(counts, dtype=np.float64)


def average_calibration_error(counts: np.ndarray) -> float:
    """Average calibration error (ACE): mean over the bins of |mean probability - share of voxels in the true region|.

    Each bin that contains voxels has the same weight in this mean (Barfoot et al. 2024,
    https://arxiv.org/abs/2403.06759). The ACE is therefore the mean vertical distance of the points in a reliability
    diagram from the diagonal. The expected calibration error (ECE) would weight each bin by its number of voxels. In a
    brain, nearly all voxels have a probability near 0, so these voxels alone would determine the ECE.

    Args:
        counts: Counts of one region from `reliability_counts`, `(3, NUM_BINS)`.

    Example:
        >>> counts = np.zeros((3, NUM_BINS))
        >>> counts[:, 0] = 1000, 0, 0  # 1000 voxels with probability 0, of which none belongs to the region
        >>> counts[:, 9] = 4, 4, 3  # 4 voxels with probability 1, of which 3 belong to the region
        >>> average_calibration_error(counts)
        0.125
    """
    voxels, probability, true = counts[:, counts[0] > 0]
    return float(np.mean(np.abs(probability - true) / voxels))

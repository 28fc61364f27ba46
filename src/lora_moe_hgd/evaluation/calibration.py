"""Calibration: how well probabilities agree with the ground truth."""

from __future__ import annotations

import numpy as np

NUM_BINS = 10


def reliability_counts(probabilities: np.ndarray, truth: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Counts for a reliability diagram, summed over the voxels of the brain.

    Args:
        probabilities: `(R, D, H, W)` in [0, 1].
        truth: `(R, D, H, W)` bool.
        brain: `(D, H, W)` bool.

    Returns:
        `(R, 3, NUM_BINS)`: for each bin of the probability, the number of voxels, the sum of their probabilities, and
        the number of voxels that truly belong to the region. Bins have equal width.
    """
    counts = []
    for probability, region in zip(probabilities[:, brain], truth[:, brain], strict=True):
        place = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
        weights = (None, probability, region)
        counts.append([np.bincount(place, weights=weight, minlength=NUM_BINS) for weight in weights])
    return np.array(counts, dtype=np.float64)


def expected_calibration_error(counts: np.ndarray) -> float:
    """Expected calibration error: mean over the bins of |mean probability - share of true voxels|.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. Bins are weighted by their number of voxels.

    Args:
        counts: Counts of one region from `reliability_counts`, `(3, NUM_BINS)`.

    Example:
        >>> sure_and_right_three_times_in_four = np.zeros((3, NUM_BINS))
        >>> sure_and_right_three_times_in_four[:, -1] = 4, 4, 3
        >>> expected_calibration_error(sure_and_right_three_times_in_four)
        0.25
    """
    voxels, probability, true = counts
    return float(np.abs(probability - true).sum() / voxels.sum())

"""Schedules of a run, as pure functions of its progress from 0 to 1.

The curriculum begins with the first region of the task and adds the other regions in their order: whole tumour, tumour
core, enhancing tumour. At first, samples lose at most one sequence. Later, samples may lose all sequences but one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Progress at which the loss weight of the second region begins to rise, and at which it reaches 1. For each further
# region, both are later by `LATER`. The weight of the first region is always 1.
SECOND_RAMP = (0.0, 0.15)
LATER = (0.05, 0.1)
FIRST_WEIGHT = 0.1

# Up to the first value of progress, at most one sequence is dropped. Up to the second, at most two.
ONE_DROPPED_UNTIL = 0.05
TWO_DROPPED_UNTIL = 0.15

# Share of the samples that keep all sequences.
COMPLETE_SHARE = 0.2


def ramp(progress: float, start: float, end: float) -> float:
    """Value of a smooth step at `progress`: 0 up to `start`, 1 from `end` on.

    Example:
        >>> [ramp(progress, 0.2, 0.4) for progress in (0.0, 0.3, 1.0)]
        [0.0, 0.5, 1.0]
    """
    position = min(max((progress - start) / (end - start), 0.0), 1.0)
    return round(position * position * (3 - 2 * position), 12)


def region_weights(progress: float, regions: int = 3) -> tuple[float, ...]:
    """Weight of each region in the loss, in the order of the regions of the task."""
    weights = [1.0]
    for place in range(regions - 1):
        start, end = (first + place * later for first, later in zip(SECOND_RAMP, LATER, strict=True))
        weights.append(FIRST_WEIGHT + (1 - FIRST_WEIGHT) * ramp(progress, start, end))
    return tuple(weights)


def most_dropped(progress: float, sequences: int = 4) -> int:
    """Largest number of sequences that a sample may lose at this progress."""
    if progress < ONE_DROPPED_UNTIL:
        return 1
    return 2 if progress < TWO_DROPPED_UNTIL else sequences - 1


def draw_subset(acquired: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """Choose which of the acquired sequences a training sample keeps, `(M,)` bool.

    The share `COMPLETE_SHARE` of the samples keeps all acquired sequences. Each other sample keeps a non-empty subset,
    in which at most `most_dropped` sequences are missing. All subsets within this limit are equally likely.
    """
    if torch.rand((), generator=generator).item() < COMPLETE_SHARE:
        return acquired.clone()
    present = torch.where(acquired)[0].tolist()
    subsets = [
        [modality for bit, modality in enumerate(present) if code >> bit & 1] for code in range(1, 2 ** len(present))
    ]
    allowed = [subset for subset in subsets if len(present) - len(subset) <= most_dropped(progress, len(acquired))]
    chosen = allowed[int(torch.randint(len(allowed), (), generator=generator))]
    kept = torch.zeros_like(acquired)
    kept[chosen] = True
    return kept


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise over the first share `warmup` of a run, then half a cosine to zero.

    Example:
        >>> [round(learning_rate_factor(progress, warmup=0.1), 3) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

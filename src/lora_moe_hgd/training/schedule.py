"""Schedules of a run, as pure functions of its progress from 0 to 1.

The curriculum begins with the whole tumour and adds the core and the enhancing part. It begins with nearly complete
cases and ends with all subsets of the sequences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Progress at which the loss weight of a region begins to rise, and at which it reaches 1. The weight of the whole
# tumour is always 1.
TUMOUR_CORE_RAMP = (0.0, 0.15)
ENHANCING_RAMP = (0.05, 0.25)
FIRST_WEIGHT = 0.1

# Up to the first value of progress, at most one sequence is dropped. Up to the second, at most two.
ONE_DROPPED_UNTIL = 0.05
TWO_DROPPED_UNTIL = 0.15

# Share of the samples that keep all sequences.
COMPLETE_SHARE = 0.2


def ramp(progress: float, start: float, end: float) -> float:
    """Smooth step from 0 at `start` to 1 at `end`.

    Example:
        >>> [ramp(progress, 0.2, 0.4) for progress in (0.0, 0.3, 1.0)]
        [0.0, 0.5, 1.0]
    """
    position = min(max((progress - start) / (end - start), 0.0), 1.0)
    return round(position * position * (3 - 2 * position), 12)


def region_weights(progress: float) -> tuple[float, float, float]:
    """Weights of WT, TC and ET in the loss."""
    core = FIRST_WEIGHT + (1 - FIRST_WEIGHT) * ramp(progress, *TUMOUR_CORE_RAMP)
    enhancing = FIRST_WEIGHT + (1 - FIRST_WEIGHT) * ramp(progress, *ENHANCING_RAMP)
    return 1.0, core, enhancing


def most_dropped(progress: float) -> int:
    """Largest number of sequences that may be dropped."""
    if progress < ONE_DROPPED_UNTIL:
        return 1
    return 2 if progress < TWO_DROPPED_UNTIL else 3


def draw_subset(acquired: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """Choose which of the acquired sequences a training sample keeps, `(M,)` bool.

    A share of `COMPLETE_SHARE` of the samples keeps all of them. Each other sample keeps a non-empty subset that drops
    at most `most_dropped` sequences. All such subsets are equally likely.
    """
    if torch.rand((), generator=generator).item() < COMPLETE_SHARE:
        return acquired.clone()
    present = torch.where(acquired)[0].tolist()
    subsets = [
        [modality for bit, modality in enumerate(present) if code >> bit & 1] for code in range(1, 2 ** len(present))
    ]
    allowed = [subset for subset in subsets if len(present) - len(subset) <= most_dropped(progress)]
    chosen = allowed[int(torch.randint(len(allowed), (), generator=generator))]
    kept = torch.zeros_like(acquired)
    kept[chosen] = True
    return kept


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise over the first `warmup` of a run, then half a cosine down to zero.

    Example:
        >>> [round(learning_rate_factor(progress, warmup=0.1), 3) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

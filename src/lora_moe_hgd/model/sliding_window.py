"""Logits of a complete case from overlapping windows, blended with Gaussian weights.

Positions and weights of the windows are the same as in MONAI's `sliding_window_inference` with `mode="gaussian"` and
`sigma_scale=0.125`. Windows without any brain are skipped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .stem import at_least_float32

# Logit of voxels that no window with brain covers. This logit means "no tumour" (sigmoid 5e-5).
BACKGROUND_LOGIT = -10.0
# Edges of a window in voxels, and share of a window that overlaps with the next window.
WINDOW = (64, 64, 64)
OVERLAP = 0.5


@torch.no_grad()
def sliding_window_logits(
    model: Callable[..., Any],
    pixel_values: Tensor,
    modality_mask: Tensor,
    *,
    window: tuple[int, int, int] = WINDOW,
    overlap: float = OVERLAP,
    batch_size: int = 2,
    mirror: bool = False,
    progress: bool = False,
) -> Tensor:
    """Run `model` on overlapping windows of one case and blend the logits.

    Args:
        model: Network, which is called as `model(pixel_values=..., modality_mask=...)` and returns an object with
            `logits (B, R, *window)`.
        pixel_values: Images of one case, `(1, M, D, H, W)`, zero outside the brain. Cases smaller than the window are
            zero-padded.
        modality_mask: Mask `(1, M)`, true where a sequence is present.
        window: Edges of a window in voxels.
        overlap: Share of a window that overlaps with the next window, in [0, 1).
        batch_size: Number of windows per call of the model.
        mirror: Average the logits of the case and of its left-right mirror image, which takes twice as long.
        progress: Show a progress bar.

    Returns:
        Logits `(1, R, D, H, W)`, float32 or float64. Voxels that are in no window with brain get the logit -10 in each
        region.

    Raises:
        ValueError: If `overlap` is outside [0, 1), if `pixel_values` has more than one case, or if all its voxels are
            zero.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` must be in [0, 1), got {overlap}.")
    if len(pixel_values) != 1:
        raise ValueError(f"`pixel_values` must contain one case, got {len(pixel_values)}.")
    if mirror:
        options: dict[str, Any] = {"overlap": overlap, "batch_size": batch_size, "progress": progress}
        return mirrored_logits(
            lambda values: sliding_window_logits(model, values, modality_mask, window=window, **options), pixel_values
        )
    shape = pixel_values.shape[2:]
    missing = [max(0, edge - size) for edge, size in zip(window, shape, strict=True)]
    low = [short // 2 for short in missing]
    padding = [0] * 6
    for axis in range(3):
        padding[2 * (2 - axis)], padding[2 * (2 - axis) + 1] = low[axis], missing[axis] - low[axis]
    present = torch.where(modality_mask.bool()[..., None, None, None], pixel_values, 0.0)
    padded = nn.functional.pad(present, padding)
    starts = itertools.product(
        *(_starts(size, edge, overlap) for size, edge in zip(padded.shape[2:], window, strict=True))
    )
    places: list[tuple[slice, ...]] = [
        tuple(slice(at, at + edge) for at, edge in zip(start, window, strict=True)) for start in starts
    ]
    places = [place for place in places if padded[0][:, *place].any()]
    weight = _gaussian(window).to(pixel_values.device)
    total: Tensor | None = None
    weights = torch.zeros(padded.shape[2:], device=pixel_values.device)
    batches = range(0, len(places), batch_size)
    for first in tqdm(batches, desc="windows", unit="batch", disable=not progress):
        chosen = places[first : first + batch_size]
        crops = torch.cat([padded[:, :, *place] for place in chosen])
        if crops.device.type == "cpu":
            # Convolutions are a fifth faster in this layout, with the same values up to rounding.
            crops = crops.contiguous(memory_format=torch.channels_last_3d)
        logits = at_least_float32(
            model(pixel_values=crops, modality_mask=modality_mask.expand(len(chosen), -1)).logits
        )
        if total is None:
            total = torch.zeros(logits.shape[1], *padded.shape[2:], device=logits.device, dtype=logits.dtype)
        for place, window_logits in zip(chosen, logits, strict=True):
            total[:, *place] += weight * window_logits
            weights[place] += weight
    if total is None:
        raise ValueError("All voxels of the present sequences are zero, so there is nothing to segment.")
    blended = torch.where(weights > 0, total / weights.clamp(min=torch.finfo(torch.float32).tiny), BACKGROUND_LOGIT)
    own = tuple(slice(at, at + size) for at, size in zip(low, shape, strict=True))
    return blended[:, *own][None]


def mirrored_logits(logits_of: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
    """Compute logits for a case and its left-right mirror image, mirror the second logits back, and return the mean.

    Args:
        logits_of: Function that computes the logits `(1, R, D, H, W)` of a complete case.
        pixel_values: Images of the case, `(1, M, D, H, W)`. D is the left-right axis.
    """
    return (logits_of(pixel_values) + logits_of(pixel_values.flip(2)).flip(2)) / 2


def _starts(size: int, edge: int, overlap: float) -> list[int]:
    """First voxel of each window along one axis. The last window ends at the end of the volume."""
    step = max(1, int(edge * (1 - overlap)))
    count = math.ceil((size - edge) / step) + 1
    return [min(index * step, size - edge) for index in range(count)]


def _gaussian(window: tuple[int, int, int]) -> Tensor:
    """Weight of each voxel of a window: a Gaussian of at most 1 and at least 1e-3."""
    weight = torch.ones(window)
    for axis, edge in enumerate(window):
        distance = torch.arange(edge, dtype=torch.float32) - (edge - 1) / 2
        shape = [1, 1, 1]
        shape[axis] = edge
        weight = weight * torch.exp(-0.5 * (distance / (0.125 * edge)) ** 2).reshape(shape)
    return weight.clamp(min=1e-3)

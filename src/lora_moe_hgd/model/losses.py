"""Segmentation loss: soft Dice plus binary cross-entropy per region, with deep supervision.

Shape letters in comments: B cases, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def soft_dice_loss(logits: Tensor, targets: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice of each case and region, `(B, R, ...) -> (B, R)`.

    The loss is computed per case, so that a batch split over processes gives the same loss. `smooth`, in voxels, is
    added to numerator and denominator, so that two empty masks have a loss of zero.

    Example:
        >>> soft_dice_loss(torch.full((1, 1, 2, 2, 2), -50.0), torch.zeros(1, 1, 2, 2, 2))
        tensor([[0.]])
    """
    probabilities = logits.sigmoid().flatten(2)
    targets = targets.flatten(2)
    overlap = (probabilities * targets).sum(dim=2)
    total = probabilities.sum(dim=2) + targets.sum(dim=2)
    return 1 - (2 * overlap + smooth) / (total + smooth)


def region_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice loss and cross-entropy of each region, averaged over the batch, each `(R,)`.

    Args:
        logits: Region logits, `(B, R, D, H, W)`.
        targets: Fraction of each voxel that belongs to the region, in [0, 1], in the shape of the logits.
    """
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return soft_dice_loss(logits, targets).mean(dim=0), cross_entropy.mean(dim=(0, 2, 3, 4))


def segmentation_losses(
    logits: Sequence[Tensor], labels: Tensor, *, scale_weights: Sequence[float], region_weights: Tensor
) -> dict[str, Tensor]:
    """Dice loss and cross-entropy, each as a weighted mean over regions and scales.

    Args:
        logits: Region logits from coarse to fine, each `(B, R, D/s, H/s, W/s)` at stride s. The last logits have full
            resolution.
        labels: Region masks `(B, R, D, H, W)`, 0 or 1. The target of a coarser logit is the mean of the region mask
            over the voxels that the logit covers.
        scale_weights: Weight of the loss of each entry of `logits`.
        region_weights: Weight of each region, `(R,)`, not negative and not all zero.

    Returns:
        Two scalars, `dice` and `cross_entropy`.
    """
    targets = labels.to(logits[-1].dtype)
    region_weights = region_weights / region_weights.sum()
    scale_total = sum(scale_weights)
    losses = {"dice": logits[-1].new_zeros(()), "cross_entropy": logits[-1].new_zeros(())}
    for scale_logits, weight in zip(logits, scale_weights, strict=True):
        stride = targets.shape[-1] // scale_logits.shape[-1]
        scale_targets = nn.functional.avg_pool3d(targets, stride) if stride > 1 else targets
        dice, cross_entropy = region_losses(scale_logits, scale_targets)
        losses["dice"] = losses["dice"] + weight / scale_total * (dice * region_weights).sum()
        losses["cross_entropy"] = (
            losses["cross_entropy"] + weight / scale_total * (cross_entropy * region_weights).sum()
        )
    return losses


def total_loss(parts: dict[str, Tensor], coefficients: dict[str, float]) -> Tensor:
    """Weighted sum of the parts of the loss. A part without a coefficient has the weight 1."""
    return torch.stack([coefficients.get(name, 1.0) * value for name, value in parts.items()]).sum()

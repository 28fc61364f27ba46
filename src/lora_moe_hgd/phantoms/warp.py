"""Resample a volume at displaced positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .noise import Shape


def identity_grid(shape: Shape) -> Tensor:
    """Voxel coordinates of a grid, `(D, H, W, 3)`; the last axis is in the order depth, height, width."""
    return torch.stack(torch.meshgrid(*(torch.arange(edge, dtype=torch.float32) for edge in shape), indexing="ij"), -1)


def sample_at_offset(volumes: Tensor, offset: Tensor) -> Tensor:
    """Resample `volumes (C, D, H, W)` trilinearly at the position of each voxel plus `offset (D, H, W, 3)` in voxels.

    Positions outside the volume give zero.
    """
    edges = torch.tensor(volumes.shape[1:], dtype=torch.float32)
    grid = 2 * (identity_grid(tuple(volumes.shape[1:])) + offset) / (edges - 1) - 1
    sampled = nn.functional.grid_sample(volumes[None], grid.flip(-1)[None], mode="bilinear", align_corners=True)
    return sampled[0]

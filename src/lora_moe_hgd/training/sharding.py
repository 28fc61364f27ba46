"""Whole tensors out of shards, and shards out of whole tensors: FSDP2 keeps each weight as a `DTensor`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what all processes hold of it together; then each of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is kept: with its order of axes in memory, and only this process's part of it."""
    if not isinstance(like, DTensor):
        # A fused optimizer pairs a weight with its moments by place in memory; channels-last weights would get those
        # of other weights.
        return torch.empty_like(like).copy_(tensor)
    # Every process has the whole tensor and takes its part: nothing is sent, so the order of calls does not matter.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

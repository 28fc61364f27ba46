"""Gather and shard tensors. FSDP2 keeps each weight as a `DTensor`, of which each process has one shard."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; return any other tensor unchanged. All processes must call this function together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Convert a tensor to the memory layout of `like`; if `like` is sharded, return the shard of this process."""
    if not isinstance(like, DTensor):
        # A fused optimizer pairs a weight with its moments by memory position. In another memory format, a weight
        # would get the moments of other weights.
        return torch.empty_like(like).copy_(tensor)
    # Every process has the full tensor and takes its shard. Nothing is sent, so the order of calls does not matter.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

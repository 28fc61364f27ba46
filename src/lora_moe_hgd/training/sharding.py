"""Gathering and sharding of tensors: FSDP2 keeps each weight as a `DTensor`, of which a process has one shard."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, which all processes must do together; return any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Convert a tensor to the memory layout of `like`; if `like` is sharded, return the shard of this process."""
    if not isinstance(like, DTensor):
        # A fused optimizer pairs a weight with its moments by their place in memory: channels-last weights would get
        # the moments of other weights.
        return torch.empty_like(like).copy_(tensor)
    # Every process has the full tensor and takes its shard. Nothing is sent, so the order of calls does not matter.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

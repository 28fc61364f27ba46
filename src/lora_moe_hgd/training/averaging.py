"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .sharding import laid_out_like, whole


class WeightAverage:
    """Moving average of the parameters that are trained.

    The decay rises with the number of updates, `min(decay, (1 + n) / (10 + n))`, so that a short run is not held back
    by its first weights.

    Args:
        network: Its trained parameters are averaged.
        decay: Highest decay.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in trained_parameters(network)}

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: int) -> None:
        """Take in the weights after optimizer step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in trained_parameters(network):
            self.weights[name].lerp_(value, 1 - decay)


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of each parameter that is trained."""
    return ((name, value) for name, value in network.named_parameters() if value.requires_grad)


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor whole; every process must call, as they may be in parts.

    They are gathered in the order of their names: one that was read from a file differs between processes.
    """
    return {name: whole(tensors[name].detach()) for name in sorted(tensors)}


@torch.no_grad()
def load_trained(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole `weights` into the trained parameters of the same names."""
    for name, value in trained_parameters(network):
        value.copy_(laid_out_like(weights[name], value))

"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .sharding import gathered, laid_out_like


class WeightAverage:
    """Moving average of the trained parameters.

    After `n` updates, the decay is `min(decay, (1 + n) / (10 + n))`. The decay is low at first, so that the initial
    weights do not dominate the average of a short run.

    Args:
        network: Network whose trained parameters are averaged.
        decay: Highest decay.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in trained_parameters(network)}

    @torch.no_grad()
    def update(self, network: nn.Module, *, step: int) -> None:
        """Add the weights after optimizer step number `step`, counted from 1, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in trained_parameters(network):
            self.weights[name].lerp_(value, 1 - decay)


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of each trained parameter."""
    return ((name, value) for name, value in network.named_parameters() if value.requires_grad)


def gathered_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors. All processes must call this function together.

    Tensors are gathered in the order of their names, because all processes must gather them in the same order.
    """
    return {name: gathered(tensors[name].detach()) for name in sorted(tensors)}


@torch.no_grad()
def load_trained(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights`, which are not sharded, into the trained parameters of the same names."""
    for name, value in trained_parameters(network):
        value.copy_(laid_out_like(weights[name], value))

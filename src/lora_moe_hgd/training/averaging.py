"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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

    @contextmanager
    def in_use(self, network: nn.Module) -> Iterator[None]:
        """Let `network` have the averaged weights inside the block."""
        own = {name: value.detach().clone() for name, value in trained_parameters(network)}
        load_trained(network, self.weights)
        try:
            yield
        finally:
            load_trained(network, own)


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of each parameter that is trained."""
    return ((name, value) for name, value in network.named_parameters() if value.requires_grad)


@torch.no_grad()
def load_trained(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into the trained parameters of the same names."""
    for name, value in trained_parameters(network):
        value.copy_(weights[name])

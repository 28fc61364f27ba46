"""A network of the real architecture, small enough for unit tests."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from lora_moe_hgd.model.configuration_lora_moe_hgd import LoraMoeHgdConfig
from lora_moe_hgd.model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation

EVERY_SUBSET = [mask for mask in itertools.product([False, True], repeat=4) if any(mask)]


def small_config(**overrides) -> LoraMoeHgdConfig:
    sizes = {
        "full_resolution_channels": 4,
        "stem_channels": (4, 8, 12),
        "stem_depths": (1, 1, 1),
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "expert_intermediate_size": 16,
        "position_grid": (2, 2, 2),
        "hidden_state_depths": (1, 2, 4),
        "fusion_size": 16,
        "codeword_size": 16,
        "num_codewords": 6,
        "num_prior_codewords": 2,
        "refinement_channels": (12, 8, 8),
    }
    return LoraMoeHgdConfig(**{**sizes, **overrides})


def small_network(seed: int = 0, **overrides) -> LoraMoeHgdForSegmentation:
    torch.manual_seed(seed)
    network = LoraMoeHgdForSegmentation(small_config(**overrides)).eval()
    # The initial prior codewords, biases and norms are all alike: give every parameter a say.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def random_volumes(batch: int = 2, shape: tuple[int, int, int] = (16, 32, 48), seed: int = 1) -> Tensor:
    return torch.randn(batch, 4, *shape, generator=torch.Generator().manual_seed(seed))

"""Transformer over the patch tokens of all present sequences (UNETR-style, https://arxiv.org/abs/2103.10504).

Shape letters: B cases, P present volumes in the batch, L patches of one volume, S slots (the largest number of present
sequences of a case in the batch), N = S * L tokens of a case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lora_moe_hgd import LoraMoeHgdConfig
from .moe import FeedForward, SparseMoe
from .stem import Presence


@dataclass
class TokenLayout:
    """Origin of the tokens of a batch.

    Attributes:
        grid: Number of patches along depth, height and width.
        modality_BN: Modality index of each token; meaningless where `present_BN` is false.
        present_BN: True where a token is real, false where it pads a case with fewer sequences than another.
        is_padded: Whether any token is padding. A case alone has none: absent sequences are dropped, not masked.
    """

    grid: tuple[int, int, int]
    modality_BN: Tensor
    present_BN: Tensor
    is_padded: bool

    @property
    def tokens_per_case(self) -> list[int]:
        """Number of real tokens of each case."""
        return self.present_BN.sum(dim=1).tolist()

    def mean_over_tokens(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the real tokens of each case, `(B, C)`."""
        present = self.present_BN[..., None]
        return torch.where(present, x, 0.0).sum(dim=1) / present.sum(dim=1)

    def mean_over_sequences(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the present sequences at each place, as a volume `(B, C, *grid)`."""
        num_patches = self.grid[0] * self.grid[1] * self.grid[2]
        present = self.present_BN.unflatten(1, (-1, num_patches))[..., None]
        total = torch.where(present, x.unflatten(1, (-1, num_patches)), 0.0).sum(dim=1)
        return (total / present.sum(dim=1)).transpose(1, 2).unflatten(2, self.grid)


def layout_tokens(packed: Tensor, presence: Presence, grid: tuple[int, int, int]) -> tuple[Tensor, TokenLayout]:
    """Gather the packed volumes' tokens `(P, L, hidden)` by case, `(B, N, hidden)`, with their layout."""
    num_patches = packed.shape[1]
    counts_B = torch.tensor(presence.counts, device=packed.device)
    num_slots = max(presence.counts)
    slot_P = torch.arange(len(packed), device=packed.device) - (counts_B.cumsum(0) - counts_B)[presence.case_P]
    place = (presence.case_P, slot_P)
    tokens = packed.new_zeros(len(counts_B), num_slots, *packed.shape[1:]).index_put(place, packed)
    modality_BS = presence.modality_P.new_zeros(len(counts_B), num_slots).index_put(place, presence.modality_P)
    present_BS = torch.arange(num_slots, device=packed.device) < counts_B[:, None]
    layout = TokenLayout(
        grid=grid,
        modality_BN=modality_BS.repeat_interleave(num_patches, dim=1),
        present_BN=present_BS.repeat_interleave(num_patches, dim=1),
        is_padded=min(presence.counts) < num_slots,
    )
    return tokens.flatten(1, 2), layout


class Attention(nn.Module):
    """Multi-head self-attention over the present tokens of each case."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.k = nn.Linear(config.hidden_size, config.hidden_size)
        self.v = nn.Linear(config.hidden_size, config.hidden_size)
        self.o = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        q, k, v = (self._split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        # Without padding no mask is needed, and a faster kernel may run.
        mask = layout.present_BN[:, None, None, :] if layout.is_padded else None
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, N, hidden) -> (B, heads, N, head size)


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention, then a dense feed-forward block or a mixture of experts."""

    def __init__(self, config: LoraMoeHgdConfig, *, with_experts: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size)
        self.with_experts = with_experts
        if with_experts:
            self.moe = SparseMoe(config)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states `(B, N, hidden)` and, with experts, the router logits of the real tokens."""
        x = x + self.attention(self.attention_norm(x), layout)
        normed = self.feed_forward_norm(x)
        if not self.with_experts:
            return x + self.mlp(normed), None
        real = torch.where(layout.present_BN)
        routed, router_logits = self.moe(normed[real], layout.modality_BN[real])
        update = torch.zeros_like(x).index_put(real, routed.to(x.dtype))
        return x + update, router_logits


@dataclass
class EncoderOutput:
    """Hidden states of the real tokens and padding.

    Attributes:
        hidden_states: After each of the configured depths, `(B, N, hidden)`; the last is normalised.
        router_logits: One `(T, E)` per block with experts, over the real tokens only.
        layout: Where each token comes from.
    """

    hidden_states: tuple[Tensor, ...]
    router_logits: tuple[Tensor, ...]
    layout: TokenLayout


class VisionTransformer(nn.Module):
    """Tokens of all present sequences with learned position and modality embeddings, through the blocks."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.position_grid = config.position_grid
        self.hidden_state_depths = config.hidden_state_depths
        self.position_embedding = nn.Embedding(math.prod(config.position_grid), config.hidden_size)
        self.modality_embedding = nn.Embedding(len(config.modalities), config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(config, with_experts=config.has_experts(layer)) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, patches: Tensor, presence: Presence) -> EncoderOutput:
        """Encode `patches (P, hidden, D/16, H/16, W/16)`."""
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        packed = patches.flatten(2).transpose(1, 2)  # (P, hidden, z, y, x) -> (P, L, hidden)
        packed = packed + self._positions(grid, patches.device) + self.modality_embedding(presence.modality_P)[:, None]
        x, layout = layout_tokens(packed, presence, grid)
        hidden_states, router_logits = [], []
        for depth, layer in enumerate(self.layers, start=1):
            x, logits = layer(x, layout)
            if logits is not None:
                router_logits.append(logits)
            if depth in self.hidden_state_depths:
                hidden_states.append(x)
        hidden_states[-1] = self.norm(hidden_states[-1])
        return EncoderOutput(tuple(hidden_states), tuple(router_logits), layout)

    def _positions(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """Position embeddings `(L, hidden)` for `grid`, trilinearly interpolated from the stored grid."""
        # Called, not read by `.weight`: offloading, sharding and LoRA act when a module is called.
        stored = self.position_embedding(torch.arange(math.prod(self.position_grid), device=device))
        if grid == tuple(self.position_grid):
            return stored
        volume = stored.T.reshape(1, -1, *self.position_grid)
        resized = nn.functional.interpolate(volume.float(), size=grid, mode="trilinear", align_corners=False)
        return resized.flatten(2)[0].T.to(stored.dtype)

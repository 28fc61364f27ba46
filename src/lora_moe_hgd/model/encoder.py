"""Transformer over the patch tokens of all present sequences (UNETR-style, https://arxiv.org/abs/2103.10504).

Shape letters: B cases, P computed volumes in the batch, L patches of one volume, S slots (the largest number of
computed volumes of a case in the batch), N = S * L tokens of a case, T tokens that the experts compute.
"""

from __future__ import annotations

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
        modality_BN: Modality index of each token; meaningless for padding.
        present_BN: True for real tokens, false for padding in cases with fewer sequences than another case, and for
            the tokens of absent sequences in a graph.
        is_padded: Whether any token may not be real. Outside a graph a batch of one case has no padding, because
            absent sequences get no tokens.
        routed_T: Index of the tokens that the experts compute, among the `B * N`. `None` if they compute all.
        is_dense: Whether no shape may depend on values, see `DensePresence`.
    """

    grid: tuple[int, int, int]
    modality_BN: Tensor
    present_BN: Tensor
    is_padded: bool
    routed_T: Tensor | None = None
    is_dense: bool = False

    @property
    def tokens_per_case(self) -> list[int]:
        """Number of tokens of each case that the experts compute."""
        if self.routed_T is None:
            return [self.present_BN.shape[1]] * self.present_BN.shape[0]
        return self.present_BN.sum(dim=1).tolist()

    def to_experts(self, x: Tensor) -> Tensor:
        """Take the tokens that the experts compute, case by case, `(B, N, ...) -> (T, ...)`."""
        return x.flatten(0, 1) if self.routed_T is None else x.flatten(0, 1)[self.routed_T]

    def from_experts(self, x_TD: Tensor) -> Tensor:
        """Put tokens back, `(T, D) -> (B, N, D)`; zero where the experts compute none."""
        if self.routed_T is not None:
            places = x_TD.new_zeros(self.present_BN.numel(), x_TD.shape[1])
            x_TD = places.index_put((self.routed_T,), x_TD)
        return x_TD.unflatten(0, self.present_BN.shape)

    def mean_over_tokens(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the real tokens of each case, `(B, C)`."""
        present = self.present_BN[..., None]
        return torch.where(present, x, 0.0).sum(dim=1) / present.sum(dim=1)

    def mean_over_sequences(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the present sequences of each patch, as a volume `(B, C, *grid)`."""
        num_patches = self.grid[0] * self.grid[1] * self.grid[2]
        present = self.present_BN.unflatten(1, (-1, num_patches))[..., None]
        total = torch.where(present, x.unflatten(1, (-1, num_patches)), 0.0).sum(dim=1)
        return (total / present.sum(dim=1)).transpose(1, 2).unflatten(2, self.grid)


def layout_tokens(packed: Tensor, presence: Presence, grid: tuple[int, int, int]) -> tuple[Tensor, TokenLayout]:
    """Group the tokens `(P, L, hidden)` of the packed volumes by case; return `(B, N, hidden)` and the layout."""
    slots = presence.slots(packed)
    num_slots, num_patches = slots.values.shape[1:3]
    routed_T = None
    if slots.filled is not None:
        case_P, slot_P = slots.filled
        patch_L = torch.arange(num_patches, device=packed.device)
        routed_T = ((case_P * num_slots + slot_P)[:, None] * num_patches + patch_L).flatten()
    layout = TokenLayout(
        grid=grid,
        # Not `repeat_interleave`, of which the ONNX exporter repeats the wrong axis.
        modality_BN=slots.modality_BS[..., None].expand(-1, -1, num_patches).flatten(1),
        present_BN=slots.present_BS[..., None].expand(-1, -1, num_patches).flatten(1),
        is_padded=presence.is_dense or routed_T is not None,
        routed_T=routed_T,
        is_dense=presence.is_dense,
    )
    return slots.values.flatten(1, 2), layout


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
        # Without padding no mask is needed, so that a faster kernel can be used.
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
        """Return the hidden states `(B, N, hidden)` and the router logits, if the block has experts."""
        x = x + self.attention(self.attention_norm(x), layout)
        normed = self.feed_forward_norm(x)
        if not self.with_experts:
            return x + self.mlp(normed), None
        modality_T = layout.to_experts(layout.modality_BN)
        routed, router_logits = self.moe(layout.to_experts(normed), modality_T, is_dense=layout.is_dense)
        return x + layout.from_experts(routed.to(x.dtype)), router_logits


@dataclass
class EncoderOutput:
    """Output of the transformer.

    Attributes:
        hidden_states: Hidden states after each of the configured depths, `(B, N, hidden)`. The last is normalised.
        router_logits: One `(T, E)` per block with experts, for the tokens that the experts compute.
        layout: Origin of each token.
    """

    hidden_states: tuple[Tensor, ...]
    router_logits: tuple[Tensor, ...]
    layout: TokenLayout


class VisionTransformer(nn.Module):
    """Transformer over the tokens of all present sequences, with learned position and modality embeddings."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.position_grid = config.position_grid
        self.hidden_state_depths = config.hidden_state_depths
        self.position_embedding = nn.Embedding(
            config.position_grid[0] * config.position_grid[1] * config.position_grid[2], config.hidden_size
        )
        self.modality_embedding = nn.Embedding(len(config.modalities), config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(config, with_experts=config.has_experts(layer)) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, patches: Tensor, presence: Presence) -> EncoderOutput:
        """Encode `patches (P, hidden, D/16, H/16, W/16)`."""
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        packed = patches.flatten(2).transpose(1, 2)  # (P, hidden, z, y, x) -> (P, L, hidden)
        packed = packed + self._positions(grid) + self.modality_embedding(presence.modality_P)[:, None]
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

    def _positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Position embeddings `(L, hidden)` for `grid`, trilinearly interpolated from the stored grid."""
        stored = self.position_embedding.weight
        volume = stored.T.reshape(1, -1, *self.position_grid)
        resized = nn.functional.interpolate(volume.float(), size=grid, mode="trilinear", align_corners=False)
        return resized.flatten(2)[0].T.to(stored.dtype)

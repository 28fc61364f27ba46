"""Transformer over the patch tokens of all present sequences (UNETR-style, https://arxiv.org/abs/2103.10504).

A sequence that a case lacks gets no tokens. A compiled graph is an exception: there, an absent sequence gets tokens
that are masked. A volume is one sequence of one case. Shape letters: B cases of a batch, P volumes of a batch that the
stem processes, L patches of a volume, S slots (largest number of processed volumes of a case), N = S * L tokens of a
case, T tokens that the experts process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_lora_moe_hgd import LoraMoeHgdConfig
from .moe import FeedForward, SparseMoe, router_losses
from .stem import Presence, at_least_float32


@dataclass
class TokenLayout:
    """Case, sequence and patch from which each token of a batch comes.

    Attributes:
        grid: Number of patches along depth, height and width.
        modality_BN: Index of each token's sequence in channel order; meaningless for padding.
        present_BN: True for tokens of present sequences. False for padding, which fills up cases with fewer sequences,
            and for tokens of absent sequences, which only a compiled graph has.
        is_padded: False if `present_BN` is true for all tokens, so that attention needs no mask. Always true in a
            compiled graph.
        routed_T: Indices, among the `B * N` tokens, of the tokens that the experts process, or `None` if the experts
            process all tokens.
        is_dense: True in a compiled graph, in which no shape may depend on the mask of present sequences or on the
            routing.
    """

    grid: tuple[int, int, int]
    modality_BN: Tensor
    present_BN: Tensor
    is_padded: bool
    routed_T: Tensor | None = None
    is_dense: bool = False

    @property
    def tokens_per_case(self) -> list[int]:
        """Number of tokens of each case that the experts process."""
        if self.routed_T is None:
            return [self.present_BN.shape[1]] * self.present_BN.shape[0]
        return self.present_BN.sum(dim=1).tolist()

    def to_experts(self, x: Tensor) -> Tensor:
        """Select the tokens that the experts process, `(B, N, ...) -> (T, ...)`, in the order of the cases."""
        return x.flatten(0, 1) if self.routed_T is None else x.flatten(0, 1)[self.routed_T]

    def from_experts(self, x_TD: Tensor) -> Tensor:
        """Put the outputs of the experts at their tokens, `(T, D) -> (B, N, D)`; all other tokens get zero."""
        if self.routed_T is not None:
            places = x_TD.new_zeros(self.present_BN.numel(), x_TD.shape[1])
            x_TD = places.index_put((self.routed_T,), x_TD)
        return x_TD.unflatten(0, self.present_BN.shape)

    def mean_over_tokens(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the tokens of each case's present sequences, `(B, C)`."""
        present = self.present_BN[..., None]
        return torch.where(present, x, 0.0).sum(dim=1) / present.sum(dim=1)

    def mean_over_sequences(self, x: Tensor) -> Tensor:
        """Mean of `(B, N, C)` over the present sequences of each patch, as a volume `(B, C, *grid)`."""
        num_patches = self.grid[0] * self.grid[1] * self.grid[2]
        present = self.present_BN.unflatten(1, (-1, num_patches))[..., None]
        total = torch.where(present, x.unflatten(1, (-1, num_patches)), 0.0).sum(dim=1)
        return (total / present.sum(dim=1)).transpose(1, 2).unflatten(2, self.grid)


def layout_tokens(packed: Tensor, presence: Presence, grid: tuple[int, int, int]) -> tuple[Tensor, TokenLayout]:
    """Group the tokens of P volumes, L tokens each, by case. Cases with fewer volumes than others are padded.

    Args:
        packed: Tokens of all volumes, `(P, L, hidden)`.
        presence: Case and sequence of each volume.
        grid: Number of patches of a volume along each axis; L is their product.

    Returns:
        Tokens `(B, N, hidden)`, and where each of them comes from.
    """
    slots = presence.slots(packed)
    num_slots, num_patches = slots.values.shape[1:3]
    routed_T = None
    if slots.filled is not None:
        case_P, slot_P = slots.filled
        patch_L = torch.arange(num_patches, device=packed.device)
        routed_T = ((case_P * num_slots + slot_P)[:, None] * num_patches + patch_L).flatten()
    layout = TokenLayout(
        grid=grid,
        # Do not use `repeat_interleave`, because its ONNX export repeats the wrong axis.
        modality_BN=slots.modality_BS[..., None].expand(-1, -1, num_patches).flatten(1),
        present_BN=slots.present_BS[..., None].expand(-1, -1, num_patches).flatten(1),
        is_padded=presence.is_dense or routed_T is not None,
        routed_T=routed_T,
        is_dense=presence.is_dense,
    )
    return slots.values.flatten(1, 2), layout


def attention_mask(config: LoraMoeHgdConfig, x: Tensor, layout: TokenLayout) -> Any:
    """Attention mask for the tokens `x (B, N, hidden)`, in the form that the configured attention function needs.

    Returns:
        `None` if no token must be masked, so that a faster kernel may run. For `sdpa`, `eager` and attention functions
        that users register, the mask is `(B, 1, 1, N)`, true for tokens of present sequences. For all other attention
        functions, the library transformers makes the mask.
    """
    if not layout.is_padded:
        return None
    implementation = config._attn_implementation
    if implementation in ("sdpa", "eager") or implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        return layout.present_BN[:, None, None, :]
    return create_bidirectional_mask(config, x, layout.present_BN)


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **unused: Any
) -> tuple[Tensor, Tensor]:
    """Attention function `eager`, which also returns the attention weights.

    The arguments are those that transformers gives to every attention function.

    Args:
        module: Attention module, which is ignored.
        query: Queries `(B, heads, N, head size)`.
        key: Keys, in the shape of the queries.
        value: Values, in the shape of the queries.
        attention_mask: Mask `(B, 1, 1, N)`, false for tokens that no token attends to, or `None` if no token is
            masked.
        **unused: Options of other attention functions, which are ignored.

    Returns:
        Attended values `(B, N, heads, head size)`, and attention weights `(B, heads, N, N)`, zero for masked tokens.
    """
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -math.inf)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head self-attention over the present tokens of each case, with the configured attention function."""

    # The attention functions of transformers read this attribute.
    is_causal = False

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        # Keep the configuration and read it at each call, because `set_attn_implementation` changes it.
        self.config = config
        self.num_heads = config.num_attention_heads
        self.q = nn.Linear(config.hidden_size, config.hidden_size)
        self.k = nn.Linear(config.hidden_size, config.hidden_size)
        self.v = nn.Linear(config.hidden_size, config.hidden_size)
        self.o = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Any) -> tuple[Tensor, Tensor | None]:
        """Apply self-attention to `x (B, N, hidden)`; `eager` attention also returns weights `(B, heads, N, N)`."""
        q, k, v = (self._split_heads(projection(x)) for projection in (self.q, self.k, self.v))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, weights = attend(self, q, k, v, mask, dropout=0.0, is_causal=False)
        return self.o(attended.flatten(2)), weights

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

    def forward(self, x: Tensor, layout: TokenLayout, mask: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return hidden states `(B, N, hidden)`, router logits, and attention weights.

        The router logits are `None` for a block without experts. The attention weights are `None` if the attention
        function does not return them.
        """
        attended, weights = self.attention(self.attention_norm(x), mask)
        x = x + attended
        normed = self.feed_forward_norm(x)
        if not self.with_experts:
            return x + self.mlp(normed), None, weights
        modality_T = layout.to_experts(layout.modality_BN)
        routed, router_logits = self.moe(layout.to_experts(normed), modality_T, is_dense=layout.is_dense)
        return x + layout.from_experts(routed.to(x.dtype)), router_logits, weights


@dataclass
class EncoderOutput:
    """Output of the transformer.

    Attributes:
        hidden_states: Hidden states before the first block and after each block, `(B, N, hidden)`. The last hidden
            state has passed the final LayerNorm.
        router_logits: Router logits `(T, E)` of each block with experts, for the T tokens and E routed experts.
        layout: Case, sequence and patch from which each token comes.
        attentions: Attention weights of each block, `(B, heads, N, N)`, or `None` if they were not requested.
    """

    hidden_states: tuple[Tensor, ...]
    router_logits: tuple[Tensor, ...]
    layout: TokenLayout
    attentions: tuple[Tensor, ...] | None = None

    def router_losses(self, experts_per_token: int) -> dict[str, Tensor]:
        """Return the losses of the routers by name, see `moe.router_losses`; an empty dict if no block has experts."""
        if not self.router_logits:
            return {}
        present_T = self.layout.to_experts(self.layout.present_BN)
        return router_losses(self.router_logits, self.layout.tokens_per_case, present_T, experts_per_token)


class VisionTransformer(nn.Module):
    """Transformer over the tokens of all present sequences, with learned position and modality embeddings."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.config = config
        self.position_grid = config.position_grid
        self.position_embedding = nn.Embedding(math.prod(config.position_grid), config.hidden_size)
        self.modality_embedding = nn.Embedding(len(config.modalities), config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(config, with_experts=config.has_experts(layer)) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, patches: Tensor, presence: Presence, output_attentions: bool = False) -> EncoderOutput:
        """Encode `patches (P, hidden, D/16, H/16, W/16)`."""
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        packed = patches.flatten(2).transpose(1, 2)  # (P, hidden, z, y, x) -> (P, L, hidden)
        packed = packed + self._positions(grid, patches.device) + self.modality_embedding(presence.modality_P)[:, None]
        x, layout = layout_tokens(packed, presence, grid)
        mask = attention_mask(self.config, x, layout)
        hidden_states, router_logits, attentions = [x], [], []
        for layer in self.layers:
            x, logits, weights = layer(x, layout, mask)
            hidden_states.append(x)
            if logits is not None:
                router_logits.append(logits)
            if output_attentions:
                attentions.append(weights)
        hidden_states[-1] = self.norm(x)
        return EncoderOutput(
            tuple(hidden_states), tuple(router_logits), layout, tuple(attentions) if output_attentions else None
        )

    def _positions(self, grid: tuple[int, int, int], device: torch.device) -> Tensor:
        """Position embeddings `(L, hidden)` for `grid`, trilinearly interpolated from the stored grid."""
        # Call the embedding instead of reading its `.weight`: offloading, sharding and LoRA act when a module is
        # called.
        stored = self.position_embedding(torch.arange(math.prod(self.position_grid), device=device))
        volume = stored.T.reshape(1, -1, *self.position_grid)
        resized = nn.functional.interpolate(at_least_float32(volume), size=grid, mode="trilinear", align_corners=False)
        return resized.flatten(2)[0].T.to(stored.dtype)

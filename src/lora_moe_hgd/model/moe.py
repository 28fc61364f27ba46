"""Sparse mixture of feed-forward experts, some of which are reserved for one MRI sequence each.

The routing is token-choice top-k (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538). One shared expert processes
all tokens. A token may use the expert of its own sequence and the free experts, so the expert of an absent sequence
gets no tokens and has no influence.

Shape letters: T tokens, D hidden size, M modalities, E routed experts (first the M reserved ones), K routed experts
that process each token, C = T * K choices of an expert by a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .configuration_lora_moe_hgd import LoraMoeHgdConfig
from .stem import at_least_float32


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, used as a dense block and as an expert."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ExpertRouter(nn.Linear):
    """Router that scores every routed expert for every token, in at least float32."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        num_modalities = len(config.modalities)
        super().__init__(config.hidden_size, num_modalities + config.num_free_experts, bias=False)
        self.num_modalities = num_modalities
        self.num_free_experts = config.num_free_experts

    def reset_parameters(self) -> None:
        """Do nothing, because the network initialises the weights of all its modules."""

    def forward(self, x_TD: Tensor, modality_T: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits `(T, E)` in at least float32, minus infinity where a token may not use an expert."""
        # Route in float32 even under autocast, so that rounding does not swap experts with nearly equal logits.
        with torch.autocast(device_type=x_TD.device.type, enabled=False):
            logits_TE = nn.functional.linear(at_least_float32(x_TD), at_least_float32(self.weight))
        own_TM = modality_T[:, None] == torch.arange(self.num_modalities, device=modality_T.device)
        free_TF = own_TM.new_ones(own_TM.shape[0], self.num_free_experts)
        return logits_TE.masked_fill(~torch.cat([own_TM, free_TF], dim=1), -math.inf)


class SparseMoe(nn.Module):
    """One shared expert plus, per token, the weighted sum of its top-k routed experts."""

    def __init__(self, config: LoraMoeHgdConfig) -> None:
        super().__init__()
        self.experts_per_token = config.num_experts_per_tok
        self.router = ExpertRouter(config)
        self.shared_expert = FeedForward(config.hidden_size, config.expert_intermediate_size)
        self.experts = nn.ModuleList(
            FeedForward(config.hidden_size, config.expert_intermediate_size)
            for _ in range(len(config.modalities) + config.num_free_experts)
        )

    def forward(self, x_TD: Tensor, modality_T: Tensor, *, is_dense: bool = False) -> tuple[Tensor, Tensor]:
        """Return the output `(T, D)` and the router logits `(T, E)`.

        Args:
            x_TD: Tokens.
            modality_T: Index of each token's sequence in channel order.
            is_dense: Process every token by every expert, so that no shape depends on the routing.
        """
        logits_TE = self.router(x_TD, modality_T)
        weight_TK, expert_TK = logits_TE.softmax(dim=-1).topk(self.experts_per_token, dim=-1)
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        y_TD = self.shared_expert(x_TD)
        if is_dense:
            return y_TD + self._from_all(x_TD, weight_TK, expert_TK), logits_TE
        # Sort by expert, so that the host waits for a GPU once and not for each expert.
        expert_C = expert_TK.flatten()
        tokens_E = (expert_C[:, None] == torch.arange(len(self.experts), device=expert_C.device)).sum(dim=0)
        parts = expert_C.argsort(stable=True).split(tokens_E.tolist())
        # Experts without tokens run on zero rows. Skipping them would break DDP and FSDP.
        for expert, choice in zip(self.experts, parts, strict=True):
            token = choice.div(self.experts_per_token, rounding_mode="floor")
            routed = expert(x_TD[token]) * weight_TK.flatten()[choice, None].to(y_TD.dtype)
            y_TD = y_TD.index_add(0, token, routed.to(y_TD.dtype))
        return y_TD, logits_TE

    def _from_all(self, x_TD: Tensor, weight_TK: Tensor, expert_TK: Tensor) -> Tensor:
        """Weighted sum of each token's chosen experts, `(T, D)`. Every expert processes all tokens."""
        y_TD = torch.zeros_like(x_TD)
        for index, expert in enumerate(self.experts):
            is_chosen_TK = expert_TK == index
            weight_T = torch.where(is_chosen_TK, weight_TK, 0.0).sum(dim=1)
            # An expert may overflow for a token that did not choose it.
            routed = torch.where(is_chosen_TK.any(dim=1, keepdim=True), expert(x_TD), 0.0)
            y_TD = y_TD + routed * weight_T[:, None].to(routed.dtype)
        return y_TD


def load_balancing_loss(router_logits_TE: Tensor, experts_per_token: int, present_T: Tensor | None = None) -> Tensor:
    """Penalty that is smallest when each expert gets the same share of the tokens that may use it.

    Equations (4) to (6) of the Switch Transformer (https://arxiv.org/abs/2101.03961), generalised to top-k and to
    experts that only some tokens may use: `mean_e (A f_e) (A p_e)`. The mean is over all experts that at least one
    token may use. `A` is the number of experts that a token may use. Over the tokens that may use expert `e`, `f_e` is
    the share of the choices that fall on `e`, and `p_e` is the mean probability of `e`. If every token may use every
    expert, the penalty is the published `E * sum_e f_e p_e`. Perfect balance gives 1.

    Args:
        router_logits_TE: Router logits, minus infinity where a token may not use an expert. The number of experts that
            a token may use must be the same for all tokens.
        experts_per_token: Number of routed experts that process each token.
        present_T: False for tokens that the loss ignores, or `None` if it ignores no token.

    Returns:
        Scalar, differentiable through `p_e` only (`f_e` is a count).

    Example:
        >>> even = torch.eye(4).repeat(8, 1)  # 32 tokens, a quarter of them for each expert
        >>> round(load_balancing_loss(50 * even, experts_per_token=1).item(), 4)
        1.0
    """
    if present_T is None:
        present_T = torch.ones_like(router_logits_TE[:, 0], dtype=torch.bool)
    allowed_TE = router_logits_TE.isfinite() & present_T[:, None]
    probability_TE = router_logits_TE.softmax(dim=-1)
    chosen_TE = torch.zeros_like(probability_TE).scatter(
        1, probability_TE.topk(experts_per_token, dim=-1).indices, 1.0 / experts_per_token
    )
    tokens_E = allowed_TE.sum(dim=0)
    num_allowed = allowed_TE.sum() / present_T.sum()
    chosen_E, probability_E = (
        torch.where(present_T[:, None], part_TE, 0.0).sum(dim=0) for part_TE in (chosen_TE, probability_TE)
    )
    share_E = num_allowed * chosen_E / tokens_E.clamp(min=1)
    mean_probability_E = num_allowed * probability_E / tokens_E.clamp(min=1)
    return (share_E * mean_probability_E).sum() / (tokens_E > 0).sum()


def router_z_loss(router_logits_TE: Tensor, present_T: Tensor | None = None) -> Tensor:
    """Mean over the tokens of the squared log-sum-exp of the logits (ST-MoE, https://arxiv.org/abs/2202.08906, eq. 5).

    Experts that a token may not use have a logit of minus infinity, which adds nothing to the sum.

    Example:
        >>> router_z_loss(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])).item()
        0.0
    """
    squared_T = router_logits_TE.logsumexp(dim=-1).square()
    if present_T is None:
        return squared_T.mean()
    return torch.where(present_T, squared_T, 0.0).sum() / present_T.sum()


def router_losses(
    router_logits: tuple[Tensor, ...], tokens: list[int], present_T: Tensor, experts_per_token: int
) -> dict[str, Tensor]:
    """Load-balancing loss and z-loss as means over layers and cases.

    The losses are computed per case, so that splitting a batch over processes or steps does not change them.

    Args:
        router_logits: Router logits `(T, E)` of each layer with experts, at least one layer.
        tokens: Number of tokens of each case. The rows of `router_logits` list the tokens case by case, in the same
            order.
        present_T: False for tokens that the losses ignore.
        experts_per_token: Number of routed experts that process each token.
    """
    present = present_T.split(tokens)
    cases = [case for layer in router_logits for case in zip(layer.split(tokens), present, strict=True)]
    return {
        "load_balance": torch.stack(
            [load_balancing_loss(logits, experts_per_token, present) for logits, present in cases]
        ).mean(),
        "router_z": torch.stack([router_z_loss(logits, present) for logits, present in cases]).mean(),
    }

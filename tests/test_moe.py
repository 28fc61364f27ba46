"""Routing: who may go where, what comes out, and what the router losses measure."""

from __future__ import annotations

import math

import pytest
import torch
from small import small_config
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lora_moe_hgd.model.moe import SparseMoe, load_balancing_loss, router_z_loss


def random_moe(seed: int = 0, **overrides) -> tuple[SparseMoe, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    moe = SparseMoe(small_config(**overrides))
    torch.nn.init.normal_(moe.router.weight)
    return moe, torch.randn(40, 24), torch.randint(4, (40,))


def test_output_equals_a_loop_over_single_tokens() -> None:
    moe, x_TD, modality_T = random_moe()
    y_TD, _ = moe(x_TD, modality_T)
    for token, (x, modality) in enumerate(zip(x_TD, modality_T.tolist(), strict=True)):
        scores = {expert: float(moe.router.weight[expert].detach() @ x) for expert in (modality, 4, 5, 6, 7)}
        first, second = sorted(scores, key=lambda expert: -scores[expert])[:2]
        ratio = 1 / (1 + math.exp(scores[second] - scores[first]))  # two-way softmax = renormalised top-2
        expected = moe.shared_expert(x) + ratio * moe.experts[first](x) + (1 - ratio) * moe.experts[second](x)
        assert_close(y_TD[token], expected, rtol=1e-4, atol=1e-5)


def test_the_expert_of_an_absent_modality_has_no_tokens_and_no_say() -> None:
    moe, x_TD, modality_T = random_moe()
    modality_T[modality_T == 2] = 3
    expected, logits_TE = moe(x_TD, modality_T)
    torch.nn.init.constant_(moe.experts[2].fc2.bias, 1e6)
    torch.nn.init.constant_(moe.router.weight[2], 1e6)
    actual, _ = moe(x_TD, modality_T)
    assert_close(actual, expected, rtol=0, atol=0)
    assert (logits_TE[:, 2] == -math.inf).all()


def test_routing_is_float32_under_autocast() -> None:
    moe, x_TD, modality_T = random_moe()
    _, expected = moe(x_TD, modality_T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, actual = moe(x_TD, modality_T)
    assert actual.dtype == torch.float32
    assert_close(actual, expected, rtol=0, atol=0)


def test_experts_without_tokens_still_get_a_gradient() -> None:
    moe, x_TD, modality_T = random_moe()
    moe(x_TD, torch.zeros_like(modality_T))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())


class Waits(TorchDispatchMode):
    """Counts operations whose result the host needs: on a GPU each waits for all work before it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense, torch.ops.aten.masked_select)
        self.count += func.overloadpacket in waiting
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_once_for_all_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    moe, x_TD, modality_T = random_moe()
    lists = []
    original = torch.Tensor.tolist
    # `tolist` is no operation on the CPU.
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor) or original(tensor))
    with Waits() as waits:
        moe(x_TD, modality_T)
    assert waits.count + len(lists) == 1
    with Waits() as waits:
        moe(x_TD, modality_T, is_dense=True)
    assert waits.count + len(lists) == 1


def test_experts_computed_for_all_tokens_give_what_those_chosen_give() -> None:
    moe, x_TD, modality_T = random_moe()
    expected, expected_logits = moe(x_TD, modality_T)
    actual, logits = moe(x_TD, modality_T, is_dense=True)
    assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert_close(logits, expected_logits, rtol=0, atol=0)


def test_an_expert_that_overflows_does_not_reach_tokens_that_did_not_choose_it() -> None:
    moe, x_TD, modality_T = random_moe()
    modality_T[:] = 3
    expected, _ = moe(x_TD, modality_T, is_dense=True)
    torch.nn.init.constant_(moe.experts[2].fc2.bias, math.inf)
    assert_close(moe(x_TD, modality_T, is_dense=True)[0], expected, rtol=0, atol=0)


def test_load_balance_is_one_when_allowed_experts_share_evenly() -> None:
    """Ten tokens of each modality, each pair of its five allowed experts chosen once, probabilities even."""
    logits_TE = torch.full((40, 8), -math.inf)
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    for token in range(40):
        modality, pair = divmod(token, 10)
        allowed = [modality, 4, 5, 6, 7]
        logits_TE[token, allowed] = 0.0
        logits_TE[token, [allowed[i] for i in pairs[pair]]] = 1e-6
    assert_close(load_balancing_loss(logits_TE, 2), torch.tensor(1.0), rtol=0, atol=1e-5)


def test_load_balance_without_owners_is_the_published_formula() -> None:
    torch.manual_seed(0)
    logits_TE = torch.randn(50, 6)
    probability_TE = torch.softmax(logits_TE, dim=1)
    fraction_E = torch.zeros(6)
    for row in probability_TE:
        fraction_E[row.argmax()] += 1 / 50
    expected = 6 * sum(fraction_E[e] * probability_TE[:, e].mean() for e in range(6))
    assert_close(load_balancing_loss(logits_TE, 1), expected)


def test_load_balance_ignores_how_often_a_modality_occurs() -> None:
    """An owned expert is judged by the tokens that may use it: rare sequences cost nothing."""
    rows = torch.full((4, 8), -math.inf)
    for modality in range(4):
        rows[modality, [modality, 4, 5, 6, 7]] = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0])
    even = load_balancing_loss(rows.repeat(6, 1), 2)
    uneven = load_balancing_loss(torch.cat([rows[:1].repeat(21, 1), rows[1:]]), 2)
    assert_close(even, uneven)


def test_z_loss_reads_the_allowed_logits_alone() -> None:
    logits_TE = torch.tensor([[1.0, 2.0, -math.inf], [0.0, -math.inf, 3.0]])
    expected = (math.log(math.e + math.e**2) ** 2 + math.log(1 + math.e**3) ** 2) / 2
    assert_close(router_z_loss(logits_TE), torch.tensor(expected))

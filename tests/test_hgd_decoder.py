"""The holistically guided decoder against its formulas, written with einsum and loops."""

from __future__ import annotations

import torch
from small import random_volumes, small_config, small_network
from torch.testing import assert_close

from lora_moe_hgd.model.encoder import TokenLayout
from lora_moe_hgd.model.hgd_decoder import HolisticallyGuidedAssembly, HolisticCodebook


def layout_of(present: list[list[bool]], grid: tuple[int, int, int]) -> TokenLayout:
    """Two slots a case; `present` says which are real."""
    num_patches = grid[0] * grid[1] * grid[2]
    present_BN = torch.tensor(present).repeat_interleave(num_patches, dim=1)
    return TokenLayout(grid, torch.zeros_like(present_BN, dtype=torch.long), present_BN, not bool(present_BN.all()))


def test_codewords_are_the_published_formula_over_the_present_tokens() -> None:
    torch.manual_seed(0)
    codebook = HolisticCodebook(small_config())
    torch.nn.init.normal_(codebook.prior.weight)
    layout = layout_of([[True, False], [True, True]], (1, 2, 3))
    states = tuple(torch.randn(2, 12, 24) for _ in range(3))
    actual, mean_base = codebook(states, layout)
    for case in range(2):
        tokens = torch.where(layout.present_BN[case])[0]
        m = codebook.fusion(torch.cat([state[case, tokens] for state in states], dim=-1))
        base = torch.relu(codebook.base_norm(codebook.base(m)))
        scores = codebook.weighting(m)
        for codeword in range(6):
            weights = torch.exp(scores[:, codeword]) / torch.exp(scores[:, codeword]).sum()
            assert_close(actual[case, :, codeword], torch.einsum("p,pq->q", weights, base), rtol=1e-4, atol=1e-5)
        assert_close(actual[case, :, 6:], codebook.prior.weight.T, rtol=0, atol=0)
        assert_close(mean_base[case], base.mean(dim=0))


def test_each_codeword_is_a_convex_combination_of_base_vectors() -> None:
    torch.manual_seed(0)
    codebook = HolisticCodebook(small_config())
    torch.nn.init.zeros_(codebook.base.weight)  # every token has the same base vector
    states = tuple(torch.randn(1, 12, 24) for _ in range(3))
    actual, mean_base = codebook(states, layout_of([[True, True]], (1, 2, 3)))
    assert_close(actual[..., :6], mean_base[..., None].expand(-1, -1, 6))


def test_assembly_is_the_published_formula() -> None:
    torch.manual_seed(0)
    assembly = HolisticallyGuidedAssembly(small_config())
    fine, context = torch.randn(2, 12, 4, 6, 8), torch.randn(2, 24, 2, 3, 4)
    codebook, mean_base = torch.randn(2, 16, 8), torch.randn(2, 16)
    upsampled = torch.nn.functional.interpolate(context, scale_factor=2, mode="trilinear")
    guidance = assembly.guidance(torch.cat([fine, upsampled], dim=1))
    weights = assembly.coefficients(guidance + torch.einsum("bq,xyz->bqxyz", mean_base, torch.ones(4, 6, 8)))
    assembled = torch.einsum("bqn,bnxyz->bqxyz", codebook, weights) / 8**0.5
    expected = assembly.output(torch.cat([assembled, guidance], dim=1))
    assert (weights >= 0).all()
    assert_close(assembly(fine, context, codebook, mean_base), expected, rtol=1e-4, atol=1e-5)


def test_context_is_the_mean_over_the_sequences_present_at_a_place() -> None:
    layout = layout_of([[True, False], [True, True]], (1, 2, 3))
    x = torch.randn(2, 12, 5)
    actual = layout.mean_over_sequences(x)
    assert_close(actual[0, :, 0, 1, 2], x[0, 5])
    assert_close(actual[1, :, 0, 1, 0], (x[1, 3] + x[1, 9]) / 2)


def test_logits_come_at_strides_8_4_and_1() -> None:
    network = small_network()
    stem, encoded = network.encoder.encode(random_volumes(), torch.ones(2, 4, dtype=torch.bool))
    decoded = network.decoder(stem, encoded)
    assert [tuple(logits.shape) for logits in decoded.logits] == [
        (2, 3, 2, 4, 6),
        (2, 3, 4, 8, 12),
        (2, 3, 16, 32, 48),
    ]

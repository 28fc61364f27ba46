"""Tokens keep their place and their sequence; stem fusion is a mean over what is present."""

from __future__ import annotations

import pytest
import torch
from small import random_volumes, small_config, small_network
from torch.testing import assert_close

from lora_moe_hgd.model.encoder import Attention, VisionTransformer, attention_mask, layout_tokens
from lora_moe_hgd.model.stem import ModalityFusion, PackedPresence, add_per_channel


def test_tokens_are_grouped_by_case_in_order_of_modality() -> None:
    mask = torch.tensor([[False, True, False, True], [True, True, True, False]])
    presence = PackedPresence.from_mask(mask)
    packed = torch.arange(5.0)[:, None, None].expand(5, 6, 1)  # volume number p as its six tokens
    tokens, layout = layout_tokens(packed, presence, (1, 2, 3))
    assert tokens[..., 0].unflatten(1, (3, 6))[:, :, 0].tolist() == [[0, 1, 0], [2, 3, 4]]
    assert layout.modality_BN.unflatten(1, (3, 6))[:, :, 0].tolist() == [[1, 3, 0], [0, 1, 2]]
    assert layout.present_BN.unflatten(1, (3, 6))[:, :, 0].tolist() == [[True, True, False], [True, True, True]]
    assert layout.is_padded


def test_a_token_returns_to_the_place_it_came_from() -> None:
    volume = torch.randn(1, 5, 2, 3, 4)
    packed = volume.flatten(2).transpose(1, 2)
    tokens, layout = layout_tokens(packed, PackedPresence.from_mask(torch.tensor([[True]])), (2, 3, 4))
    assert_close(layout.mean_over_sequences(tokens), volume, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_equals_a_loop_over_heads_and_queries(implementation: str) -> None:
    torch.manual_seed(0)
    config = small_config(attn_implementation=implementation)
    attention = Attention(config)
    presence = PackedPresence.from_mask(torch.tensor([[True, False, False, False], [True, True, False, False]]))
    x, layout = layout_tokens(torch.randn(3, 4, 24), presence, (1, 2, 2))
    actual, _ = attention(x, attention_mask(config, x, layout))
    for case, count in ((0, 4), (1, 8)):
        q, k, v = (layer(x[case, :count]).reshape(count, 2, 12) for layer in (attention.q, attention.k, attention.v))
        rows = []
        for query in range(count):
            heads = []
            for head in range(2):
                weights = torch.softmax(k[:, head] @ q[query, head] / 12**0.5, dim=0)
                heads.append(weights @ v[:, head])
            rows.append(attention.o(torch.cat(heads)))
        assert_close(actual[case, :count], torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_positions_of_another_grid_are_interpolated() -> None:
    vit = VisionTransformer(small_config())
    with torch.no_grad():
        vit.position_embedding.weight[:] = torch.arange(8.0)[:, None]  # 4 x + 2 y + z on the 2^3 grid
    assert_close(vit._positions((2, 2, 2), torch.device("cpu"))[:, 0], torch.arange(8.0))
    finer = vit._positions((2, 2, 4), torch.device("cpu"))[:, 0].reshape(2, 2, 4)
    assert_close(finer[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_fusion_weighs_the_present_sequences_per_voxel() -> None:
    torch.manual_seed(0)
    fusion = ModalityFusion(3)
    presence = PackedPresence.from_mask(torch.tensor([[False, True, True, False], [True, False, False, False]]))
    features = torch.randn(3, 3, 2, 2, 2)
    actual = fusion(features, presence)
    gate = [fusion.gate(features[[p]])[0, 0] for p in range(3)]
    first = gate[0].exp() / (gate[0].exp() + gate[1].exp())
    assert_close(actual[0], first * features[0] + (1 - first) * features[1], rtol=1e-5, atol=1e-6)
    assert_close(actual[1], features[2])


@pytest.mark.parametrize("shape", [(16, 16, 16), (48, 16, 32)])
def test_any_multiple_of_sixteen_is_segmented(shape: tuple[int, int, int]) -> None:
    assert small_network()(random_volumes(batch=1, shape=shape)).logits.shape == (1, 3, *shape)


def test_checkpointed_gradients_equal_plain_ones() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = small_network().train()
        if checkpointing:
            network.activation_checkpointing_enable()
        labels = torch.rand(2, 3, 16, 32, 48, generator=torch.Generator().manual_seed(0)) > 0.8
        network(random_volumes(), labels=labels).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=0, atol=0, msg=name)


def test_checkpointing_holds_little_more_than_half_for_the_backward_pass() -> None:
    held = []
    for checkpointing in (False, True):
        network = small_network().train()
        if checkpointing:
            network.activation_checkpointing_enable()
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(random_volumes())
        held.append(sum(kept.values()))
    assert held[1] < 0.6 * held[0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_values_of_a_channel_are_added_to_all_its_voxels(memory_format: torch.memory_format) -> None:
    volumes, values = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, requires_grad=True)
    added = add_per_channel(volumes.clone(memory_format=memory_format), values)
    assert_close(added, volumes + values[..., None, None, None], rtol=0, atol=0)
    factors = torch.randn_like(added)
    (added * factors).sum().backward()
    assert_close(values.grad, factors.sum(dim=(2, 3, 4)))


def test_a_sum_over_sequences_keeps_the_memory_layout() -> None:
    packed = torch.randn(3, 2, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    presence = PackedPresence.from_mask(torch.tensor([[True, True], [False, True]]))
    summed = presence.sum_per_case(packed)
    assert summed.is_contiguous(memory_format=torch.channels_last_3d)
    assert_close(summed, torch.stack([packed[0] + packed[1], packed[2]]), rtol=0, atol=0)

"""Absent sequences are never read, and a batch may mix subsets."""

from __future__ import annotations

import pytest
import torch
from small import EVERY_SUBSET, random_volumes, small_network
from torch.testing import assert_close

from lora_moe_hgd.model import stem
from lora_moe_hgd.model.stem import DensePresence


@pytest.mark.parametrize("mask", EVERY_SUBSET, ids=lambda mask: "".join("01"[bit] for bit in mask))
def test_absent_sequences_are_never_read(mask: tuple[bool, ...]) -> None:
    network = small_network()
    pixel_values = random_volumes()
    modality_mask = torch.tensor([mask, (True, False, True, True)])
    labels = torch.rand(2, 3, 16, 32, 48) > 0.8
    inputs = {"modality_mask": modality_mask, "labels": labels, "output_codebook": True, "output_router_logits": True}
    with torch.no_grad():
        expected = network(pixel_values=pixel_values, **inputs)
        pixel_values[~modality_mask] = float("nan")
        actual = network(pixel_values=pixel_values, **inputs)
    for name in ("loss", "logits", "codebook", "router_logits"):
        assert_close(actual[name], expected[name], rtol=0, atol=0)  # exact: the values must not be touched


def test_nan_in_an_absent_sequence_leaves_every_gradient_finite() -> None:
    network = small_network().train()
    pixel_values = random_volumes()
    modality_mask = torch.tensor([[True, False, False, True], [False, True, True, True]])
    pixel_values[~modality_mask] = float("nan")
    network(pixel_values, modality_mask, labels=torch.rand(2, 3, 16, 32, 48) > 0.8).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_case_in_a_mixed_batch_gives_the_logits_it_gives_alone() -> None:
    network = small_network()
    pixel_values = random_volumes(batch=len(EVERY_SUBSET), shape=(16, 16, 32))
    modality_mask = torch.tensor(EVERY_SUBSET)
    with torch.no_grad():
        together = network(pixel_values, modality_mask).logits
        alone = torch.cat([network(pixel_values[[i]], modality_mask[[i]]).logits for i in range(len(EVERY_SUBSET))])
    assert_close(together, alone, rtol=1e-4, atol=1e-4)  # float32 kernels sum in another order for other shapes


def test_each_present_sequence_changes_the_logits() -> None:
    network = small_network()
    pixel_values = random_volumes(batch=1)
    with torch.no_grad():
        expected = network(pixel_values).logits
        for modality in range(4):
            changed = pixel_values.clone()
            changed[:, modality] += torch.randn(16, 32, 48)
            assert not torch.allclose(network(changed).logits, expected, atol=1e-3)


def test_a_case_without_any_sequence_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match=r"at least one present sequence.*case 1"):
        small_network()(random_volumes(), torch.tensor([[True] * 4, [False] * 4]))


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_a_crop_without_brain_has_finite_logits_and_tame_gradients(constant: float) -> None:
    def gradient_norm(pixel_values: torch.Tensor) -> float:
        torch.manual_seed(0)
        network = small_network().train()
        network(pixel_values, labels=torch.zeros(1, 3, 32, 32, 32)).loss.backward()
        return torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm().item()

    of_noise = gradient_norm(random_volumes(batch=1, shape=(32, 32, 32)))
    of_constant = gradient_norm(torch.full((1, 4, 32, 32, 32), constant))
    assert 0 < of_constant < 10 * of_noise


def in_mixed_batch(mask: tuple[bool, ...], **kwargs) -> dict[str, torch.Tensor]:
    labels = torch.rand(2, 3, 16, 32, 48, generator=torch.Generator().manual_seed(0)) > 0.8
    modality_mask = torch.tensor([mask, (True, False, True, True)])
    return {"pixel_values": random_volumes(), "modality_mask": modality_mask, "labels": labels, **kwargs}


@pytest.mark.parametrize("mask", EVERY_SUBSET, ids=lambda mask: "".join("01"[bit] for bit in mask))
def test_the_dense_path_equals_the_packed_one_and_reads_no_absent_sequence(
    mask: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_network()
    inputs = in_mixed_batch(mask, output_codebook=True)
    with torch.no_grad():
        packed = network(**inputs)
        monkeypatch.setattr(stem, "presence_of", DensePresence.from_mask)
        dense = network(**inputs)
        inputs["pixel_values"][~inputs["modality_mask"]] = float("nan")
        without = network(**inputs)
    assert packed.losses.keys() == dense.losses.keys()
    for name in ("loss", "logits", "codebook"):
        assert_close(dense[name], packed[name], rtol=0, atol=2e-5)  # kernels sum in another order
        assert_close(without[name], dense[name], rtol=0, atol=0)  # exact: the values must not be touched
    for name, loss in packed.losses.items():
        assert_close(dense.losses[name], loss, rtol=1e-5, atol=1e-6)


def test_the_dense_path_gives_the_gradients_of_the_packed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for presence in (stem.PackedPresence, DensePresence):
        monkeypatch.setattr(stem, "presence_of", presence.from_mask)
        network = small_network().train()
        inputs = in_mixed_batch((False, True, False, False))
        inputs["pixel_values"][~inputs["modality_mask"]] = float("nan")
        network(**inputs).loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for packed, dense in zip(*gradients, strict=True):
        assert_close(dense, packed, rtol=1e-3, atol=1e-5)


def test_one_graph_without_a_break_serves_every_subset() -> None:
    network = small_network(num_hidden_layers=3, hidden_state_depths=(1, 2, 3))
    inputs = {"pixel_values": random_volumes(), "modality_mask": torch.tensor([EVERY_SUBSET[0]] * 2)}
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        compiled(**inputs)
        with torch.compiler.set_stance("fail_on_recompile"):
            for mask in EVERY_SUBSET:
                inputs["modality_mask"] = torch.tensor([mask, (True, False, True, True)])
                actual = compiled(**inputs).logits
                assert_close(actual, network(**inputs).logits, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_logits_and_loss_in_every_subset() -> None:
    network = small_network()
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        for mask in EVERY_SUBSET:
            inputs = in_mixed_batch(mask)
            actual, expected = compiled(**inputs), network(**inputs)
            assert_close(actual.logits, expected.logits, rtol=1e-4, atol=5e-5)
            assert_close(actual.loss, expected.loss, rtol=1e-4, atol=1e-5)

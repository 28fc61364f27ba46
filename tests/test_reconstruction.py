"""Masked pre-training reads nothing that is hidden, and only the encoder learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import random_volumes, small_config, small_network
from torch.testing import assert_close

from lora_moe_hgd import LoraMoeHgdConfig
from lora_moe_hgd.training.reconstruction import HIDDEN_PATCHES, MaskedReconstruction, draw_hidden, masked_error
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def network() -> MaskedReconstruction:
    torch.manual_seed(0)
    return MaskedReconstruction(small_network()).eval()


def hidden_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    acquired = torch.tensor([[True, True, True, True], [True, False, True, True]])
    seen, hidden = zip(*(draw_hidden(case, (1, 2, 3), generator) for case in acquired), strict=True)
    return {
        "pixel_values": random_volumes(),
        "modality_mask": torch.stack(seen),
        "acquired": acquired,
        "hidden_patches": torch.stack(hidden),
    }


def voxels(patches: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(patches.float(), scale_factor=16, mode="nearest").bool()


def test_what_is_hidden_or_was_not_acquired_changes_no_bit_of_the_prediction(network: MaskedReconstruction) -> None:
    batch = hidden_batch()
    before = network(**batch).predicted
    unseen = voxels(batch["hidden_patches"]) | ~batch["modality_mask"][..., None, None, None]
    changed = network(**batch | {"pixel_values": batch["pixel_values"].masked_fill(unseen, 7.0)})
    assert torch.equal(before, changed.predicted)
    assert not torch.equal(before, network(**batch | {"pixel_values": batch["pixel_values"] + 1}).predicted)


def test_the_error_counts_hidden_brain_of_acquired_sequences_alone(network: MaskedReconstruction) -> None:
    batch = hidden_batch()
    batch["pixel_values"][:, :, :4] = 0.0
    output = network(**batch)
    total, number = 0.0, 0
    for case in range(2):
        for modality in range(4):
            if not batch["acquired"][case, modality]:
                continue
            hidden = voxels(batch["hidden_patches"])[case, modality] | ~batch["modality_mask"][case, modality]
            counted = hidden & (batch["pixel_values"][case, modality] != 0)
            difference = output.predicted[case, modality] - batch["pixel_values"][case, modality]
            total, number = total + difference[counted].abs().sum(), number + int(counted.sum())
    assert_close(output.losses["reconstruction"], total / number)


def test_a_patch_is_predicted_where_it_lies(network: MaskedReconstruction) -> None:
    batch = hidden_batch()
    with torch.no_grad():
        network.head.weight.zero_()
        # Voxel (1, 2, 3) of a patch of the third sequence, and no other.
        network.head.bias.zero_().view(4, 16, 16, 16)[2, 1, 2, 3] = 5.0
    places = torch.nonzero(network(**batch).predicted[0] == 5.0).tolist()
    assert places == [[2, 1, 2 + 16 * row, 3 + 16 * column] for row in range(2) for column in range(3)]


def test_no_counted_voxel_gives_zero_and_finite_gradients() -> None:
    predicted = torch.ones(4, requires_grad=True)
    error = masked_error(predicted, torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    error.backward()
    assert error.item() == 0
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


@pytest.mark.parametrize("acquired", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0]])
def test_half_of_the_sequences_and_a_quarter_of_the_patches_are_seen(acquired: list[int]) -> None:
    mask = torch.tensor(acquired).bool()
    drawn = [draw_hidden(mask, (4, 4, 4), torch.Generator().manual_seed(seed)) for seed in range(40)]
    for seen, hidden in drawn:
        assert seen.sum() == (sum(acquired) + 1) // 2
        assert not (seen & ~mask).any()
        assert (hidden.sum(dim=(1, 2, 3)) == HIDDEN_PATCHES * 64).all()
        assert not torch.equal(hidden[0], hidden[1])
    assert len({tuple(seen.tolist()) for seen, _ in drawn}) == math.comb(sum(acquired), (sum(acquired) + 1) // 2)


def test_the_encoder_learns_and_then_starts_a_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraMoeHgdConfig, "tiny", small_config)
    common = ["--config", str(ROOT / "configs/smoke.yaml"), "--epochs", "1", "--cache-dir", str(tmp_path / "cache")]
    common += ["--crops-per-case", "1"]
    for name, rate in (("start", "1.0e-12"), ("trained", "1.0e-3")):
        options = ["--objective", "reconstruct", "--lr", rate, "--ema-decay", "0.0"]
        run("train", [*common, *options, "--output-dir", str(tmp_path / name)])
    start, trained = (load_file(tmp_path / name / "best/model.safetensors") for name in ("start", "trained"))
    moved = {name for name in start if not torch.allclose(start[name], trained[name], rtol=0, atol=1e-6)}
    assert any(name.startswith("encoder.vit.layers.0") for name in moved)
    assert any(name.startswith("encoder.stem.blocks.0") for name in moved)
    assert not any(name.startswith("decoder") for name in moved)
    base = ["--base", str(tmp_path / "trained/best"), "--size", "null", "--lr", "1.0e-12", "--ema-decay", "0.0"]
    base += ["--subsets", "[flair]"]
    run("train", [*common, *base, "--output-dir", str(tmp_path / "segmenter")])
    segmenter = load_file(tmp_path / "segmenter/best/model.safetensors")
    for name, value in trained.items():
        assert_close(segmenter[name], value, rtol=0, atol=1e-6)

"""The segmentation loss against hand-made cases and a second implementation."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lora_moe_hgd.model.losses import segmentation_losses, soft_dice_loss, total_loss


def test_soft_dice_equals_monai_per_case_and_region() -> None:
    dice_loss = pytest.importorskip("monai.losses").DiceLoss
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 4, 5, 6), (torch.rand(2, 3, 4, 5, 6) > 0.7).float()
    reference = dice_loss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)(logits, targets)
    assert_close(soft_dice_loss(logits, targets), reference.flatten(1))


def test_a_perfect_prediction_costs_nothing() -> None:
    labels = (torch.rand(1, 3, 8, 8, 8) > 0.5).float()
    logits = [200 * labels - 100]
    losses = segmentation_losses(logits, labels, scale_weights=[1.0], region_weights=torch.ones(3))
    assert_close(losses, {"dice": torch.tensor(0.0), "cross_entropy": torch.tensor(0.0)}, rtol=0, atol=1e-5)


def test_a_region_of_weight_zero_has_no_gradient() -> None:
    logits = torch.randn(1, 3, 8, 8, 8, requires_grad=True)
    losses = segmentation_losses(
        [logits], torch.ones(1, 3, 8, 8, 8), scale_weights=[1.0], region_weights=torch.tensor([1.0, 0.5, 0.0])
    )
    total_loss(losses, {}).backward()
    assert (logits.grad[:, 2] == 0).all()
    assert (logits.grad[:, :2] != 0).all()


def test_coarse_targets_are_the_covered_fraction() -> None:
    """A cell half covered is best predicted by one half: logit 0."""
    labels = torch.zeros(1, 1, 8, 8, 8)
    labels[..., :4] = 1
    coarse = torch.zeros(1, 1, 1, 1, 1, requires_grad=True)
    losses = segmentation_losses(
        [coarse, torch.zeros(1, 1, 8, 8, 8)], labels, scale_weights=[1.0, 0.0], region_weights=torch.ones(1)
    )
    losses["cross_entropy"].backward()
    assert_close(coarse.grad, torch.zeros_like(coarse))


def test_the_loss_of_a_batch_is_the_mean_over_its_cases() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8, 8), (torch.rand(2, 3, 8, 8, 8) > 0.9).float()
    options = {"scale_weights": [1.0], "region_weights": torch.tensor([1.0, 0.7, 0.2])}
    whole = segmentation_losses([logits], labels, **options)
    single = [segmentation_losses([logits[[i]]], labels[[i]], **options) for i in range(2)]
    for name, value in whole.items():
        assert_close(value, (single[0][name] + single[1][name]) / 2)


def test_a_coefficient_scales_its_part_alone() -> None:
    parts = {"dice": torch.tensor(2.0), "router_z": torch.tensor(5.0)}
    assert total_loss(parts, {"router_z": 0.1}).item() == 2.5


def test_weights_of_regions_and_scales_are_relative() -> None:
    """The curriculum shifts attention, not the size of the loss."""
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 8, 8, 8)]
    labels = (torch.rand(2, 3, 8, 8, 8) > 0.9).float()
    scales, regions = [0.25, 1.0], [1.0, 0.7, 0.2]
    actual = segmentation_losses(logits, labels, scale_weights=scales, region_weights=torch.tensor(regions))
    expected = 0.0
    for scale, scale_logits in zip(scales, logits, strict=True):
        targets = labels.unflatten(2, (-1, 8 // len(scale_logits[0, 0]))).mean(3)
        targets = targets.unflatten(3, (-1, 8 // len(scale_logits[0, 0]))).mean(4)
        targets = targets.unflatten(4, (-1, 8 // len(scale_logits[0, 0]))).mean(5)
        for index, region in enumerate(regions):
            p, y = scale_logits[:, index].sigmoid(), targets[:, index]
            expected += scale / 1.25 * region / 1.9 * -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert_close(actual["cross_entropy"], expected)

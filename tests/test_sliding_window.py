"""The sliding window against MONAI's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.testing import assert_close

from lora_moe_hgd.model.sliding_window import BACKGROUND_LOGIT, mirrored_logits, sliding_window_logits

WINDOW = (16, 24, 32)
ALL = torch.ones(1, 4, dtype=torch.bool)


def network() -> nn.Module:
    """Depends on the place in the window, so that wrong places and weights show."""
    torch.manual_seed(0)
    convolution = nn.Conv3d(4, 3, 3, padding=1)
    position = torch.randn(1, 3, *WINDOW)

    def forward(pixel_values: Tensor, modality_mask: Tensor) -> SimpleNamespace:
        assert modality_mask.shape == pixel_values.shape[:2]
        return SimpleNamespace(logits=convolution(pixel_values) * position)

    return forward


@pytest.mark.parametrize("shape", [(16, 24, 32), (40, 30, 50), (33, 47, 32), (10, 30, 20)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_logits_equal_those_of_monai(shape: tuple[int, ...], overlap: float) -> None:
    model = network()
    volume = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(1))
    actual = sliding_window_logits(model, volume, ALL, window=WINDOW, overlap=overlap)
    with torch.no_grad():
        expected = sliding_window_inference(
            volume,
            WINDOW,
            sw_batch_size=3,
            predictor=lambda crop: model(crop, torch.ones(crop.shape[:2])).logits,
            overlap=overlap,
            mode="gaussian",
            sigma_scale=0.125,
        )
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_windows_without_brain_are_skipped_and_firmly_background() -> None:
    volume = torch.zeros(1, 4, 64, 24, 32)
    volume[:, 1, :8] = 1.0
    seen = []
    model = network()

    def counting(pixel_values: Tensor, modality_mask: Tensor) -> SimpleNamespace:
        seen.extend(pixel_values)
        return model(pixel_values, modality_mask)

    logits = sliding_window_logits(counting, volume, ALL, window=WINDOW)
    assert len(seen) == 1
    assert (logits[:, :, 16:] == BACKGROUND_LOGIT).all()
    assert not (logits[:, :, :16] == BACKGROUND_LOGIT).any()


def test_absent_sequences_are_never_read() -> None:
    volume = torch.randn(1, 4, 20, 24, 40)
    mask = torch.tensor([[True, False, False, True]])
    expected = sliding_window_logits(network(), volume, mask, window=WINDOW)
    volume[:, 1:3] = float("nan")
    actual = sliding_window_logits(network(), volume, mask, window=WINDOW)
    assert_close(actual, expected, rtol=0, atol=0)


def test_the_number_of_windows_at_once_does_not_matter() -> None:
    volume = torch.randn(1, 4, 40, 30, 50)
    one, many = (sliding_window_logits(network(), volume, ALL, window=WINDOW, batch_size=size) for size in (1, 5))
    assert_close(one, many)


@pytest.mark.parametrize(
    ("volume", "options", "rule"),
    [
        (torch.ones(1, 4, 16, 24, 32), {"overlap": 1.0}, r"`overlap` must be in \[0, 1\), got 1.0"),
        (torch.ones(2, 4, 16, 24, 32), {}, "one case, got 2"),
        (torch.zeros(1, 4, 16, 24, 32), {}, "nothing to segment"),
    ],
)
def test_what_cannot_be_segmented_is_refused(volume: Tensor, options: dict, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        sliding_window_logits(network(), volume, ALL, window=WINDOW, **options)


def test_mirrored_logits_are_the_mean_over_the_case_and_its_mirror_image_put_back() -> None:
    volume = torch.randn(1, 4, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    ramp = torch.arange(5.0)[:, None, None]

    def logits_of(values: Tensor) -> Tensor:
        return values[:, :3] * ramp

    by_hand = volume[:, :3] * (ramp + ramp.flip(0)) / 2
    assert_close(mirrored_logits(logits_of, volume), by_hand)
    # A network that does not care gets back what it said.
    assert torch.equal(mirrored_logits(lambda values: values[:, :3], volume), volume[:, :3])

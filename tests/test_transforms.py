"""Crops and augmentation: labels stay with their voxels, the outside stays empty, draws depend on the seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lora_moe_hgd.data.transforms import random_crop, random_flip, random_intensity

SIZE = (16, 32, 16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(shape=(20, 40, 30)) -> tuple[Tensor, Tensor]:
    """Each voxel has its own number, in the image and in the labels."""
    numbers = torch.arange(1.0, 1 + torch.tensor(shape).prod()).reshape(shape)
    return numbers.expand(4, *shape), numbers.expand(3, *shape)


@pytest.mark.parametrize("seed", range(5))
def test_image_and_labels_move_together(seed: int) -> None:
    image, labels = random_flip(*random_crop(*numbered(), SIZE, generator(seed)), generator(seed))
    assert image.shape == (4, *SIZE)
    assert labels.shape == (3, *SIZE)
    assert_close(image[0], labels[0], rtol=0, atol=0)


def test_a_case_smaller_than_the_crop_is_kept_whole() -> None:
    image, labels = random_crop(*numbered((10, 40, 8)), SIZE, generator(0))
    assert image.shape == (4, *SIZE)
    assert torch.count_nonzero(labels[0]) == 10 * 32 * 8


def test_most_crops_hold_tumour() -> None:
    labels = torch.zeros(3, 64, 64, 64)
    labels[:, 50:53, 5:8, 30:33] = 1
    hits = [random_crop(labels, labels, (16, 16, 16), generator(seed))[1].any().item() for seed in range(200)]
    assert 0.6 < sum(hits) / len(hits) < 0.9


def test_every_axis_is_flipped_in_half_of_the_cases() -> None:
    image, labels = numbered((3, 4, 5))
    corners = [random_flip(image, labels, generator(seed))[0][0, 0, 0, 0].item() for seed in range(400)]
    share = {corner: corners.count(corner) / len(corners) for corner in set(corners)}
    assert len(share) == 8
    assert all(0.06 < value < 0.2 for value in share.values())


@pytest.mark.parametrize("seed", range(8))
def test_intensities_change_inside_the_brain_only(seed: int) -> None:
    image = torch.randn(4, 12, 16, 20, generator=generator(100))
    image[:, :3] = 0
    image[2] = 0
    changed = random_intensity(image, generator(seed))
    assert changed.isfinite().all()
    assert not changed[:, :3].any()
    assert not changed[2].any()
    assert (changed[0, 3:] != image[0, 3:]).float().mean() > 0.99


def test_the_same_seed_gives_the_same_sample() -> None:
    image = torch.randn(4, 12, 16, 20)
    assert_close(random_intensity(image, generator(5)), random_intensity(image, generator(5)), rtol=0, atol=0)
    assert not torch.equal(random_intensity(image, generator(5)), random_intensity(image, generator(6)))

"""Crops and augmentation: labels stay with their voxels, the outside stays empty, draws depend on the seed alone."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.testing import assert_close

from lora_moe_hgd.phantoms.noise import gaussian_blur
from lora_moe_hgd.training.data import transforms
from lora_moe_hgd.training.data.transforms import random_crop, random_flip, random_intensity, random_turn, turned_crop

SIZE = (16, 32, 16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(shape=(20, 40, 30)) -> tuple[Tensor, Tensor]:
    """Each voxel has its own number, in the image and in the labels."""
    numbers = torch.arange(1.0, 1 + torch.tensor(shape).prod()).reshape(shape)
    return numbers.expand(4, *shape), numbers.expand(3, *shape)


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "TURNED_SHARE", 0.0)


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize("seed", range(5))
def test_image_and_labels_move_together(seed: int) -> None:
    image, labels = random_flip(*random_crop(*numbered(), SIZE, generator(seed)), generator(seed))
    assert image.shape == (4, *SIZE)
    assert labels.shape == (3, *SIZE)
    assert_close(image[0], labels[0], rtol=0, atol=0)


@pytest.mark.usefixtures("straight")
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


def test_a_box_that_is_not_turned_is_the_plain_crop() -> None:
    image, labels = turned_crop(*numbered(), SIZE, torch.tensor([8.5, 19.5, 12.5]), torch.eye(3))
    expected = numbered()[0][:, 1:17, 4:36, 5:21]
    assert_close(image, expected, rtol=1e-5, atol=0)
    assert_close(labels, expected[:3], rtol=0, atol=0)


def test_a_turned_box_is_the_one_of_scipy() -> None:
    matrix, centre = random_turn(generator(3)), torch.tensor([9.0, 21.0, 14.0])
    assert_close(matrix.det().item(), (matrix.T @ matrix).det().sqrt().item())
    volume = gaussian_blur(torch.randn(20, 40, 30, generator=generator(0)), (2, 2, 2)) + 5
    labels = (volume > 5).to(torch.uint8)
    image, turned = turned_crop(volume[None], labels[None], SIZE, centre, matrix)
    offset = centre - matrix @ torch.tensor([(edge - 1) / 2 for edge in SIZE])
    expected, nearest = (
        ndimage.affine_transform(array.numpy(), matrix.numpy(), offset.numpy(), output_shape=SIZE, order=order, cval=0)
        for array, order in ((volume, 1), (labels, 0))
    )
    places = offset[:, None, None, None] + torch.einsum(
        "ij,jzyx->izyx",
        matrix,
        torch.stack(torch.meshgrid(*(torch.arange(float(edge)) for edge in SIZE), indexing="ij")),
    )
    inside = ((places >= 0) & (places <= torch.tensor([19.0, 39.0, 29.0])[:, None, None, None])).all(dim=0)
    assert inside.float().mean() > 0.5
    assert_close(image[0][inside], torch.from_numpy(expected)[inside], rtol=0, atol=1e-4)
    # A place just between two voxels may fall to either.
    assert (turned[0][inside] != torch.from_numpy(nearest)[inside]).float().mean() < 1e-3


def test_a_turned_brain_does_not_darken_at_its_border_nor_grow_into_the_air() -> None:
    volume = torch.zeros(1, 40, 40, 40)
    volume[:, 10:30, 10:30, 10:30] = 3.0
    image, _ = turned_crop(volume, volume, (32, 32, 32), torch.full((3,), 19.5), random_turn(generator(1)))
    assert_close(image[image != 0], torch.full_like(image[image != 0], 3.0), rtol=1e-5, atol=0)
    assert (image == 0).any()

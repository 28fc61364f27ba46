"""Parts of a mask are those that SciPy finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lora_moe_hgd.model.parts import largest_parts


def parts_by_scipy(mask: np.ndarray, least_part: float) -> np.ndarray:
    labelled, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labelled.ravel())
    sizes[0] = 0
    return mask & (sizes >= least_part * sizes.max())[labelled]


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.6, 0.95])
def test_the_large_parts_of_random_masks_are_those_that_scipy_finds(share: float) -> None:
    random = np.random.default_rng(0)
    for shape in random.integers(1, 10, (100, 3)):
        mask = random.random(shape) < share
        for least_part in (0.0, 0.4, 1.0):
            assert np.array_equal(largest_parts(mask, least_part), parts_by_scipy(mask, least_part))


def test_a_part_may_wind_and_a_mask_may_lie_in_memory_in_any_order() -> None:
    # One path through every second row, and a small part apart from it.
    mask = np.zeros((3, 41, 41), dtype=bool)
    mask[1, ::2] = True
    mask[1, 1::4, -1] = mask[1, 3::4, 0] = True
    mask[1, 20, 18:23] = False
    mask[1, 20, 20] = True
    assert largest_parts(mask, 0.1).sum() == mask.sum() - 1
    for order in (mask, np.asfortranarray(mask), mask.transpose(2, 0, 1), mask[:, ::-1]):
        assert np.array_equal(largest_parts(order, 0.5), parts_by_scipy(order, 0.5))


def test_an_empty_mask_has_no_part() -> None:
    assert not largest_parts(np.zeros((2, 3, 4), dtype=bool), 0.5).any()

"""Whole-region metrics against MONAI, the conventions for empty regions by hand, and the subsets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from lora_moe_hgd.evaluation.metrics import CONVENTIONS, METRICS, Convention, region_scores
from lora_moe_hgd.masks import dice
from lora_moe_hgd.subsets import EVERY_SUBSET, parse_subset, subset_name

SHAPE = (24, 20, 16)
SPACING = (1.0, 0.8, 2.5)
EMPTY = np.zeros(SHAPE, dtype=bool)
SOME = EMPTY.copy()
SOME[3:9, 4:8, 5:9] = True
DIAGONAL = math.hypot(24, 16, 40)


def blob(seed: int) -> np.ndarray:
    """A smooth random mask; some of these reach the border of the volume."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3)
    return field > np.quantile(field, 0.9)


def scores(prediction: np.ndarray, target: np.ndarray, convention: str = "brats", region: str = "wt") -> dict:
    return region_scores(prediction, target, spacing_mm=SPACING, region=region, convention=CONVENTIONS[convention])


@pytest.mark.parametrize("seed", range(5))
def test_dice_equals_that_of_monai(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, 1, 1, 5, 6, 7, generator=generator) > 0.7
    expected = DiceMetric(ignore_empty=False)(prediction, target).item()
    assert dice(prediction, target) == pytest.approx(expected)


def test_dice_of_empty_masks() -> None:
    empty, full = np.zeros(5), np.ones(5)
    assert (dice(empty, empty), dice(empty, full), dice(full, empty)) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"the same shape, got \(5,\) and \(4,\)"):
        dice(empty, empty[:4])


@pytest.mark.parametrize("seed", range(12))
def test_region_scores_equal_those_of_monai(seed: int) -> None:
    prediction, target = blob(seed), blob(seed + 100) | blob(seed)
    found = scores(prediction, target)
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, target)]
    distance = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=SPACING).item()
    close = compute_surface_dice(*pair, class_thresholds=[1.0], include_background=True, spacing=SPACING).item()
    assert found["dice"] == pytest.approx(DiceMetric()(*pair).item())
    assert found["hd95_mm"] == pytest.approx(distance)
    assert found["nsd"] == pytest.approx(close)
    assert found["sensitivity"] == pytest.approx((prediction & target).sum() / target.sum())
    assert found["volume_error_ml"] == pytest.approx((int(prediction.sum()) - int(target.sum())) * 2.0 / 1000)


def test_a_perfect_region_that_fills_the_volume() -> None:
    found = scores(~EMPTY, ~EMPTY)
    assert found == {"dice": 1, "hd95_mm": 0, "nsd": 1, "sensitivity": 1, "volume_error_ml": 0}


def test_eps_is_added_above_and_below() -> None:
    convention = Convention(eps=4.0)  # the 1e-8 of RFNet would vanish in rounding
    found = region_scores(SOME, np.roll(SOME, 2, axis=0), spacing_mm=SPACING, region="wt", convention=convention)
    assert found["dice"] == pytest.approx((2 * 64 + 4) / (2 * 96 + 4))


def test_empty_surroundings_change_nothing() -> None:
    whole = np.zeros((2, 240, 240, 155), dtype=bool)
    whole[:, 100:124, 30:50, 7:23] = small = blob(1), blob(2)
    assert scores(*whole) == scores(*small)


# Dice, HD95, NSD and sensitivity.
NAN = math.nan
EDGE_CASES = {
    ("brats", "both empty"): (1, 0, 1, 1),
    ("brats", "missed"): (0, 373.128664, 0, 0),
    ("brats", "invented"): (0, 373.128664, 0, 0),
    ("nan", "both empty"): (NAN, NAN, NAN, NAN),
    ("nan", "missed"): (0, NAN, 0, 0),
    ("nan", "invented"): (0, NAN, 0, NAN),
    ("worst", "both empty"): (1, 0, 1, 1),
    ("worst", "missed"): (0, DIAGONAL, 0, 0),
    ("worst", "invented"): (0, DIAGONAL, 0, 0),
    ("rfnet", "both empty"): (1, 0, 1, 1),
    ("rfnet", "missed"): (1e-8 / (96 + 1e-8), 373.128664, 0, 0),
    ("rfnet", "invented"): (1e-8 / (96 + 1e-8), 373.128664, 0, 0),
}
MASKS = {"both empty": (EMPTY, EMPTY), "missed": (EMPTY, SOME), "invented": (SOME, EMPTY)}


@pytest.mark.parametrize(("convention", "case"), list(EDGE_CASES))
def test_what_empty_regions_score(convention: str, case: str) -> None:
    found = scores(*MASKS[case], convention)
    expected = dict(zip(METRICS, EDGE_CASES[convention, case], strict=False))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert found["volume_error_ml"] == {"both empty": 0, "missed": -0.192, "invented": 0.192}[case]


def test_rfnet_removes_a_small_enhancing_tumour_and_nothing_else() -> None:
    # As published: it had 96 voxels, fewer than 500.
    assert scores(SOME, SOME, "rfnet", region="et")["dice"] < 1e-9
    assert scores(SOME, SOME, "rfnet", region="tc")["dice"] == 1
    assert scores(SOME, EMPTY, "rfnet", region="et")["dice"] == 1
    assert scores(SOME, SOME, "brats", region="et")["dice"] == 1
    large = EMPTY.copy()
    large[:10, :10, :5] = True
    assert scores(large, large, "rfnet", region="et")["dice"] == 1


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same shape, got \(24, 20, 16\) and \(23, 20, 16\)"):
        scores(EMPTY, EMPTY[1:])


@pytest.mark.parametrize(
    "spacing_mm", [(1, 0, 1), (1, -1, 1), (1, math.inf, 1), (1, math.nan, 1), (1, 1), (1, 1, 1, 1)]
)
def test_a_spacing_other_than_three_positive_numbers_is_refused(spacing_mm: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="`spacing_mm` must be three positive numbers"):
        region_scores(EMPTY, EMPTY, spacing_mm=spacing_mm, region="wt", convention=CONVENTIONS["nan"])


def test_there_are_fifteen_subsets_and_their_names_are_read_back() -> None:
    assert len(EVERY_SUBSET) == len(set(EVERY_SUBSET)) == 15
    assert [parse_subset(subset_name(mask)) for mask in EVERY_SUBSET] == list(EVERY_SUBSET)
    assert [sum(mask) for mask in EVERY_SUBSET] == sorted(sum(mask) for mask in EVERY_SUBSET)
    with pytest.raises(ValueError, match=r"Unknown sequence\(s\) t3 in 't1\+t3'"):
        parse_subset("t1+t3")

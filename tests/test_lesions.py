"""Lesion-wise scores against a slow implementation that shares no code, and by hand."""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np
import pytest

from lora_moe_hgd.evaluation.lesions import LESION_RULES, LesionRules, lesion_scores

SHAPE = (14, 12, 10)


def cube(*corner: int, edge: int = 3, shape: tuple[int, int, int] = (40, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(at, at + edge) for at in corner)] = True
    return mask


def score(prediction: np.ndarray, target: np.ndarray, rules: str | LesionRules = "met2023", **others) -> dict:
    found = LESION_RULES[rules] if isinstance(rules, str) else rules
    return lesion_scores(prediction, target, **({"spacing_mm": (1, 1, 1), "region": "wt", "rules": found} | others))


# A second implementation: sets of voxels, flood fill, distances one by one.
def neighbours(voxel: tuple[int, int, int], most_changed: int) -> list[tuple[int, int, int]]:
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, step)) <= most_changed]
    return [(voxel[0] + a, voxel[1] + b, voxel[2] + c) for a, b, c in steps]


def flood(voxels: set) -> list[set]:
    left, parts = set(voxels), []
    while left:
        queue, part = deque([left.pop()]), set()
        while queue:
            voxel = queue.popleft()
            part.add(voxel)
            for other in neighbours(voxel, 3):
                if other in left:
                    left.remove(other)
                    queue.append(other)
        parts.append(part)
    return parts


def surface(voxels: set) -> list:
    return [voxel for voxel in voxels if any(other not in voxels for other in neighbours(voxel, 1))]


def slow_hd95(a: set, b: set, spacing: tuple) -> float:
    def distances(here: list, there: list) -> list[float]:
        return [
            min(math.hypot(*((p - q) * s for p, q, s in zip(u, v, spacing, strict=True))) for v in there) for u in here
        ]

    first, second = surface(a), surface(b)
    return max(np.percentile(distances(first, second), 95), np.percentile(distances(second, first), 95))


def slow(prediction: np.ndarray, target: np.ndarray, spacing: tuple, rules: LesionRules, region: str) -> tuple:
    predicted, true = ({tuple(map(int, v)) for v in np.argwhere(mask)} for mask in (prediction, target))
    grown = set(true)
    for _ in range(rules.dilation):
        grown |= {other for voxel in grown for other in neighbours(voxel, 2)}
    inside = {v for v in grown if all(0 <= p < edge for p, edge in zip(v, prediction.shape, strict=True))}
    components = flood(predicted)
    ignored = rules.ignored_mm3_of.get(region, rules.ignored_mm3)
    diagonal = math.sqrt(sum((edge * s) ** 2 for edge, s in zip(prediction.shape, spacing, strict=True)))
    penalty = diagonal if rules.penalty_mm is None else rules.penalty_mm
    touched, results = [], []
    for lesion in flood(inside):
        own = [part for part in components if part & lesion]
        touched += [part for part in own if part not in touched]
        truth = true & lesion
        if len(truth) * spacing[0] * spacing[1] * spacing[2] > ignored:
            found = set().union(*own)
            overlap = 2 * len(found & truth) / (len(found) + len(truth))
            results.append((overlap, slow_hd95(found, truth, spacing)) if own else (0.0, penalty))
    false = len(components) - len(touched)
    total = len(results) + false
    if not total:
        return 1.0, 0.0, 0
    return sum(r[0] for r in results) / total, (sum(r[1] for r in results) + false * penalty) / total, false


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "rules",
    [
        LESION_RULES["met2023"],
        LESION_RULES["met2024"],
        LesionRules(dilation=1, ignored_mm3=6, penalty_mm=374.0, ignored_mm3_of={"et": 3}),
        LesionRules(dilation=2, ignored_mm3=4, penalty_mm=374.0),
    ],
)
def test_scores_equal_those_of_a_slow_implementation(seed: int, rules: LesionRules) -> None:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = np.zeros(SHAPE, dtype=bool)
        for _ in range(5):
            corner = [rng.integers(0, edge - 1) for edge in SHAPE]
            mask[tuple(slice(at, at + rng.integers(1, 4)) for at in corner)] = True
        masks.append(mask)
    spacing = (1.0, 0.7, 2.5)
    found = score(*masks, rules, spacing_mm=spacing, region="et")
    expected = slow(*masks, spacing, rules, "et")
    assert (found["lesion_dice"], found["lesion_hd95_mm"]) == pytest.approx(expected[:2])
    assert found["lesions_false"] == expected[2]


def test_a_missed_and_an_invented_lesion_cost_the_penalty_each() -> None:
    found = score(cube(2, 2, 2) | cube(20, 2, 2), cube(2, 2, 2) | cube(30, 12, 12))
    assert found == {
        "lesion_dice": pytest.approx(1 / 3),
        "lesion_hd95_mm": pytest.approx(2 * 374 / 3),
        "lesions": 2,
        "lesions_missed": 1,
        "lesions_false": 1,
    }


def test_what_touches_after_growing_is_one_lesion() -> None:
    close = cube(2, 2, 2) | cube(8, 2, 2)
    assert score(close, close)["lesions"] == 2
    assert score(close, close, LesionRules(dilation=2, ignored_mm3=2, penalty_mm=1.0))["lesions"] == 1


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    found = score(cube(2, 2, 2) | cube(5, 5, 5), cube(20, 2, 2))
    assert found["lesions_false"] == 1


def test_growing_does_not_reach_across_a_corner() -> None:
    found = score(cube(5, 5, 5), cube(2, 2, 2))
    assert (found["lesions_missed"], found["lesions_false"]) == (1, 1)
    assert score(cube(5, 5, 2), cube(2, 2, 2))["lesions_missed"] == 0


def test_a_small_true_lesion_counts_neither_as_missed_nor_its_prediction_as_invented() -> None:
    target = cube(2, 2, 2) | cube(20, 2, 2, edge=1)
    perfect = {"lesion_dice": 1.0, "lesion_hd95_mm": 0.0, "lesions": 1, "lesions_missed": 0, "lesions_false": 0}
    assert score(cube(2, 2, 2), target) == perfect
    assert score(target, target) == perfect


def test_a_small_invented_lesion_counts() -> None:
    found = score(cube(2, 2, 2) | cube(20, 2, 2, edge=1), cube(2, 2, 2))
    assert (found["lesion_dice"], found["lesions_false"]) == (0.5, 1)


@pytest.mark.parametrize("name", list(LESION_RULES))
def test_nothing_found_where_nothing_is_is_perfect(name: str) -> None:
    empty = np.zeros(SHAPE, dtype=bool)
    found = score(empty, empty, name)
    assert (found["lesion_dice"], found["lesion_hd95_mm"], found["lesions"]) == (1.0, 0.0, 0)


# Steps of growth, largest size that does not count (of the enhancing tumour), penalty in mm.
PUBLISHED = {
    "gli2023": (3, 50, 50, 374),
    "ssa2023": (3, 50, 50, 374),
    "ped2023": (3, 50, 50, 374),
    "men2023": (1, 50, 50, 374),
    "met2023": (1, 2, 2, 374),
    "gli2024": (3, 20, 10, 337),
    "ped2024": (5, 10, 10, 374),
    "ssa2024": (3, 50, 50, 374),
    "met2024": (1, 2, 2, math.hypot(40 * 2, 20, 20 * 3)),
    "men_rt2024": (1, 50, 50, math.hypot(40 * 2, 20, 20 * 3)),
}


@pytest.mark.parametrize("name", list(LESION_RULES))
def test_the_penalty_is_that_of_the_challenge(name: str) -> None:
    missed = score(np.zeros((40, 20, 20), dtype=bool), cube(2, 2, 2, edge=6), name, spacing_mm=(2, 1, 3))
    assert missed["lesion_hd95_mm"] == pytest.approx(PUBLISHED[name][3])


@pytest.mark.parametrize("name", list(LESION_RULES))
def test_lesions_are_merged_over_the_gap_of_the_challenge(name: str) -> None:
    # Both grow towards each other, until nothing is left between them.
    gap = 2 * PUBLISHED[name][0]
    pairs = [cube(2, 2, 2, edge=4) | cube(6 + between, 2, 2, edge=4) for between in (gap, gap + 1)]
    assert [score(pair, pair, name)["lesions"] for pair in pairs] == [1, 2]


@pytest.mark.parametrize("name", list(LESION_RULES))
@pytest.mark.parametrize(("region", "column"), [("wt", 1), ("tc", 1), ("et", 2)])
def test_lesions_count_above_the_size_of_the_challenge(name: str, region: str, column: int) -> None:
    counted = []
    for size in (PUBLISHED[name][column], PUBLISHED[name][column] + 1):
        target = np.zeros((40, 20, 20), dtype=bool)
        target.reshape(-1)[:size] = True
        counted.append(score(target, target, name, region=region)["lesions"])
    assert counted == [0, 1]


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same shape, got \(40, 20, 20\) and \(14, 12, 10\)"):
        score(cube(2, 2, 2), np.zeros(SHAPE, dtype=bool))

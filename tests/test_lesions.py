"""Lesion-wise scores against a slow implementation that shares no code, and by hand."""

from __future__ import annotations

import itertools
import math
from collections import deque

import numpy as np
import pytest

from lora_moe_hgd.evaluation.lesions import LESION_RULES, MergedRules, PairedRules, lesion_scores

SHAPE = (14, 12, 10)


def cube(*corner: int, edge: int = 3, shape: tuple[int, int, int] = (40, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(at, at + edge) for at in corner)] = True
    return mask


def score(
    prediction: np.ndarray, target: np.ndarray, rules: str | MergedRules | PairedRules = "met2023", **others
) -> dict:
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


def slow(prediction: np.ndarray, target: np.ndarray, spacing: tuple, rules: MergedRules, region: str) -> tuple:
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


def random_masks(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = np.zeros(SHAPE, dtype=bool)
        for _ in range(5):
            corner = [rng.integers(0, edge - 1) for edge in SHAPE]
            mask[tuple(slice(at, at + rng.integers(1, 4)) for at in corner)] = True
        masks.append(mask)
    return masks


def crossing_bars(seed: int) -> list[np.ndarray]:
    """Predicted bars along the first axis and true ones along the second, so that each may meet several others."""
    rng = np.random.default_rng(seed)
    found, true = np.zeros((2, *SHAPE), dtype=bool)
    for place in (0, 4, 8):
        starts, ends, edges = rng.integers(0, 6, size=2), rng.integers(6, 12, size=2), rng.integers(1, 4, size=2)
        found[starts[0] : ends[0], place : place + edges[0], 3 : 3 + edges[1]] = True
        true[place : place + edges[1], starts[1] : ends[1], 4 : 4 + edges[0]] = True
    return [found, true]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "rules",
    [
        LESION_RULES["met2023"],
        LESION_RULES["met2024"],
        MergedRules(dilation=1, ignored_mm3=6, penalty_mm=374.0, ignored_mm3_of={"et": 3}),
        MergedRules(dilation=2, ignored_mm3=4, penalty_mm=374.0),
    ],
)
def test_scores_equal_those_of_a_slow_implementation(seed: int, rules: MergedRules) -> None:
    masks, spacing = random_masks(seed), (1.0, 0.7, 2.5)
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
    assert score(close, close, MergedRules(dilation=2, ignored_mm3=2, penalty_mm=1.0))["lesions"] == 1


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


@pytest.mark.parametrize("name", [name for name in LESION_RULES if isinstance(LESION_RULES[name], MergedRules)])
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


def test_all_challenges_that_merge_lesions_are_listed() -> None:
    assert {name for name, rules in LESION_RULES.items() if isinstance(rules, MergedRules)} == set(PUBLISHED)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_penalty_is_that_of_the_challenge(name: str) -> None:
    missed = score(np.zeros((40, 20, 20), dtype=bool), cube(2, 2, 2, edge=6), name, spacing_mm=(2, 1, 3))
    assert missed["lesion_hd95_mm"] == pytest.approx(PUBLISHED[name][3])


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_lesions_are_merged_over_the_gap_of_the_challenge(name: str) -> None:
    # Both grow towards each other, until nothing is left between them.
    gap = 2 * PUBLISHED[name][0]
    pairs = [cube(2, 2, 2, edge=4) | cube(6 + between, 2, 2, edge=4) for between in (gap, gap + 1)]
    assert [score(pair, pair, name)["lesions"] for pair in pairs] == [1, 2]


@pytest.mark.parametrize("name", list(PUBLISHED))
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


def slow_pairs(predicted: list[set], true: list[set], least_iou: float) -> dict[int, int]:
    """The best of all ways to match one to one: lesion to component, by their places in the lists."""

    def worth(way: tuple) -> tuple[float, int]:
        pairs = {lesion: component for lesion, component in enumerate(way) if component is not None}
        dices = []
        for lesion, component in pairs.items():
            both, either = len(true[lesion] & predicted[component]), len(true[lesion] | predicted[component])
            if not both or both / either < least_iou:
                return -1.0, 0
            dices.append(2 * both / (both + either))
        return sum(dices), len(pairs)

    choices = [*range(len(predicted)), *[None] * len(true)]
    best = max(set(itertools.permutations(choices, len(true))), key=worth)
    return {lesion: component for lesion, component in enumerate(best) if component is not None}


@pytest.mark.parametrize("least_iou", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_paired_scores_equal_those_of_the_best_of_all_matches(seed: int, least_iou: float) -> None:
    masks = crossing_bars(seed)
    predicted, true = (flood({tuple(map(int, v)) for v in np.argwhere(mask)}) for mask in masks)
    pairs = slow_pairs(predicted, true, least_iou)
    found = score(*masks, PairedRules(least_iou=least_iou), spacing_mm=(1.0, 0.7, 2.5))
    dices = [2 * len(true[i] & predicted[j]) / (len(true[i]) + len(predicted[j])) for i, j in pairs.items()]
    assert found["lesion_dice"] == pytest.approx(np.mean(dices) if pairs else 0)
    assert (found["lesions"], found["lesions_false"]) == (len(true), len(predicted) - len(pairs))
    assert found["lesions_missed"] == len(true) - len(pairs)


def test_the_best_match_of_one_lesion_is_left_to_another_that_has_no_other() -> None:
    found, true = np.zeros((2, 20, 5, 5), dtype=bool)
    found[0:5], found[6:14] = True, True
    true[2:10], true[11:19] = True, True
    # The first lesion fits the second component better: 8/16 against 6/13. Then the second lesion would have none.
    scores = score(found, true, "gli2026")
    assert (scores["lesion_dice"], scores["lesions_missed"]) == (pytest.approx((6 / 13 + 6 / 16) / 2), 0)


NOTHING = np.zeros((40, 20, 20), dtype=bool)
ONE, TWO = cube(2, 2, 2), cube(2, 2, 2) | cube(20, 2, 2)


@pytest.mark.parametrize("name", ["gli2026", "ped2026", "goat2026", "men2026", "men_rt2026", "panoptica"])
def test_missed_and_false_lesions_are_only_counted_if_another_is_found(name: str) -> None:
    whole = {"lesion_dice": 1.0, "lesion_hd95_mm": 0.0, "lesion_nsd": 1.0}
    assert score(ONE, TWO, name) == whole | {"lesions": 2, "lesions_missed": 1, "lesions_false": 0}
    assert score(TWO, ONE, name) == whole | {"lesions": 1, "lesions_missed": 0, "lesions_false": 1}
    none = {"lesion_dice": 0.0, "lesion_hd95_mm": math.inf, "lesion_nsd": 0.0}
    assert score(NOTHING, ONE, name) == none | {"lesions": 1, "lesions_missed": 1, "lesions_false": 0}
    assert score(ONE, NOTHING, name) == none | {"lesions": 0, "lesions_missed": 0, "lesions_false": 1}
    assert score(cube(30, 12, 12), ONE, name) == none | {"lesions": 1, "lesions_missed": 1, "lesions_false": 1}


@pytest.mark.parametrize("name", ["gli2026", "met2026", "panoptica"])
def test_paired_scores_are_undefined_where_nothing_is(name: str) -> None:
    found = score(NOTHING, NOTHING, name)
    assert all(math.isnan(found[key]) for key in ("lesion_dice", "lesion_hd95_mm", "lesion_nsd"))
    assert (found["lesions"], found["lesions_missed"], found["lesions_false"]) == (0, 0, 0)


def test_metastases_of_27_mm3_count_and_missed_or_false_ones_cost_the_penalty() -> None:
    found = score(ONE | cube(30, 12, 12), TWO, "met2026")
    assert (found["lesion_dice"], found["lesion_hd95_mm"]) == pytest.approx((1 / 3, 2 * 373 / 3))
    assert found["lesion_nsd"] == pytest.approx(1 / 3)
    small = cube(20, 2, 2, edge=2)
    # A small metastasis is left out, found or not.
    assert (
        score(ONE, ONE | small, "met2026")["lesion_dice"]
        == score(ONE | small, ONE | small, "met2026")["lesion_dice"]
        == 1
    )
    assert score(ONE | small, ONE | small, "met2026")["lesions_false"] == 0
    # A false one counts whatever its size, but only beside a true one that counts.
    assert score(ONE | small, ONE, "met2026")["lesion_dice"] == 0.5
    assert math.isnan(score(ONE | small, small, "met2026")["lesion_dice"])
    # Eight voxels of 4 mm3 are 32 mm3.
    assert score(small, small, "met2026", spacing_mm=(1, 2, 2))["lesions"] == 1


def test_a_metastasis_found_with_less_than_a_fifth_counts_as_missed_but_keeps_its_dice() -> None:
    truth, found = cube(2, 2, 2, edge=5), cube(6, 2, 2, edge=5)
    scores = score(found, truth, "met2026")
    assert (scores["lesion_dice"], scores["lesions_missed"]) == (pytest.approx(0.2), 0)
    found[11, 4, 4] = True
    scores = score(found, truth, "met2026")
    assert (scores["lesion_dice"], scores["lesions_missed"]) == (pytest.approx(50 / 251), 1)


def test_distances_of_pairs_are_those_of_both_surfaces_together() -> None:
    # The true surface has 98 voxels. That of the prediction has 12 more in a spike, whose base hides one.
    truth = cube(5, 5, 5, edge=5)
    found = truth.copy()
    found[10:22, 7, 7] = True
    scores = score(found, truth, "gli2026", spacing_mm=(2, 2, 2))
    distances = [0.0] * (98 + 97) + [2.0 * step for step in range(1, 13)]
    assert scores["lesion_hd95_mm"] == pytest.approx(np.percentile(distances, 95))
    assert scores["lesion_nsd"] == pytest.approx((1 + 98 / 109) / 2)

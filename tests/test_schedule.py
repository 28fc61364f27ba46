"""The curriculum and the learning rate, as functions of progress."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lora_moe_hgd.training.schedule import (
    COMPLETE_SHARE,
    draw_subset,
    learning_rate_factor,
    most_dropped,
    region_weights,
)

STEPS = [step / 200 for step in range(201)]
ALL = torch.ones(4, dtype=torch.bool)


def test_the_whole_tumour_comes_first_then_the_core_then_the_enhancing_part() -> None:
    for progress in STEPS:
        whole, core, enhancing = region_weights(progress)
        assert whole == 1.0
        assert core >= enhancing > 0
    assert region_weights(0.0) == (1.0, 0.1, 0.1)
    assert region_weights(0.1)[1] > region_weights(0.1)[2] + 0.2
    assert region_weights(1.0) == (1.0, 1.0, 1.0)


def test_weights_never_fall() -> None:
    for index in (1, 2):
        values = [region_weights(progress)[index] for progress in STEPS]
        assert values == sorted(values)


def test_more_sequences_are_dropped_as_training_goes_on() -> None:
    dropped = [most_dropped(progress) for progress in STEPS]
    assert dropped == sorted(dropped)
    assert (dropped[0], dropped[-1]) == (1, 3)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 5), (0.1, 11), (0.5, 15)])
def test_every_allowed_subset_is_drawn_equally_often(progress: float, expected: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 6000
    counts = Counter(tuple(draw_subset(ALL, progress, generator).tolist()) for _ in range(draws))
    assert len(counts) == expected
    each = (1 - COMPLETE_SHARE) / expected
    for subset, count in counts.items():
        wanted = each + (COMPLETE_SHARE if all(subset) else 0.0)
        # Four standard deviations of a binomial count.
        assert abs(count / draws - wanted) < 4 * (wanted * (1 - wanted) / draws) ** 0.5, subset


def test_a_sequence_that_was_not_acquired_is_never_drawn() -> None:
    acquired = torch.tensor([True, False, True, False])
    generator = torch.Generator().manual_seed(0)
    drawn = {tuple(draw_subset(acquired, 0.5, generator).tolist()) for _ in range(200)}
    assert drawn == {(True, False, True, False), (True, False, False, False), (False, False, True, False)}


def test_the_same_generator_state_gives_the_same_subset() -> None:
    first, second = (draw_subset(ALL, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    values = [learning_rate_factor(progress, warmup=0.1) for progress in STEPS]
    peak = values.index(max(values))
    assert STEPS[peak] == pytest.approx(0.1)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert (values[0], values[peak], round(values[-1], 9)) == (0.0, 1.0, 0.0)

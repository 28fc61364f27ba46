"""What is bright and no tumour: where it may lie, and that none of it does when it is switched off."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lora_moe_hgd.phantoms.anatomy import Anatomy, random_anatomy
from lora_moe_hgd.phantoms.mimics import random_mimics
from lora_moe_hgd.phantoms.noise import gaussian_blur
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.phantoms.tumour import Tumour, random_tumour

NOTHING = dataclasses.replace(NARROW, spots_share=0.0, no_tumour_share=1.0)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    style = dataclasses.replace(NARROW, ventricles_share=1.0, ventricles_ml=(80.0, 80.0))
    return random_anatomy(spacing_mm=4.0, generator=torch.Generator().manual_seed(0), style=style)


def water_of(anatomy: Anatomy, **changes: object) -> torch.Tensor:
    style = dataclasses.replace(NOTHING, **changes)
    generator = torch.Generator().manual_seed(1)
    tumour = random_tumour(anatomy, generator=generator, style=style)
    return random_mimics(anatomy, tumour, generator=generator, style=style).water


def test_caps_lie_around_the_ventricles(anatomy: Anatomy) -> None:
    caps = water_of(anatomy, caps_share=1.0, caps_mm=(4.0, 4.0))
    near = gaussian_blur(anatomy.ventricles, (3.0,) * 3)
    assert caps.sum() > 10
    assert near[caps > 0.5].mean() > 2 * near[anatomy.brain].mean()
    assert caps[anatomy.ventricles > 0.9].max() < 0.3
    assert caps[near < 1e-3].max() < 0.01


def test_plaques_lie_in_the_brain_and_are_more_when_more_are_drawn(anatomy: Anatomy) -> None:
    few, many = (
        water_of(anatomy, plaques_share=1.0, plaques=(number, number), plaque_mm=(6.0, 6.0)) for number in (3, 30)
    )
    assert many.sum() > 2 * few.sum() > 0
    assert many[~anatomy.brain].max() < 0.5


def test_none_of_it_lies_inside_the_tumour(anatomy: Anatomy) -> None:
    left = torch.zeros(3, *anatomy.shape, dtype=torch.bool)
    left[0, : anatomy.shape[0] // 2] = anatomy.brain[: anatomy.shape[0] // 2]
    tumour = Tumour(left, torch.zeros(anatomy.shape), torch.zeros(*anatomy.shape, 3))
    style = dataclasses.replace(NOTHING, caps_share=1.0, caps_mm=(9.0, 9.0), plaques_share=1.0, plaques=(30.0, 30.0))
    water = random_mimics(anatomy, tumour, generator=torch.Generator().manual_seed(2), style=style).water
    deep = gaussian_blur(left[0].float(), (1.0,) * 3) > 0.95
    assert water[~left[0]].max() > 0.5
    assert water[deep].max() < 0.1


def test_flow_shows_in_fluid_only(anatomy: Anatomy) -> None:
    style = dataclasses.replace(NOTHING, flow_share=1.0)
    generator = torch.Generator().manual_seed(3)
    tumour = random_tumour(anatomy, generator=generator, style=style)
    flow = random_mimics(anatomy, tumour, generator=generator, style=style).flow
    assert flow.max() > 0.5
    assert (flow <= anatomy.tissues[0]).all()

"""Ventricles, sulci and cavities: as large as wanted, in a brain that keeps its outline."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from lora_moe_hgd.phantoms.anatomy import random_anatomy, template
from lora_moe_hgd.phantoms.fluid import dig_cavities, grow_ventricles, random_blob, vary_fluid
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.phantoms.warp import identity_grid, sample_at_offset

SPACING_MM = 2.0


def ball(radius_mm: float, *, stretch: float = 1.0) -> torch.Tensor:
    """A soft ellipsoid in the middle of `(72, 84, 76)` voxels, longer along the second axis."""
    grid = identity_grid((72, 84, 76)) - torch.tensor([35.5, 41.5, 37.5])
    return (radius_mm / SPACING_MM + 0.5 - (grid / torch.tensor([1.0, stretch, 1.0])).norm(dim=-1)).clamp(0, 1)


BRAIN, VENTRICLE = ball(66), ball(14, stretch=2)


def volume_ml(maps: torch.Tensor) -> float:
    return maps.sum().item() * SPACING_MM**3 / 1000


def grown(target_ml: float, seed: int = 0) -> torch.Tensor:
    return grow_ventricles(VENTRICLE, BRAIN, target_ml, SPACING_MM, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target_ml", [5.0, 12.0, 60.0, 150.0])
def test_ventricles_get_the_volume_that_is_asked_for(target_ml: float) -> None:
    reached = volume_ml(sample_at_offset(VENTRICLE[None], grown(target_ml))[0])
    # A step moves the walls by up to 1.5 mm, which is much of a small ventricle.
    assert 0.6 * target_ml < reached < 1.25 * target_ml


@pytest.mark.parametrize("target_ml", [5.0, 150.0])
def test_nothing_folds_and_the_outline_of_the_brain_stays(target_ml: float) -> None:
    offset = grown(target_ml)
    places = identity_grid(BRAIN.shape) + offset
    slopes = torch.stack([torch.stack(torch.gradient(places[..., axis]), dim=-1) for axis in range(3)], dim=-2)
    assert torch.linalg.det(slopes).min() > 0
    assert_close(sample_at_offset(BRAIN[None], offset)[0], BRAIN, rtol=0, atol=0.15)


def test_the_two_sides_of_grown_ventricles_differ() -> None:
    shares = []
    for seed in range(4):
        after = sample_at_offset(VENTRICLE[None], grown(120.0, seed=seed))[0]
        shares.append((after[:36].sum() / after.sum()).item())
    assert max(shares) > 0.53 or min(shares) < 0.47


def test_ventricles_of_the_template_are_fluid_deep_in_the_brain_and_alike_on_both_sides() -> None:
    tissues, ventricles, _ = template(2.0)
    assert 12 < volume_ml(ventricles) < 60
    # Beside the thin lines that stand for what vanishes in a mean of many heads.
    assert tissues[0][ventricles > 0.9].median() > 0.8
    middle = ventricles.shape[0] // 2
    left, right = ventricles[:middle].sum().item(), ventricles[-middle:].sum().item()
    assert left == pytest.approx(right, rel=0.1)


@pytest.mark.parametrize("target_ml", [8.0, 150.0])
def test_a_brain_with_other_ventricles_still_adds_up(target_ml: float) -> None:
    style = dataclasses.replace(
        NARROW, ventricles_share=1.0, ventricles_ml=(target_ml, target_ml), fluid_exponent=(1.0, 1.0)
    )
    anatomy = random_anatomy(spacing_mm=4.0, generator=torch.Generator().manual_seed(1), style=style)
    reached = anatomy.ventricles.sum().item() * anatomy.voxel_ml
    assert 0.5 * target_ml < reached < 1.5 * target_ml
    total = anatomy.tissues.sum(dim=0)
    assert (anatomy.tissues[0] >= anatomy.ventricles - 1e-4).all()
    assert anatomy.tissues.min() >= -1e-5
    assert total.max() < 1 + 1e-4


def test_atrophy_turns_tissue_into_fluid_and_keeps_the_brain() -> None:
    tissues, _, _ = template(4.0)
    fluid = {}
    for exponent in (0.4, 1.5):
        style = dataclasses.replace(NARROW, atrophy_share=1.0, atrophy_exponent=(exponent, exponent))
        varied = vary_fluid(tissues, 4.0, style, torch.Generator().manual_seed(0))
        assert_close(varied.sum(dim=0), tissues.sum(dim=0), rtol=0, atol=1e-5)
        fluid[exponent] = varied[0].sum()
    assert fluid[0.4] > 1.3 * fluid[1.5]


def test_a_cavity_is_fluid_with_a_scar_around_it() -> None:
    tissues = torch.stack([torch.zeros_like(BRAIN), torch.zeros_like(BRAIN), BRAIN])
    style = dataclasses.replace(
        NARROW, most_cavities=0.0, cavity_mm=(15.0, 15.0), lost_in_cavity=(1.0, 1.0), scar_mm=(6.0, 6.0)
    )
    dug, scar = dig_cavities(tissues, SPACING_MM, style, torch.Generator().manual_seed(0))
    assert_close(dug.sum(dim=0), BRAIN, rtol=0, atol=1e-5)
    assert 3 < volume_ml(dug[0]) < 40
    assert volume_ml(scar) > 1
    # The scar lies around the cavity, not in it.
    assert scar[dug[0] > 0.95].max() < 0.1


def test_a_blob_begins_where_it_may() -> None:
    where = torch.zeros(30, 40, 50)
    where[20:, :, :10] = 1
    for seed in range(4):
        blob = random_blob(where, 6.0, 2.0, torch.Generator().manual_seed(seed))
        assert where.flatten()[blob.argmin()] == 1
        places = torch.nonzero(blob < 1).float()
        # Radii differ by up to 1.4, and the surface is ragged by up to a half inwards.
        assert ((places.amax(dim=0) - places.amin(dim=0)) <= 2 * 6.0 / 2.0 * 1.4 / 0.5).all()

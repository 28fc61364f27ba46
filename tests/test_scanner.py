"""What the scanner does to a signal, one effect at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from lora_moe_hgd.phantoms.scanner import acquire
from lora_moe_hgd.phantoms.style import NARROW

# A scanner without any effect: what is put in comes out, times a gain.
PLAIN = dataclasses.replace(
    NARROW,
    misregistration_mm=0.0,
    resolution_mm=(0.0, 0.0),
    thick_slices_share=0.0,
    gamma=(1.0, 1.0),
    ringing_share=0.0,
    bias=(0.0, 0.0),
    thermal_factor=(0.0, 0.0),
)
BRAIN = torch.zeros(20, 24, 28, dtype=torch.bool)
BRAIN[2:-2, 2:-2, 2:-2] = True
Z = torch.randn(20, 24, 28, generator=torch.Generator().manual_seed(0))


def acquired(z: torch.Tensor, seed: int = 0, **changes: object) -> torch.Tensor:
    style = dataclasses.replace(PLAIN, **changes)
    return acquire("t1", z, BRAIN, torch.zeros_like(z), 2.0, torch.Generator().manual_seed(seed), style)


def test_a_scanner_without_effects_changes_scale_and_offset_only() -> None:
    volume = acquired(Z)
    assert (volume[~BRAIN] == 0).all()
    signal, got = Z[BRAIN], volume[BRAIN]
    slope = (got.max() - got.min()) / (signal.max() - signal.min())
    assert_close(got - got.mean(), slope * (signal - signal.mean()), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("changes", [{"warp_share": 1.0, "warp": (0.6, 0.6)}, {"gamma": (1.6, 1.6)}])
def test_contrast_curves_keep_the_order_of_brightness(changes: dict) -> None:
    plain, curved = acquired(Z)[BRAIN], acquired(Z, **changes)[BRAIN]
    order = plain.argsort()
    assert (curved[order].diff() >= -1e-3).all()
    straight = (curved - curved.min()) / (curved.max() - curved.min())
    assert (straight - (plain - plain.min()) / (plain.max() - plain.min())).abs().max() > 0.03


@pytest.mark.parametrize("seed", range(4))
def test_shading_makes_one_side_as_many_times_brighter_as_asked_for(seed: int) -> None:
    volume = acquired(torch.zeros_like(Z), seed, shading_share=1.0, shading=(2.5, 2.5))[BRAIN]
    assert volume.max() / volume.min() == pytest.approx(2.5, rel=1e-3)


def test_each_sequence_is_shaded_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    style = dataclasses.replace(PLAIN, shading_share=1.0, shading=(2.0, 2.0))
    flat = torch.zeros_like(Z)
    first, second = (acquire(name, flat, BRAIN, flat, 2.0, generator, style)[BRAIN] for name in ("t1", "t2"))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] < 0.9


def test_a_window_cuts_off_the_darkest_and_the_brightest() -> None:
    volume = acquired(Z, window_share=1.0, window_low=(0.1, 0.1), window_high=(0.8, 0.8))[BRAIN]
    assert (volume == volume.min()).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (volume == volume.max()).float().mean() == pytest.approx(0.2, abs=0.01)


def test_slices_average_along_one_axis_only() -> None:
    inside = (slice(4, -4),) * 3
    rough = [
        acquired(Z, seed, partial_volume_share=1.0, partial_volume_mm=(6.0, 6.0))[inside].diff(dim=axis).abs().mean()
        for seed in range(3)
        for axis in range(3)
    ]
    plain = [acquired(Z, seed)[inside].diff(dim=axis).abs().mean() for seed in range(3) for axis in range(3)]
    kept = torch.stack(rough).reshape(3, 3) / torch.stack(plain).reshape(3, 3)
    # Across slices neighbours are alike; within a slice the mean of three is less rough, but as rough along both axes.
    across, *within = kept.sort(dim=1).values.T
    assert (across < 0.25).all()
    assert (torch.stack(within) > 0.35).all()


def test_noise_can_be_left_out_and_grows_with_its_factor() -> None:
    flat = torch.zeros_like(Z)
    levels = [acquired(flat, thermal_factor=(factor, factor))[BRAIN] for factor in (0.0, 1.0, 3.0)]
    assert levels[0].std() < 1e-5 * levels[0].mean()
    assert levels[2].std().item() == pytest.approx(3 * levels[1].std().item(), rel=0.05)

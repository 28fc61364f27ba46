"""Tumours: infiltrating growth along white matter, a core, necrosis and an enhancing rim that is often incomplete.

Growth follows Fisher and Kolmogorov, `du/dt = div(D grad u) + rho u (1 - u)`, with D ten times larger in white than in
grey matter and zero in fluid, solved on a coarse grid. Volumes are drawn to match real gliomas; the growth parameters
are not matched. Each region consists of the voxels in which a smooth field, such as the tumour density, exceeds a
threshold. The threshold is chosen so that the region has the drawn volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .anatomy import Anatomy
from .fluid import random_blob
from .noise import chance, fractal_noise, gaussian_blur, normal, smooth_noise, uniform
from .style import PhantomStyle
from .warp import sample_at_offset

CoreKind = Literal["necrotic", "cystic", "solid"]

GROWTH_SPACING_MM = 4.0
DIFFUSION = (0.0, 0.1, 1.0)  # CSF, grey and white matter, relative


@dataclass(frozen=True)
class Tumour:
    """A tumour: its regions, and quantities that determine its contrast in the images.

    Attributes:
        regions: WT, TC and ET, nested, `(3, D, H, W)` bool.
        infiltration: Depth of each voxel in the oedema, `(D, H, W)`: 0 at the border of the oedema, 1 at the core.
        displacement: Mass effect, as offsets for `sample_at_offset`, `(D, H, W, 3)` in voxels.
        kind: Content of the core inside its rim: `necrotic`, `cystic` or `solid`.
    """

    regions: Tensor
    infiltration: Tensor
    displacement: Tensor
    kind: CoreKind = "necrotic"


def random_tumour(anatomy: Anatomy, *, generator: torch.Generator, style: PhantomStyle) -> Tumour:
    """Draw no tumour, or a tumour of one or more foci, with or without core, necrosis and enhancement."""
    if chance(style.no_tumour_share, generator):
        nothing = torch.zeros(3, *anatomy.shape)
        return Tumour(nothing.bool(), nothing[0], torch.zeros(*anatomy.shape, 3))
    brain_ml = anatomy.brain.sum().item() * anatomy.voxel_ml
    whole_ml = _log_normal(*style.whole_tumour_ml, generator)
    low = chance(style.low_share, generator)
    whole_ml = min(max(style.low_size * whole_ml if low else whole_ml, style.least_whole_tumour_ml), 0.3 * brain_ml)
    growth = _grow(anatomy, whole_ml, generator, style, low=low)
    # Oedema does not enter fluid, and the cortex slows it down.
    spread = growth * (anatomy.tissues[2] + uniform(*style.spread_in_grey, generator) * anatomy.tissues[1])
    spread = gaussian_blur(spread, (uniform(*style.outline_mm, generator) / anatomy.spacing_mm,) * 3)
    ragged = fractal_noise(anatomy.shape, scales_mm=(8, 16, 32), spacing_mm=anatomy.spacing_mm, generator=generator)
    spread = torch.where(anatomy.brain, spread * (1 + style.raggedness * ragged), 0.0)
    level = _level_of_volume(spread, whole_ml / anatomy.voxel_ml)
    whole = (spread > level) & anatomy.brain
    core = _core(anatomy, growth, whole, whole_ml, generator, style)
    whole |= core
    kind = _core_kind(generator, style)
    enhancing = _enhancing(anatomy, core, kind, generator, style)
    if chance(style.satellites_share, generator):
        nodules = _satellites(anatomy, spread, generator, style)
        whole, core, enhancing = whole | nodules, core | nodules, enhancing | nodules
    top = spread[whole].max().clamp(min=1e-6) if whole.any() else spread.new_tensor(1.0)
    infiltration = ((spread - level) / (top - level).clamp(min=1e-6)).clamp(0, 1)
    infiltration = torch.where(core, 1.0, infiltration)
    return Tumour(
        regions=torch.stack([whole, core, enhancing]),
        infiltration=infiltration,
        displacement=_mass_effect(core, anatomy.spacing_mm, generator, style),
        kind=kind,
    )


def _log_normal(median: float, spread: float, generator: torch.Generator) -> float:
    return median * math.exp(spread * normal((), generator).item())


def _level_of_volume(field: Tensor, num_voxels: float) -> Tensor:
    """Return the positive level that about `num_voxels` voxels of the field exceed."""
    count = int(min(max(num_voxels, 1), field.numel() - 1))
    return field.flatten().topk(count).values[-1].clamp(min=1e-4)


def _grow(anatomy: Anatomy, whole_ml: float, generator: torch.Generator, style: PhantomStyle, *, low: bool) -> Tensor:
    """Tumour density in [0, 1] on the anatomy's grid, grown from seeds in white matter.

    Seeds are in the lowest third of the brain if `low` is true, and above the lowest third otherwise.
    """
    factor = anatomy.spacing_mm / GROWTH_SPACING_MM
    size = [max(4, round(edge * factor)) for edge in anatomy.shape]
    coarse = nn.functional.interpolate(anatomy.tissues[None], size=size, mode="trilinear", align_corners=False)[0]
    diffusion = sum(weight * tissue for weight, tissue in zip(DIFFUSION, coarse, strict=True))
    inside = coarse.sum(dim=0) > 0.9
    is_low = torch.arange(size[2]) < size[2] // 3
    weight = coarse[2] * (inside & (is_low if low else ~is_low))
    density = torch.zeros(tuple(size))
    num_foci = 1 + sum(chance(share, generator) for share in style.more_foci_shares)
    for focus in range(num_foci):
        seed = int(torch.multinomial(weight.flatten().to(generator.device), 1, generator=generator))
        place = torch.tensor([seed // (size[1] * size[2]), seed // size[2] % size[1], seed % size[2]])
        axes = torch.meshgrid(*(torch.arange(edge, dtype=torch.float32) for edge in size), indexing="ij")
        # Growth starts from an ellipsoid, so that the shape of solid tumours does not depend on the fibres alone.
        radii = [uniform(1.0, 2.2, generator) * (1.0 if focus == 0 else 0.6) for _ in range(3)]
        distance = sum(
            ((axis - centre) / radius) ** 2 for axis, centre, radius in zip(axes, place, radii, strict=True)
        )
        density = torch.maximum(density, torch.exp(-0.5 * distance))
    target = 1.25 * whole_ml / (GROWTH_SPACING_MM**3 / 1000)
    proliferation = uniform(0.04, 0.12, generator)
    for _ in range(300):
        if (density > 0.15).sum() >= target:
            break
        density = (density + _diffuse(density, diffusion) + proliferation * density * (1 - density)).clamp(0, 1)
    return nn.functional.interpolate(density[None, None], size=anatomy.shape, mode="trilinear", align_corners=False)[
        0, 0
    ]


def _diffuse(density: Tensor, diffusion: Tensor) -> Tensor:
    """One explicit step of `div(D grad u)`, with the stable step size 1/6 and no flow across the volume's border."""
    change = torch.zeros_like(density)
    for axis in range(3):
        length = density.shape[axis] - 1
        lower, upper = density.narrow(axis, 0, length), density.narrow(axis, 1, length)
        # With the harmonic mean, the slower of two neighbouring tissues determines the flow.
        a, b = diffusion.narrow(axis, 0, length), diffusion.narrow(axis, 1, length)
        flow = 2 * a * b / (a + b).clamp(min=1e-6) * (upper - lower) / 6
        change.narrow(axis, 0, length).add_(flow)
        change.narrow(axis, 1, length).sub_(flow)
    return change


def _core(
    anatomy: Anatomy,
    growth: Tensor,
    whole: Tensor,
    whole_ml: float,
    generator: torch.Generator,
    style: PhantomStyle,
) -> Tensor:
    """Compact, lobulated core around the densest voxels; its volume is a random share of the whole tumour."""
    if chance(style.no_core_share, generator):
        return torch.zeros_like(whole)
    share = min(_log_normal(*style.core_share, generator), style.most_core_share)
    noise = fractal_noise(anatomy.shape, scales_mm=(10, 20, 40), spacing_mm=anatomy.spacing_mm, generator=generator)
    inside = gaussian_blur((whole & anatomy.brain).float(), (5.0 / anatomy.spacing_mm,) * 3)
    field = inside * (0.3 + growth) * (1 + 0.22 * noise).clamp(min=0.05)
    field = torch.where(whole, gaussian_blur(field, (1.5 / anatomy.spacing_mm,) * 3), 0.0)
    return (field > _level_of_volume(field, share * whole_ml / anatomy.voxel_ml)) & whole


def _core_kind(generator: torch.Generator, style: PhantomStyle) -> CoreKind:
    if chance(style.cystic_share, generator):
        return "cystic"
    return "solid" if chance(style.solid_silent_share, generator) else "necrotic"


def _satellites(anatomy: Anatomy, spread: Tensor, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Small enhancing nodules in or near the oedema."""
    nodules = torch.zeros(anatomy.shape, dtype=torch.bool)
    for _ in range(1 + int(uniform(0, style.most_satellites, generator))):
        blob = random_blob(spread, uniform(*style.satellite_mm, generator), anatomy.spacing_mm, generator)
        nodules |= (blob < 1) & anatomy.brain
    return nodules


def _enhancing(
    anatomy: Anatomy, core: Tensor, kind: CoreKind, generator: torch.Generator, style: PhantomStyle
) -> Tensor:
    """Enhancing tumour: the core without its necrosis and without patches that take up no contrast agent."""
    if kind == "solid" or chance(style.not_enhancing_share, generator):
        return torch.zeros_like(core)
    spacing_mm = anatomy.spacing_mm
    noise = fractal_noise(anatomy.shape, scales_mm=(6, 12, 24), spacing_mm=spacing_mm, generator=generator)
    solid = chance(style.solid_share, generator)
    # A blurred mask falls from 1 deep inside to one half at the border, so its level sets are shells.
    width_mm = uniform(*style.core_depth_mm, generator)
    depth = gaussian_blur(core.float(), (width_mm / spacing_mm,) * 3)
    core_depth = depth[core]
    if solid or core_depth.numel() == 0:
        necrosis = torch.zeros_like(core)
    else:
        share = uniform(*(style.cyst_share if kind == "cystic" else style.necrotic_share), generator)
        field = torch.where(core, depth * (1 + 0.10 * noise), 0.0)
        necrosis = (field > _level_of_volume(field, share * core_depth.numel())) & core
    patchy = smooth_noise(anatomy.shape, scale_mm=14, spacing_mm=spacing_mm, generator=generator)
    silent = core & (patchy > uniform(*style.silent_level, generator))
    return core & ~necrosis & ~silent


def _mass_effect(core: Tensor, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Offsets for `sample_at_offset`, `(D, H, W, 3)` in voxels, that push healthy tissue away from the core."""
    sigma = 10 / spacing_mm
    pressure = gaussian_blur(core.float(), (sigma, sigma, sigma))
    slope = torch.stack(torch.gradient(pressure), dim=-1)
    steepest = slope.norm(dim=-1).max()
    push = uniform(*style.mass_effect_mm, generator) / spacing_mm * min(1.0, core.sum().item() * spacing_mm**3 / 30000)
    return push * slope / steepest.clamp(min=1e-6)


def displace(anatomy: Anatomy, tumour: Tumour) -> Anatomy:
    """Apply the tumour's mass effect to the anatomy. The outline of the brain does not change."""
    maps = torch.cat([anatomy.tissues, anatomy.ventricles[None], anatomy.scar[None]])
    tissues, (ventricles, scar) = sample_at_offset(maps, tumour.displacement).split([3, 2])
    brain = anatomy.tissues.sum(dim=0)
    tissues = tissues / tissues.sum(dim=0).clamp(min=1e-3)
    return Anatomy(tissues.clamp(0, 1) * brain, ventricles, scar, anatomy.spacing_mm, anatomy.affine)

"""From tissue and tumour maps to the four MRI sequences.

Lesions are painted in robust z-scores against the healthy brain of the same case, drawn from what was measured on real
gliomas; healthy tissue follows the textbook order (T1: fluid < grey < white matter, T2 the reverse, FLAIR nearly flat
with dark fluid). Each case draws its own contrasts, so that a network cannot key on absolute values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..model.configuration_lora_moe_hgd import MODALITIES
from .anatomy import Anatomy, identity_grid, sample_at_offset
from .noise import Shape, chance, fractal_noise, gaussian_blur, normal, smooth_noise, uniform
from .tumour import Tumour

# Relative signal of CSF, grey and white matter; only its shape counts, the unit is set by the brain's own spread.
HEALTHY = {
    "t1": (-3.6, -0.50, 0.50),
    "t1c": (-3.6, -0.40, 0.45),
    "t2": (9.5, 0.55, -0.55),
    "flair": (-3.1, 0.40, -0.30),
}

OEDEMA = 1

# Robust z of necrosis, oedema and enhancing rim as painted: 10th, 50th and 90th percentile over cases. Grey matter,
# fluid, fading, blur and `GENEROSITY` lower what is measured then, which is what was matched, to nine real cases.
LESION = {
    "t1": ((-3.1, -1.55, -0.4), (-1.5, -0.70, 0.6), (-1.75, -1.15, -0.05)),
    "t1c": ((-5.2, -1.3, 0.2), (-2.6, -1.7, 0.2), (2.8, 3.4, 4.5)),
    "t2": ((5.0, 9.5, 18.0), (6.4, 11.4, 16.0), (3.0, 5.6, 8.4)),
    "flair": ((2.0, 4.3, 9.5), (7.6, 12.8, 16.5), (3.2, 5.0, 7.2)),
}
# Spread inside a region, in the same units.
TEXTURE = {
    "t1": (0.9, 0.70, 0.65),
    "t1c": (1.3, 1.5, 2.9),
    "t2": (2.2, 5.2, 2.8),
    "flair": (1.8, 3.3, 2.0),
}
# How much of the oedema's brightness grey matter and fluid inside it show, at least: water gathers in white matter.
SHOWN_IN_GREY, SHOWN_IN_FLUID = 0.4, 0.2
# How much of it is lost at the border, beside what the border's blur (its standard deviation) takes: labels end at a
# half of the blurred mask.
FADING = (0.1, 0.9)
BORDER_MM = (1.0, 3.2)
# Whoever draws a rim is generous: its label ends where its blurred mask is about a half, its brightness where that has
# fallen to this share of the highest value near by, which is the middle of the rim.
GENEROSITY = (0.3, 0.75)
MIDDLE_WITHIN_MM = 2.0
# Fine grain of healthy tissue (relative, as HEALTHY) and thermal noise (robust z), at the noise level of real cases.
GRAIN = {"t1": 0.05, "t1c": 0.04, "t2": 0.07, "flair": 0.09}
THERMAL = {"t1": 0.075, "t1c": 0.05, "t2": 0.19, "flair": 0.17}
# What is bright and no tumour, in the units of HEALTHY: vessels, plexus and hull on T1c, spots on T2 and
# FLAIR, in a share of the cases.
VESSELS, SPOTS = (1.5, 7.0), (0.8, 6.0)
SPOTS_SHARE = 0.85
# What skull-stripping leaves at the brain's hull (robust z of the brain without it): bone, and patches of dura, marrow
# and fat; each sequence draws from its range.
BONE = {"t1": (-16.0, -8.0), "t1c": (-20.0, -9.0), "t2": (-13.0, -5.5), "flair": (-18.0, -9.0)}
PATCHES = {"t1": (0.0, 12.0), "t1c": (4.0, 22.0), "t2": (2.0, 13.0), "flair": (-2.0, 7.0)}
# Where the mask lies, as a level of the blurred brain, and in how many cases it fails in part.
STRIPPED_LEVEL, STRIPPING_FAILS_SHARE = (0.15, 0.5), 0.25
# Surface coils are most sensitive near by: how much brighter the hull can be (logarithm), in how many of the cases.
COIL, COIL_SHARE = (0.15, 0.8), 0.5
# How far below the brain's median no signal lies (robust z), wider than measured.
FLOOR = {"t1": (7.0, 12.5), "t1c": (9.0, 16.0), "t2": (5.0, 8.5), "flair": (8.0, 13.5)}
# Scanner and preparation, each sequence by itself; ranges are drawn from uniformly.
MISREGISTRATION_MM = 0.4
RESOLUTION_MM = (0.4, 1.2)
THICK_SLICES_SHARE, THICK_SLICES_MM = 0.5, (1.0, 2.8)
GAMMA = (0.8, 1.25)
RINGING_SHARE = 0.15
BIAS = (0.0, 0.07)


def paint(anatomy: Anatomy, tumour: Tumour, *, generator: torch.Generator) -> dict[str, Tensor]:
    """Return one volume `(D, H, W)` per sequence: positive inside the brain, exactly zero outside."""
    shape, spacing_mm = anatomy.shape, anatomy.spacing_mm
    shares = lesion_shares(tumour, spacing_mm, generator)
    brain = _stripped_brain(anatomy, generator)
    shared_texture = fractal_noise(shape, scales_mm=(5, 10, 20), spacing_mm=spacing_mm, generator=generator)
    shared_grain = fractal_noise(shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator)
    severity = normal((3,), generator).tolist()
    vessels = _vessels(anatomy, generator)
    spots = _white_matter_spots(anatomy, tumour, generator)
    shown = _shown_oedema(anatomy, tumour, generator)
    outside, patches = _hull(anatomy, generator)
    coil = _coil(anatomy, generator)
    volumes = {}
    for name in MODALITIES:
        z = _healthy(name, anatomy, generator)
        if name == "t1c":
            z = z + uniform(*VESSELS, generator) * vessels
        if name in ("t2", "flair"):
            z = z + uniform(*SPOTS, generator) * spots
        grain = 0.6 * shared_grain + 0.8 * fractal_noise(
            shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator
        )
        z = z + GRAIN[name] * uniform(0.5, 1.6, generator) * grain
        z = _robust_z(z, brain)
        bone, patch = uniform(*BONE[name], generator), uniform(*PATCHES[name], generator)
        z = (1 - outside) * z + outside * (bone + (patch - bone) * patches)
        # The unit of what follows is that of a measured case, whose brain has a hull.
        z = _robust_z(z, brain)
        own_texture = fractal_noise(shape, scales_mm=(4, 8), spacing_mm=spacing_mm, generator=generator)
        texture = 0.7 * shared_texture + 0.7 * own_texture
        lesion = torch.zeros(shape)
        for region in range(3):
            level = _quantile(LESION[name][region], severity[region], generator)
            painted = level + TEXTURE[name][region] * uniform(0.5, 1.3, generator) * texture
            if region == OEDEMA:
                painted = painted * shown + uniform(0.2, 0.8, generator) * z
            lesion += shares[region] * painted
        present = shares.sum(dim=0)
        z = (1 - present) * z + lesion
        volumes[name] = _acquire(name, z, brain, coil, spacing_mm, generator)
    return volumes


def _robust_z(volume: Tensor, brain: Tensor) -> Tensor:
    """`(x - median) / MAD` over the brain: the unit in which lesions were measured."""
    values = volume[brain]
    median = values.median()
    return (volume - median) / (values - median).abs().median()


def _quantile(percentiles: tuple[float, float, float], severity: float, generator: torch.Generator) -> float:
    """A draw from a two-piece normal with these 10th, 50th and 90th percentiles.

    `severity` is shared by the sequences of a case: what is bright on T2 tends to be bright on FLAIR.
    """
    low, median, high = percentiles
    # 1.2816 standard deviations lie between the median and the 90th percentile of a normal.
    draw = 0.6 * severity + 0.8 * normal((), generator).item()
    return median + draw / 1.2816 * ((high - median) if draw > 0 else (median - low))


def _shown_oedema(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator) -> Tensor:
    """Factor of the oedema's brightness, `(D, H, W)` in [0, 1]: less in grey matter and fluid, and at the border."""
    _, grey, white = anatomy.tissues
    fluid = 1 - grey - white
    by_tissue = white + uniform(SHOWN_IN_GREY, 1.0, generator) * grey + uniform(SHOWN_IN_FLUID, 1.0, generator) * fluid
    fading = uniform(*FADING, generator)
    return by_tissue * (1 - fading * (1 - (4 * tumour.infiltration).clamp(max=1)))


def lesion_shares(tumour: Tumour, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """How much each voxel shows of necrosis, oedema and rim, `(3, D, H, W)` in [0, 1]; borders are soft.

    The bright half of a rim ends inside its label, by `GENEROSITY`.
    """
    whole, core, enhancing = tumour.regions
    necrosis = core & ~enhancing
    soft_mm = uniform(*BORDER_MM, generator)
    shares = torch.stack(
        [
            gaussian_blur(mask.float(), (sigma_mm / spacing_mm,) * 3)
            for mask, sigma_mm in ((necrosis, 1.0), (whole, soft_mm), (enhancing, 1.0))
        ]
    )
    shares[1] = (shares[1] - shares[0] - shares[2]).clamp(min=0)
    # Where the label ends with the core there is no oedema beyond it.
    beyond = gaussian_blur((whole & ~core).float(), (soft_mm / spacing_mm,) * 3)
    shares[1] = torch.where(whole, shares[1], torch.minimum(shares[1], beyond))
    generosity = uniform(*GENEROSITY, generator)
    # A thin rim never fills a voxel, but is bright in its middle, too.
    reach = 2 * max(1, round(MIDDLE_WITHIN_MM / spacing_mm)) + 1
    middle = nn.functional.max_pool3d(shares[2][None, None], reach, stride=1, padding=reach // 2)[0, 0]
    bright = ((shares[2] - generosity * middle) / (1 - generosity)).clamp(min=0)
    # What the rim does not show there its neighbours do.
    shares[:2] += (shares[2] - bright) * shares[:2] / shares[:2].sum(dim=0).clamp(min=1e-3)
    shares[2] = bright
    # Oedema thins out towards its border.
    shares[1] *= 0.85 + 0.15 * tumour.infiltration.sqrt()
    return shares


def _healthy(name: str, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    csf, grey, white = HEALTHY[name]
    # Old T1 contrasts hardly tell grey from white matter; fluid stays apart.
    contrast = uniform(0.35, 1.2, generator)
    levels = (csf * uniform(0.7, 1.4, generator), contrast * grey, contrast * white)
    return sum(level * fraction for level, fraction in zip(levels, anatomy.tissues, strict=True))


def _vessels(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Thin curves (where two smooth fields are both near zero), parts of the brain's hull and of the ventricles."""
    shape, spacing_mm = anatomy.shape, anatomy.spacing_mm
    first, second, where = (
        smooth_noise(shape, scale_mm=scale, spacing_mm=spacing_mm, generator=generator) for scale in (14, 14, 30)
    )
    curves = torch.exp(-(first**2 + second**2) / 0.05) * (anatomy.tissues[0] + 0.3 * anatomy.tissues[1])
    brain = anatomy.brain.float()
    depth = gaussian_blur(brain, (4 / spacing_mm,) * 3)
    hull = ((depth < 0.72) & (where > 0.7)).float()
    plexus = ((anatomy.tissues[0] > 0.8) & (depth > 0.98) & (where.abs() > 1.0)).float()
    drawn = curves + uniform(0, 0.3, generator) * hull + uniform(0, 0.8, generator) * plexus
    return gaussian_blur(drawn, (0.7 / spacing_mm,) * 3).clamp(0, 1)


def _white_matter_spots(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator) -> Tensor:
    """Bright spots and caps around the ventricles on T2 and FLAIR that are no tumour, in most cases."""
    spacing_mm = anatomy.spacing_mm
    if not chance(SPOTS_SHARE, generator):
        return torch.zeros(anatomy.shape)
    noise = fractal_noise(anatomy.shape, scales_mm=(6, 12), spacing_mm=spacing_mm, generator=generator)
    near_fluid = gaussian_blur(anatomy.tissues[0], (4 / spacing_mm,) * 3)
    field = anatomy.tissues[2] * (0.5 * noise + 3 * near_fluid.clamp(max=0.4))
    spots = (field > uniform(0.9, 2.0, generator)) & ~tumour.regions[0]
    return gaussian_blur(spots.float(), (1.0 / spacing_mm,) * 3)


def _stripped_brain(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """The mask of a skull-stripping tool: smooth, near the hull, in some cases and places far outside it."""
    field = gaussian_blur(anatomy.tissues.sum(dim=0), (3 / anatomy.spacing_mm,) * 3)
    waves, where = (
        smooth_noise(anatomy.shape, scale_mm=scale_mm, spacing_mm=anatomy.spacing_mm, generator=generator)
        for scale_mm in (25, 40)
    )
    level = uniform(*STRIPPED_LEVEL, generator) + 0.07 * waves
    failing = where > uniform(0.3, 1.5, generator)
    if chance(STRIPPING_FAILS_SHARE, generator):
        level = torch.where(failing, 0.05, level)
    return field > level.clamp(min=0.05)


def _hull(anatomy: Anatomy, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How much of a voxel lies outside the brain, and how much of that is no bone, both `(D, H, W)` in [0, 1]."""
    spacing_mm = anatomy.spacing_mm
    noise = fractal_noise(anatomy.shape, scales_mm=(8, 16), spacing_mm=spacing_mm, generator=generator)
    outside = 1 - anatomy.tissues.sum(dim=0).clamp(0, 1)
    return outside, (2 * noise - uniform(0.0, 3.0, generator)).clamp(0, 1)


def _coil(anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Logarithm of the sensitivity of surface coils, `(D, H, W)`: highest at the hull, at some sides of it."""
    spacing_mm = anatomy.spacing_mm
    strength = uniform(*COIL, generator)
    if not chance(COIL_SHARE, generator):
        strength = 0.0
    depth = gaussian_blur(anatomy.brain.float(), (uniform(5.0, 14.0, generator) / spacing_mm,) * 3)
    side = smooth_noise(anatomy.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
    return strength * (2 - 2 * depth).clamp(0, 1) * torch.sigmoid(2 * side)


def _acquire(
    name: str, z: Tensor, brain: Tensor, coil: Tensor, spacing_mm: float, generator: torch.Generator
) -> Tensor:
    """Scanner: misregistration, resolution, bias fields, gamma, Rician noise, and the brain mask."""
    shift = normal((3,), generator) * MISREGISTRATION_MM / spacing_mm
    z = sample_at_offset(z[None], shift.expand(*z.shape, 3))[0]
    sigma_mm = [uniform(*RESOLUTION_MM, generator)] * 3
    if chance(THICK_SLICES_SHARE, generator):
        # Thick slices, most often axial, interpolated to isotropic voxels by the publisher of the data.
        axis = 2 if chance(0.5, generator) else min(int(uniform(0, 3, generator)), 2)
        sigma_mm[axis] = uniform(*THICK_SLICES_MM, generator)
    z = gaussian_blur(z, [sigma / spacing_mm if sigma / spacing_mm > 0.25 else 0.0 for sigma in sigma_mm])
    gain = uniform(60.0, 160.0, generator)
    floor = uniform(*FLOOR[name], generator)
    signal = (floor + z).clamp(min=0.2)
    signal = floor * (signal / floor) ** uniform(*GAMMA, generator)
    if chance(RINGING_SHARE, generator):
        signal = signal * (1 + uniform(0.005, 0.03, generator) * _ringing(z.shape, spacing_mm, generator))
    bias = smooth_noise(z.shape, scale_mm=90, spacing_mm=spacing_mm, generator=generator)
    signal = signal * torch.exp(uniform(*BIAS, generator) * bias + uniform(0.2, 1.0, generator) * coil)
    level = THERMAL[name] * uniform(0.4, 1.8, generator)
    real, imaginary = (level * normal(z.shape, generator) for _ in range(2))
    # Interpolation to the common grid has smoothed the scanner's noise, too.
    smoothing = (0.5,) * 3
    real, imaginary = (gaussian_blur(part, smoothing) * math.sqrt(3) for part in (real, imaginary))
    return torch.where(brain, gain * torch.sqrt((signal + real) ** 2 + imaginary**2).clamp(min=1e-2), 0.0)


def _ringing(shape: Shape, spacing_mm: float, generator: torch.Generator) -> Tensor:
    """Stripes of 6 to 14 mm across a random in-plane direction, as motion leaves them."""
    angle = uniform(0, math.pi, generator)
    direction = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    phase = 2 * math.pi * spacing_mm / uniform(6, 14, generator) * (identity_grid(shape) @ direction)
    return torch.sin(phase)

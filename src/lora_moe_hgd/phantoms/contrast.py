"""Paint the four MRI sequences from tissue and tumour maps.

Lesion intensities are robust z-scores relative to the healthy brain of the same case. The ranges of the lesion
intensities come from real gliomas. Healthy tissue follows the textbook order (T1: fluid < grey < white matter, T2 the
reverse, FLAIR nearly flat with dark fluid). Each case draws its own contrasts, so that a network cannot rely on
absolute values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.configuration_lora_moe_hgd import MODALITIES
from .anatomy import Anatomy
from .mimics import Mimics, random_mimics
from .noise import chance, fractal_noise, gaussian_blur, normal, smooth_noise, uniform
from .scanner import acquire, coil_sensitivity
from .style import Percentiles, PhantomStyle
from .tumour import Tumour

NECROSIS, OEDEMA, RIM = range(3)
# Search radius around each voxel for the middle of a rim.
MIDDLE_WITHIN_MM = 2.0
# Grey-white contrast at which the lesion levels were matched to real cases, and the smallest factor of these levels.
USUAL_CONTRAST, LEAST_CONSPICUOUS = 0.8, 0.3


def paint(anatomy: Anatomy, tumour: Tumour, *, generator: torch.Generator, style: PhantomStyle) -> dict[str, Tensor]:
    """Paint one volume `(D, H, W)` per sequence: positive inside the brain, exactly zero outside."""
    shape, spacing_mm = anatomy.shape, anatomy.spacing_mm
    shares = lesion_shares(tumour, spacing_mm, generator, style)
    brain = _stripped_brain(anatomy, generator, style)
    shared_texture = fractal_noise(shape, scales_mm=(5, 10, 20), spacing_mm=spacing_mm, generator=generator)
    shared_grain = fractal_noise(shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator)
    severity = normal((3,), generator).tolist()
    mimics = random_mimics(anatomy, tumour, generator=generator, style=style)
    shown = _shown_oedema(anatomy, tumour, generator, style)
    outside, patches = _hull(anatomy, generator)
    blood = _blood(tumour, spacing_mm, generator, style)
    coil = coil_sensitivity(anatomy, generator, style)
    volumes = {}
    for name in MODALITIES:
        z, unit = _healthy(name, anatomy, mimics, generator, style)
        grain = 0.6 * shared_grain + 0.8 * fractal_noise(
            shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator
        )
        z = z + style.grain[name] * uniform(*style.grain_factor, generator) * grain
        z = _robust_z(z, brain)
        bone, patch = uniform(*style.bone[name], generator), uniform(*style.patches[name], generator)
        z = (1 - outside) * z + outside * (bone + (patch - bone) * patches)
        # Normalise again, because lesions were measured on real cases, where the brain mask includes the hull.
        z = _robust_z(z, brain)
        own_texture = fractal_noise(shape, scales_mm=(4, 8), spacing_mm=spacing_mm, generator=generator)
        texture = 0.7 * shared_texture + 0.7 * own_texture
        lesion = torch.zeros(shape)
        for region in range(3):
            level = unit * _quantile(_levels(name, region, tumour, style), severity[region], generator)
            painted = level + unit * style.texture[name][region] * uniform(*style.texture_factor, generator) * texture
            if region == OEDEMA:
                painted = painted * shown + uniform(*style.shining_through, generator) * z
            lesion += shares[region] * painted
        present = shares.sum(dim=0)
        z = (1 - present) * z + lesion + uniform(*style.blood[name], generator) * blood
        volumes[name] = acquire(name, z, brain, coil, spacing_mm, generator, style)
    return volumes


def _robust_z(volume: Tensor, brain: Tensor) -> Tensor:
    """Robust z-score over the brain, `(x - median) / MAD`. Lesion levels are given in this unit."""
    values = volume[brain]
    median = values.median()
    return (volume - median) / (values - median).abs().median()


def _quantile(percentiles: Percentiles, severity: float, generator: torch.Generator) -> float:
    """Draw a number from a two-piece normal distribution with the given 10th, 50th and 90th percentiles.

    A higher `severity` makes a higher number more likely. All sequences of a case have the same `severity`, so a
    lesion that is bright on T2 tends to be bright on FLAIR.
    """
    low, median, high = percentiles
    # The 90th percentile of a normal distribution is 1.2816 standard deviations above its median.
    draw = 0.6 * severity + 0.8 * normal((), generator).item()
    return median + draw / 1.2816 * ((high - median) if draw > 0 else (median - low))


def _levels(name: str, region: int, tumour: Tumour, style: PhantomStyle) -> Percentiles:
    return (
        style.cores[tumour.kind][name]
        if region == NECROSIS and tumour.kind in style.cores
        else style.lesion[name][region]
    )


def _blood(tumour: Tumour, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Fraction of blood in each voxel, `(D, H, W)` in [0, 1].

    A tumour has no blood, patches of blood in its core, or a core full of blood.
    """
    if not chance(style.blood_share, generator):
        return torch.zeros(tumour.regions.shape[1:])
    noise = fractal_noise(tumour.regions.shape[1:], scales_mm=(5, 10), spacing_mm=spacing_mm, generator=generator)
    bled = tumour.regions[1] & (noise > uniform(-1.5, 1.5, generator))
    return gaussian_blur(bled.float(), (1.0 / spacing_mm,) * 3)


def _shown_oedema(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Factor for the brightness of oedema, `(D, H, W)` in [0, 1]: low in grey matter, in fluid and at the border."""
    _, grey, white = anatomy.tissues
    fluid = 1 - grey - white
    in_grey, in_fluid = uniform(*style.shown_in_grey, generator), uniform(*style.shown_in_fluid, generator)
    by_tissue = white + in_grey * grey + in_fluid * fluid
    fading = uniform(*style.fading, generator)
    return by_tissue * (1 - fading * (1 - (4 * tumour.infiltration).clamp(max=1)))


def lesion_shares(tumour: Tumour, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Fractions of necrosis, oedema and rim in each voxel, `(3, D, H, W)` in [0, 1], with soft borders.

    Experts draw the label of a rim wider than the bright part of the rim. The difference in width depends on
    `style.generosity`.
    """
    whole, core, enhancing = tumour.regions
    necrosis = core & ~enhancing
    soft_mm = uniform(*style.border_mm, generator)
    shares = torch.stack(
        [
            gaussian_blur(mask.float(), (sigma_mm / spacing_mm,) * 3)
            for mask, sigma_mm in ((necrosis, 1.0), (whole, soft_mm), (enhancing, 1.0))
        ]
    )
    shares[1] = (shares[1] - shares[0] - shares[2]).clamp(min=0)
    # Where whole tumour and core share their border, there is no oedema outside the core.
    beyond = gaussian_blur((whole & ~core).float(), (soft_mm / spacing_mm,) * 3)
    shares[1] = torch.where(whole, shares[1], torch.minimum(shares[1], beyond))
    generosity = uniform(*style.generosity, generator)
    # A thin rim never fills a voxel, but its middle must be as bright as that of a thick rim.
    reach = 2 * max(1, round(MIDDLE_WITHIN_MM / spacing_mm)) + 1
    middle = nn.functional.max_pool3d(shares[2][None, None], reach, stride=1, padding=reach // 2)[0, 0]
    bright = ((shares[2] - generosity * middle) / (1 - generosity)).clamp(min=0)
    # Necrosis and oedema fill the fraction that the rim loses.
    shares[:2] += (shares[2] - bright) * shares[:2] / shares[:2].sum(dim=0).clamp(min=1e-3)
    shares[2] = bright
    # Oedema becomes thinner towards its border.
    shares[1] *= 0.85 + 0.15 * tumour.infiltration.sqrt()
    return shares


def _healthy(
    name: str, anatomy: Anatomy, mimics: Mimics, generator: torch.Generator, style: PhantomStyle
) -> tuple[Tensor, float]:
    """Signal of the healthy tissue, without unit, `(D, H, W)`, and a number that multiplies the signal of lesions.

    The number makes lesions more or less conspicuous. It also undoes a part of the effect that an unusual contrast of
    grey and white matter has on lesions.
    """
    csf, grey, white = style.healthy[name]
    contrast, unit = uniform(*style.grey_white, generator), 1.0
    if chance(style.odd_grey_white_share, generator):
        contrast = uniform(*style.odd_grey_white, generator)
        # Lesion levels are in units of the brain's spread, which grows with the grey-white contrast. `unit` undoes a
        # random part of that growth.
        unit = (USUAL_CONTRAST / max(abs(contrast), 0.3)) ** uniform(0.0, 1.0, generator)
    unit = max(unit * uniform(*style.conspicuity, generator), LEAST_CONSPICUOUS)
    levels = (csf * uniform(*style.fluid[name], generator), contrast * grey, contrast * white)
    z = sum(level * fraction for level, fraction in zip(levels, anatomy.tissues, strict=True))
    if name == "t1c":
        z = z + uniform(*style.vessels, generator) * mimics.vessels
    if name in ("t2", "flair"):
        z = z + uniform(*style.spots, generator) * mimics.water + uniform(*style.flow[name], generator) * mimics.flow
    else:
        z = z + uniform(*style.spots_on_t1, generator) * mimics.water
    return z, unit


def _stripped_brain(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Simulate the smooth brain mask of a skull-stripping program; some masks reach far beyond the brain in places."""
    field = gaussian_blur(anatomy.tissues.sum(dim=0), (3 / anatomy.spacing_mm,) * 3)
    waves, where = (
        smooth_noise(anatomy.shape, scale_mm=scale_mm, spacing_mm=anatomy.spacing_mm, generator=generator)
        for scale_mm in (25, 40)
    )
    level = uniform(*style.stripped_level, generator) + 0.07 * waves
    failing = where > uniform(0.3, 1.5, generator)
    if chance(style.stripping_fails_share, generator):
        level = torch.where(failing, 0.05, level)
    return field > level.clamp(min=0.05)


def _hull(anatomy: Anatomy, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two maps of the space around the brain, `(D, H, W)` in [0, 1].

    The first map is the fraction of each voxel outside the brain. The second map is the share of this fraction that is
    not bone.
    """
    spacing_mm = anatomy.spacing_mm
    noise = fractal_noise(anatomy.shape, scales_mm=(8, 16), spacing_mm=spacing_mm, generator=generator)
    outside = 1 - anatomy.tissues.sum(dim=0).clamp(0, 1)
    return outside, (2 * noise - uniform(0.0, 3.0, generator)).clamp(0, 1)

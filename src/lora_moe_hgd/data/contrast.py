"""From tissue and tumour maps to the four MRI sequences.

Lesions are painted in robust z-scores against the healthy brain of the same case, drawn from what was measured on real
gliomas; healthy tissue follows the textbook order (T1: fluid < grey < white matter, T2 the reverse, FLAIR nearly flat
with dark fluid). Each case draws its own contrasts, so that a network cannot key on absolute values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.configuration_lora_moe_hgd import MODALITIES
from .anatomy import Anatomy
from .noise import chance, fractal_noise, gaussian_blur, normal, smooth_noise, uniform
from .scanner import acquire, coil_sensitivity
from .style import Percentiles, PhantomStyle
from .tumour import Tumour

NECROSIS, OEDEMA, RIM = range(3)
# How far from each voxel the middle of a rim is looked for.
MIDDLE_WITHIN_MM = 2.0


def paint(anatomy: Anatomy, tumour: Tumour, *, generator: torch.Generator, style: PhantomStyle) -> dict[str, Tensor]:
    """Return one volume `(D, H, W)` per sequence: positive inside the brain, exactly zero outside."""
    shape, spacing_mm = anatomy.shape, anatomy.spacing_mm
    shares = lesion_shares(tumour, spacing_mm, generator, style)
    brain = _stripped_brain(anatomy, generator, style)
    shared_texture = fractal_noise(shape, scales_mm=(5, 10, 20), spacing_mm=spacing_mm, generator=generator)
    shared_grain = fractal_noise(shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator)
    severity = normal((3,), generator).tolist()
    vessels = _vessels(anatomy, generator)
    spots = _white_matter_spots(anatomy, tumour, generator, style)
    shown = _shown_oedema(anatomy, tumour, generator, style)
    outside, patches = _hull(anatomy, generator)
    coil = coil_sensitivity(anatomy, generator, style)
    volumes = {}
    for name in MODALITIES:
        z = _healthy(name, anatomy, generator, style)
        if name == "t1c":
            z = z + uniform(*style.vessels, generator) * vessels
        if name in ("t2", "flair"):
            z = z + uniform(*style.spots, generator) * spots
        grain = 0.6 * shared_grain + 0.8 * fractal_noise(
            shape, scales_mm=(3, 6), spacing_mm=spacing_mm, generator=generator
        )
        z = z + style.grain[name] * uniform(*style.grain_factor, generator) * grain
        z = _robust_z(z, brain)
        bone, patch = uniform(*style.bone[name], generator), uniform(*style.patches[name], generator)
        z = (1 - outside) * z + outside * (bone + (patch - bone) * patches)
        # The unit of what follows is that of a measured case, whose brain has a hull.
        z = _robust_z(z, brain)
        own_texture = fractal_noise(shape, scales_mm=(4, 8), spacing_mm=spacing_mm, generator=generator)
        texture = 0.7 * shared_texture + 0.7 * own_texture
        lesion = torch.zeros(shape)
        for region in range(3):
            level = _quantile(style.lesion[name][region], severity[region], generator)
            painted = level + style.texture[name][region] * uniform(*style.texture_factor, generator) * texture
            if region == OEDEMA:
                painted = painted * shown + uniform(*style.shining_through, generator) * z
            lesion += shares[region] * painted
        present = shares.sum(dim=0)
        z = (1 - present) * z + lesion
        volumes[name] = acquire(name, z, brain, coil, spacing_mm, generator, style)
    return volumes


def _robust_z(volume: Tensor, brain: Tensor) -> Tensor:
    """`(x - median) / MAD` over the brain: the unit in which lesions were measured."""
    values = volume[brain]
    median = values.median()
    return (volume - median) / (values - median).abs().median()


def _quantile(percentiles: Percentiles, severity: float, generator: torch.Generator) -> float:
    """A draw from a two-piece normal with these 10th, 50th and 90th percentiles.

    `severity` is shared by the sequences of a case: what is bright on T2 tends to be bright on FLAIR.
    """
    low, median, high = percentiles
    # 1.2816 standard deviations lie between the median and the 90th percentile of a normal.
    draw = 0.6 * severity + 0.8 * normal((), generator).item()
    return median + draw / 1.2816 * ((high - median) if draw > 0 else (median - low))


def _shown_oedema(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Factor of the oedema's brightness, `(D, H, W)` in [0, 1]: less in grey matter and fluid, and at the border."""
    _, grey, white = anatomy.tissues
    fluid = 1 - grey - white
    in_grey, in_fluid = uniform(*style.shown_in_grey, generator), uniform(*style.shown_in_fluid, generator)
    by_tissue = white + in_grey * grey + in_fluid * fluid
    fading = uniform(*style.fading, generator)
    return by_tissue * (1 - fading * (1 - (4 * tumour.infiltration).clamp(max=1)))


def lesion_shares(tumour: Tumour, spacing_mm: float, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """How much each voxel shows of necrosis, oedema and rim, `(3, D, H, W)` in [0, 1]; borders are soft.

    The bright half of a rim ends inside its label, by the style's `generosity`.
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
    # Where the label ends with the core there is no oedema beyond it.
    beyond = gaussian_blur((whole & ~core).float(), (soft_mm / spacing_mm,) * 3)
    shares[1] = torch.where(whole, shares[1], torch.minimum(shares[1], beyond))
    generosity = uniform(*style.generosity, generator)
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


def _healthy(name: str, anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    csf, grey, white = style.healthy[name]
    contrast = uniform(*style.grey_white, generator)
    levels = (csf * uniform(*style.fluid, generator), contrast * grey, contrast * white)
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


def _white_matter_spots(anatomy: Anatomy, tumour: Tumour, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """Bright spots and caps around the ventricles on T2 and FLAIR that are no tumour, in most cases."""
    spacing_mm = anatomy.spacing_mm
    if not chance(style.spots_share, generator):
        return torch.zeros(anatomy.shape)
    noise = fractal_noise(anatomy.shape, scales_mm=(6, 12), spacing_mm=spacing_mm, generator=generator)
    near_fluid = gaussian_blur(anatomy.tissues[0], (4 / spacing_mm,) * 3)
    field = anatomy.tissues[2] * (0.5 * noise + 3 * near_fluid.clamp(max=0.4))
    spots = (field > uniform(*style.spots_level, generator)) & ~tumour.regions[0]
    return gaussian_blur(spots.float(), (1.0 / spacing_mm,) * 3)


def _stripped_brain(anatomy: Anatomy, generator: torch.Generator, style: PhantomStyle) -> Tensor:
    """The mask of a skull-stripping tool: smooth, near the hull, in some cases and places far outside it."""
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
    """How much of a voxel lies outside the brain, and how much of that is no bone, both `(D, H, W)` in [0, 1]."""
    spacing_mm = anatomy.spacing_mm
    noise = fractal_noise(anatomy.shape, scales_mm=(8, 16), spacing_mm=spacing_mm, generator=generator)
    outside = 1 - anatomy.tissues.sum(dim=0).clamp(0, 1)
    return outside, (2 * noise - uniform(0.0, 3.0, generator)).clamp(0, 1)

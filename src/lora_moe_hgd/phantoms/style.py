"""Ranges from which phantoms are drawn, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Lowest and highest value of a uniform draw.
Range = tuple[float, float]
BySequence = Mapping[str, Range]
# 10th, 50th and 90th percentile over cases, and these percentiles for necrosis, oedema and enhancing rim.
Percentiles = tuple[float, float, float]
Levels = tuple[Percentiles, Percentiles, Percentiles]


@dataclass(frozen=True)
class PhantomStyle:
    """Ranges of everything that differs from phantom to phantom. Change single ranges with `dataclasses.replace`.

    Signal levels of healthy tissue have no unit, because each image is divided by the spread of its brain. Signal
    levels of lesions are robust z-scores relative to the healthy brain of the same case. If a field is a share of
    phantoms, one phantom has the property with this probability. The same holds for shares of tumours and of
    sequences.

    Example:
        >>> from dataclasses import replace
        >>> replace(PhantomStyle(), low_share=0.0).low_share
        0.0
    """

    # Share of the phantoms that are drawn from the style `NARROW` instead of this style.
    narrow_share: float = 0.2

    # --- The healthy brain -------------------------------------------------------------------------------------------

    # Size along each axis, rotation and shear, relative to the brain from which a phantom is made.
    scale: Range = (0.9, 1.1)
    rotation_degrees: Range = (-8.0, 8.0)
    shear: Range = (-0.04, 0.04)
    # Size of elastic displacements with bumps of 45 mm width, and with finer bumps of 18 mm that change the folding.
    bumps_mm: Range = (1.0, 4.0)
    fine_bumps_mm: Range = (0.3, 1.5)
    # Exponent of each voxel's share of fluid. An exponent below 1 makes ventricles and sulci wider, an exponent above
    # 1 narrower.
    fluid_exponent: Range = (0.6, 1.6)
    # Brains in which the width of the sulci differs between lobes: share of phantoms, and exponent as above.
    atrophy_share: float = 0.35
    atrophy_exponent: Range = (0.35, 1.6)
    # Brains whose ventricles grow or shrink to a random volume, from slits to hydrocephalus: share of phantoms, and
    # the volume.
    ventricles_share: float = 0.65
    ventricles_ml: Range = (5.0, 260.0)
    # Old infarcts, cysts and resection cavities: share of phantoms, largest number, radius, share of the tissue that
    # is lost, and width of the scar around them.
    cavities_share: float = 0.15
    most_cavities: float = 3.0
    cavity_mm: Range = (3.0, 26.0)
    lost_in_cavity: Range = (0.4, 1.0)
    scar_mm: Range = (0.0, 8.0)

    # --- The tumour --------------------------------------------------------------------------------------------------

    no_tumour_share: float = 0.2
    # Median of the whole tumour's volume in mL, and standard deviation of the logarithm of the volume. `core_share`
    # gives both for the core's share of the whole tumour.
    whole_tumour_ml: tuple[float, float] = (70.0, 1.0)
    least_whole_tumour_ml: float = 1.5
    core_share: tuple[float, float] = (0.27, 0.95)
    most_core_share: float = 0.9
    no_core_share: float = 0.06
    # Share of tumours that begin in the lowest third of the brain (cerebellum, brainstem, base of temporal and frontal
    # lobes), and factor of the volume of these tumours.
    low_share: float = 0.15
    low_size: float = 0.3
    # Probabilities of each further focus.
    more_foci_shares: tuple[float, ...] = (0.25, 0.1, 0.05)
    # Strength of the noise of 8 to 32 mm that modulates the outline of the whole tumour.
    raggedness: float = 0.35
    # Oedema reaches into the gyri like fingers: spread in grey matter relative to white matter, and blur of the
    # outline.
    spread_in_grey: Range = (0.05, 0.4)
    outline_mm: Range = (1.0, 2.5)
    # Share of cores that do not enhance at all, and share of cores that enhance and have no necrosis.
    not_enhancing_share: float = 0.08
    solid_share: float = 0.12
    # Necrotic share of the other cores, and the blur from which the depth inside the core is computed.
    necrotic_share: Range = (0.05, 0.5)
    core_depth_mm: Range = (3.5, 7.0)
    # Share of cores with a cyst, the part of the core that is cyst, and share of solid cores without any enhancement.
    cystic_share: float = 0.12
    cyst_share: Range = (0.5, 0.93)
    solid_silent_share: float = 0.08
    # Small enhancing nodules in or near the oedema: share of phantoms, largest number, and radius.
    satellites_share: float = 0.12
    most_satellites: float = 4.0
    satellite_mm: Range = (4.0, 8.0)
    # Level of patchy noise above which a part of the core does not enhance.
    silent_level: Range = (0.9, 2.5)
    # Displacement of healthy tissue by a core of 30 mL or more.
    mass_effect_mm: Range = (0.0, 9.0)

    # --- Contrast ----------------------------------------------------------------------------------------------------

    # Relative signal of fluid, grey and white matter. T1: fluid < grey < white matter, T2 the reverse, FLAIR nearly
    # flat with dark fluid.
    healthy: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {
            "t1": (-3.6, -0.50, 0.50),
            "t1c": (-3.6, -0.40, 0.45),
            "t2": (9.5, 0.55, -0.55),
            "flair": (-3.1, 0.40, -0.30),
        }
    )
    # Factor of the contrast between grey and white matter, which is weak in old T1 images, and factor of the level of
    # fluid.
    grey_white: Range = (0.35, 1.3)
    fluid: BySequence = field(
        default_factory=lambda: {"t1": (0.5, 1.6), "t1c": (0.5, 1.6), "t2": (0.45, 2.0), "flair": (-0.2, 1.6)}
    )
    # Sequences whose grey-white contrast is far from any real contrast: share of sequences, and the factor.
    odd_grey_white_share: float = 0.3
    odd_grey_white: Range = (-1.0, 3.0)
    # Factor of the levels of all lesions in a sequence.
    conspicuity: Range = (0.45, 1.15)
    # Robust z of the painted lesions. Values measured in the finished phantom are lower, because of grey matter,
    # fluid, fading, blur and `generosity`. These measured values were matched to real cases.
    lesion: Mapping[str, Levels] = field(
        default_factory=lambda: {
            "t1": ((-3.1, -1.55, -0.4), (-1.5, -0.70, 0.6), (-1.75, -1.15, -0.05)),
            "t1c": ((-5.2, -1.3, 0.2), (-2.6, -1.7, 0.2), (2.8, 3.4, 4.5)),
            "t2": ((5.0, 9.5, 18.0), (6.4, 11.4, 16.0), (3.0, 5.6, 8.4)),
            "flair": ((2.0, 4.3, 9.5), (7.6, 12.8, 16.5), (3.2, 5.0, 7.2)),
        }
    )
    # Levels of the inside of a cyst, and of solid tumour that does not enhance. These levels replace the level of
    # necrosis.
    cores: Mapping[str, Mapping[str, Percentiles]] = field(
        default_factory=lambda: {
            "cystic": {
                "t1": (-6.0, -4.5, -2.0),
                "t1c": (-6.5, -4.5, -2.0),
                "t2": (8.0, 14.0, 20.0),
                "flair": (-4.0, 1.0, 7.0),
            },
            "solid": {
                "t1": (-2.6, -1.2, 0.2),
                "t1c": (-3.2, -1.5, 0.2),
                "t2": (3.5, 7.5, 13.0),
                "flair": (4.0, 8.0, 14.0),
            },
        }
    )
    # Share of cores with a haemorrhage, and the robust z that blood adds.
    blood_share: float = 0.1
    blood: BySequence = field(
        default_factory=lambda: {"t1": (0.0, 7.0), "t1c": (0.0, 7.0), "t2": (-9.0, 5.0), "flair": (-5.0, 5.0)}
    )
    # Spread inside necrosis, oedema and rim, as robust z, and a factor of the spread.
    texture: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {
            "t1": (0.9, 0.70, 0.65),
            "t1c": (1.3, 1.5, 2.9),
            "t2": (2.2, 5.2, 2.8),
            "flair": (1.8, 3.3, 2.0),
        }
    )
    texture_factor: Range = (0.5, 1.3)
    # Brightness of oedema in grey matter and in fluid, relative to white matter, in which water gathers.
    shown_in_grey: Range = (0.4, 1.0)
    shown_in_fluid: Range = (0.2, 1.0)
    # Share of the healthy tissue's signal that is added to the oedema.
    shining_through: Range = (0.2, 0.8)
    # Share of the oedema's brightness that is lost at the border, in addition to the blur of the border. The standard
    # deviation of this blur is `border_mm`. Labels end where the blurred mask is a half.
    fading: Range = (0.1, 0.9)
    border_mm: Range = (1.0, 3.2)
    # Experts draw the label of a rim wider than the bright rim. The label ends where the blurred mask is about a half.
    # The bright rim ends where the blurred mask falls to this share of its value in the middle of the rim.
    generosity: Range = (0.3, 0.75)
    # Fine grain of healthy tissue, in the units of `healthy`, and a factor of the grain.
    grain: Mapping[str, float] = field(default_factory=lambda: {"t1": 0.05, "t1c": 0.04, "t2": 0.07, "flair": 0.09})
    grain_factor: Range = (0.5, 1.6)

    # --- Bright structures that are not tumour -----------------------------------------------------------------------

    # Levels in the units of `healthy`: vessels, plexus and hull on T1c; spots on T2 and FLAIR, and on T1 and T1c; and
    # the share of phantoms with spots.
    vessels: Range = (1.0, 9.0)
    spots: Range = (0.8, 7.0)
    spots_on_t1: Range = (-1.2, 0.0)
    spots_share: float = 0.85
    # Level of noise above which white matter is a spot. A lower level gives more spots.
    spots_level: Range = (0.7, 2.0)
    # Caps, confluent disease and transependymal oedema around the ventricles: share of phantoms and blur. Plaques:
    # share of phantoms, number and radius.
    caps_share: float = 0.45
    caps_mm: Range = (1.5, 9.0)
    plaques_share: float = 0.2
    plaques: Range = (3.0, 30.0)
    plaque_mm: Range = (1.5, 8.0)
    # Flowing fluid: share of phantoms, and levels in the units of `healthy`.
    flow_share: float = 0.35
    flow: BySequence = field(
        default_factory=lambda: {"t1": (0.0, 1.0), "t1c": (0.0, 1.0), "t2": (-10.0, 0.0), "flair": (0.0, 5.0)}
    )

    # --- Remains of skull-stripping at the brain's hull --------------------------------------------------------------

    # Robust z, relative to the brain without hull, of bone, and of patches of dura, marrow and fat.
    bone: BySequence = field(
        default_factory=lambda: {
            "t1": (-16.0, -8.0),
            "t1c": (-20.0, -9.0),
            "t2": (-13.0, -5.5),
            "flair": (-18.0, -9.0),
        }
    )
    patches: BySequence = field(
        default_factory=lambda: {"t1": (0.0, 12.0), "t1c": (4.0, 22.0), "t2": (2.0, 13.0), "flair": (-2.0, 7.0)}
    )
    # Level of the blurred brain at which the mask ends, and share of phantoms in which stripping partly fails.
    stripped_level: Range = (0.15, 0.5)
    stripping_fails_share: float = 0.25

    # --- The scanner, separately for each sequence -------------------------------------------------------------------

    # Surface coils are most sensitive near the hull: logarithm of the hull's additional brightness, and share of
    # phantoms.
    coil: Range = (0.15, 0.8)
    coil_share: float = 0.5
    # Distance from zero signal to the brain's median, as robust z.
    floor: BySequence = field(
        default_factory=lambda: {"t1": (7.0, 12.5), "t1c": (9.0, 16.0), "t2": (5.0, 8.5), "flair": (8.0, 13.5)}
    )
    # Standard deviation of the shift between sequences along each axis.
    misregistration_mm: float = 0.5
    # Blur (standard deviation) in all directions, and across thick slices.
    resolution_mm: Range = (0.4, 1.2)
    thick_slices_share: float = 0.5
    thick_slices_mm: Range = (1.0, 2.8)
    # Partial volume: share of sequences, and thickness of slices along a random axis over which voxels are averaged.
    partial_volume_share: float = 0.4
    partial_volume_mm: Range = (1.0, 6.0)
    gamma: Range = (0.6, 1.6)
    # Piecewise linear contrast curves: spread of the logarithm of their slopes. Local contrast: exponent by which
    # contrast is evened out over the brain. Display windows: quantiles at which they end.
    warp_share: float = 0.25
    warp: Range = (0.1, 0.6)
    local_contrast_share: float = 0.1
    local_contrast: Range = (0.1, 0.6)
    window_share: float = 0.15
    window_low: Range = (0.0, 0.04)
    window_high: Range = (0.96, 1.0)
    # Stripes like those caused by motion: amplitude relative to the signal, distance, and share of oblique stripes.
    ringing_share: float = 0.15
    ringing: Range = (0.005, 0.05)
    ringing_mm: Range = (4.0, 16.0)
    oblique_share: float = 0.3
    # Ghost, a faint shifted copy of the head: share of sequences, and relative brightness.
    ghost_share: float = 0.07
    ghost: Range = (0.02, 0.1)
    # Bias field: standard deviation of the logarithm of a smooth factor.
    bias: Range = (0.0, 0.1)
    # Shaded sequences: share of sequences, and brightness of the brightest side divided by that of the darkest side.
    shading_share: float = 0.4
    shading: Range = (1.05, 3.0)
    # Standard deviation of thermal noise, as robust z, and a factor of the noise.
    thermal: Mapping[str, float] = field(default_factory=lambda: {"t1": 0.075, "t1c": 0.05, "t2": 0.19, "flair": 0.17})
    thermal_factor: Range = (0.0, 3.0)


# Ranges of the training data, which are far wider than the ranges of real cases.
WIDE = PhantomStyle()

# Ranges matched to nine real cases (lab/phantoms.md). Effects that these cases do not show are switched off.
NARROW = PhantomStyle(
    narrow_share=0.0,
    atrophy_share=0.0,
    ventricles_share=0.0,
    cavities_share=0.0,
    no_tumour_share=0.0,
    whole_tumour_ml=(135.0, 0.62),
    least_whole_tumour_ml=4.0,
    core_share=(0.24, 0.85),
    most_core_share=0.8,
    no_core_share=0.0,
    low_share=0.1,
    more_foci_shares=(0.25, 0.08),
    cystic_share=0.0,
    solid_silent_share=0.0,
    satellites_share=0.0,
    grey_white=(0.35, 1.2),
    fluid=dict.fromkeys(("t1", "t1c", "t2", "flair"), (0.7, 1.4)),
    odd_grey_white_share=0.0,
    conspicuity=(1.0, 1.0),
    blood_share=0.0,
    blood=dict.fromkeys(("t1", "t1c", "t2", "flair"), (0.0, 0.0)),
    vessels=(1.5, 7.0),
    spots=(0.8, 6.0),
    spots_on_t1=(0.0, 0.0),
    spots_level=(0.9, 2.0),
    caps_share=0.0,
    plaques_share=0.0,
    flow_share=0.0,
    flow=dict.fromkeys(("t1", "t1c", "t2", "flair"), (0.0, 0.0)),
    misregistration_mm=0.4,
    partial_volume_share=0.0,
    gamma=(0.8, 1.25),
    warp_share=0.0,
    local_contrast_share=0.0,
    window_share=0.0,
    ringing_share=0.15,
    ringing=(0.005, 0.03),
    ringing_mm=(6.0, 14.0),
    oblique_share=0.0,
    ghost_share=0.0,
    bias=(0.0, 0.07),
    shading_share=0.0,
    thermal_factor=(0.4, 1.8),
)

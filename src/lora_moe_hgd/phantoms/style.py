"""Every range that phantoms are drawn from, as one value that goes from call to call and from process to process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Lowest and highest value of a uniform draw.
Range = tuple[float, float]
BySequence = Mapping[str, Range]
# Of necrosis, oedema and enhancing rim: 10th, 50th and 90th percentile over cases.
Percentiles = tuple[float, float, float]
Levels = tuple[Percentiles, Percentiles, Percentiles]


@dataclass(frozen=True)
class PhantomStyle:
    """Ranges of everything that differs from phantom to phantom; `dataclasses.replace` changes some of them.

    Levels of healthy tissue are relative: only their shape counts, the unit is set by the brain's own spread. Lesions
    are given in robust z-scores against the healthy brain of the same case. A share is a probability per phantom.

    Example:
        >>> from dataclasses import replace
        >>> replace(PhantomStyle(), low_share=0.0).low_share
        0.0
    """

    # Phantoms that are drawn from `NARROW` instead.
    narrow_share: float = 0.2

    # --- The healthy brain -------------------------------------------------------------------------------------------

    # Size along each axis, rotation and shear, relative to the brain that a phantom begins from.
    scale: Range = (0.9, 1.1)
    rotation_degrees: Range = (-8.0, 8.0)
    shear: Range = (-0.04, 0.04)
    # Height of elastic bumps of 45 mm width, and of finer ones of 18 mm that change the folding.
    bumps_mm: Range = (1.0, 4.0)
    fine_bumps_mm: Range = (0.3, 1.5)
    # Exponent of each voxel's share of fluid: below 1 ventricles and sulci are wider, above 1 narrower.
    fluid_exponent: Range = (0.6, 1.6)
    # Brains whose sulci are wide in some lobes, or narrow: the exponent then.
    atrophy_share: float = 0.35
    atrophy_exponent: Range = (0.35, 1.6)
    # Brains whose ventricles grow or shrink to a volume of their own, from slits to hydrocephalus.
    ventricles_share: float = 0.65
    ventricles_ml: Range = (5.0, 260.0)
    # Old infarcts, cysts and cavities of operations: how many at most, their radius, how much of the tissue they lose,
    # and the width of the scar around them.
    cavities_share: float = 0.15
    most_cavities: float = 3.0
    cavity_mm: Range = (3.0, 26.0)
    lost_in_cavity: Range = (0.4, 1.0)
    scar_mm: Range = (0.0, 8.0)

    # --- The tumour --------------------------------------------------------------------------------------------------

    no_tumour_share: float = 0.2
    # Median of the whole tumour's volume in mL and standard deviation of its logarithm; the same of the core's share.
    whole_tumour_ml: tuple[float, float] = (70.0, 1.0)
    least_whole_tumour_ml: float = 1.5
    core_share: tuple[float, float] = (0.27, 0.95)
    most_core_share: float = 0.9
    no_core_share: float = 0.06
    # How many tumours begin in the lowest third of the brain (cerebellum, brainstem, base of temporal and frontal
    # lobes), and their volume relative to that of the others.
    low_share: float = 0.15
    low_size: float = 0.3
    # Probability of a second focus, of a third and so on.
    more_foci_shares: tuple[float, ...] = (0.25, 0.1, 0.05)
    # How much noise of 8 to 32 mm modulates the outline of the whole tumour.
    raggedness: float = 0.35
    # Oedema reaches into the gyri like fingers: how well it spreads in grey matter beside white, and the
    # blur of its outline.
    spread_in_grey: Range = (0.05, 0.4)
    outline_mm: Range = (1.0, 2.5)
    # Cores that do not enhance at all, and cores that enhance without necrosis.
    not_enhancing_share: float = 0.08
    solid_share: float = 0.12
    # Necrotic share of the others, and how far the shape of the core is felt in its depth.
    necrotic_share: Range = (0.05, 0.5)
    core_depth_mm: Range = (3.5, 7.0)
    # Cores that are a cyst, with its share of them, and solid ones of which nothing enhances.
    cystic_share: float = 0.12
    cyst_share: Range = (0.5, 0.93)
    solid_silent_share: float = 0.08
    # Small enhancing nodules in or near the oedema: how many at most, and their radius.
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
    # Factors of the contrast between grey and white matter, which old T1 contrasts hardly show, and of fluid.
    grey_white: Range = (0.35, 1.3)
    fluid: BySequence = field(
        default_factory=lambda: {"t1": (0.5, 1.6), "t1c": (0.5, 1.6), "t2": (0.45, 2.0), "flair": (-0.2, 1.6)}
    )
    # Sequences whose grey-white contrast lies far from any real one.
    odd_grey_white_share: float = 0.3
    odd_grey_white: Range = (-1.0, 3.0)
    # Factor of the levels of all lesions in a sequence.
    conspicuity: Range = (0.45, 1.15)
    # Robust z as painted. Grey matter, fluid, fading, blur and `generosity` lower what is measured afterwards,
    # which is what was matched to real cases.
    lesion: Mapping[str, Levels] = field(
        default_factory=lambda: {
            "t1": ((-3.1, -1.55, -0.4), (-1.5, -0.70, 0.6), (-1.75, -1.15, -0.05)),
            "t1c": ((-5.2, -1.3, 0.2), (-2.6, -1.7, 0.2), (2.8, 3.4, 4.5)),
            "t2": ((5.0, 9.5, 18.0), (6.4, 11.4, 16.0), (3.0, 5.6, 8.4)),
            "flair": ((2.0, 4.3, 9.5), (7.6, 12.8, 16.5), (3.2, 5.0, 7.2)),
        }
    )
    # Instead of necrosis: the inside of a cyst, and solid tumour that does not enhance.
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
    # Cores that bled, and the robust z that blood adds.
    blood_share: float = 0.1
    blood: BySequence = field(
        default_factory=lambda: {"t1": (0.0, 7.0), "t1c": (0.0, 7.0), "t2": (-9.0, 5.0), "flair": (-5.0, 5.0)}
    )
    # Spread inside a region, in the same units, and its factor.
    texture: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {
            "t1": (0.9, 0.70, 0.65),
            "t1c": (1.3, 1.5, 2.9),
            "t2": (2.2, 5.2, 2.8),
            "flair": (1.8, 3.3, 2.0),
        }
    )
    texture_factor: Range = (0.5, 1.3)
    # How much of the oedema's brightness grey matter and fluid inside it show: water gathers in white matter.
    shown_in_grey: Range = (0.4, 1.0)
    shown_in_fluid: Range = (0.2, 1.0)
    # How much of the healthy tissue shows through the oedema.
    shining_through: Range = (0.2, 0.8)
    # How much of the oedema's brightness is lost at the border, beside what the border's blur (its standard deviation)
    # takes: labels end at a half of the blurred mask.
    fading: Range = (0.1, 0.9)
    border_mm: Range = (1.0, 3.2)
    # Whoever draws a rim is generous: its label ends where its blurred mask is about a half, its brightness where that
    # has fallen to this share of the highest value near by, which is the middle of the rim.
    generosity: Range = (0.3, 0.75)
    # Fine grain of healthy tissue (relative, as `healthy`), and its factor.
    grain: Mapping[str, float] = field(default_factory=lambda: {"t1": 0.05, "t1c": 0.04, "t2": 0.07, "flair": 0.09})
    grain_factor: Range = (0.5, 1.6)

    # --- What is bright and no tumour --------------------------------------------------------------------------------

    # In the units of `healthy`: vessels, plexus and hull on T1c; spots on T2 and FLAIR, in a share of the cases.
    vessels: Range = (1.0, 9.0)
    spots: Range = (0.8, 7.0)
    spots_on_t1: Range = (-1.2, 0.0)
    spots_share: float = 0.85
    # Level of noise above which white matter is a spot: the lower, the more of them.
    spots_level: Range = (0.7, 2.0)
    # Caps, confluent disease and transependymal oedema around the ventricles: their blur. Plaques: number and radius.
    caps_share: float = 0.45
    caps_mm: Range = (1.5, 9.0)
    plaques_share: float = 0.2
    plaques: Range = (3.0, 30.0)
    plaque_mm: Range = (1.5, 8.0)
    # Fluid that flows, in the units of `healthy`.
    flow_share: float = 0.35
    flow: BySequence = field(
        default_factory=lambda: {"t1": (0.0, 1.0), "t1c": (0.0, 1.0), "t2": (-10.0, 0.0), "flair": (0.0, 5.0)}
    )

    # --- What skull-stripping leaves at the brain's hull -------------------------------------------------------------

    # Robust z of the brain without it: bone, and patches of dura, marrow and fat.
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
    # Where the mask ends, as a level of the blurred brain, and in how many cases it fails in part.
    stripped_level: Range = (0.15, 0.5)
    stripping_fails_share: float = 0.25

    # --- The scanner, each sequence by itself ------------------------------------------------------------------------

    # Surface coils are most sensitive near by: how much brighter the hull can be (logarithm), in how many
    # of the cases.
    coil: Range = (0.15, 0.8)
    coil_share: float = 0.5
    # How far below the brain's median no signal lies (robust z).
    floor: BySequence = field(
        default_factory=lambda: {"t1": (7.0, 12.5), "t1c": (9.0, 16.0), "t2": (5.0, 8.5), "flair": (8.0, 13.5)}
    )
    # Standard deviation of a shift along each axis.
    misregistration_mm: float = 0.5
    # Blur (standard deviation) in all directions, and across thick slices.
    resolution_mm: Range = (0.4, 1.2)
    thick_slices_share: float = 0.5
    thick_slices_mm: Range = (1.0, 2.8)
    # Slices in a random plane, means over their thickness.
    partial_volume_share: float = 0.4
    partial_volume_mm: Range = (1.0, 6.0)
    gamma: Range = (0.6, 1.6)
    # Contrast curves of pieces, with the spread of the logarithm of their slopes; contrast made even over the brain by
    # this exponent; display windows by the quantiles they end at.
    warp_share: float = 0.25
    warp: Range = (0.1, 0.6)
    local_contrast_share: float = 0.1
    local_contrast: Range = (0.1, 0.6)
    window_share: float = 0.15
    window_low: Range = (0.0, 0.04)
    window_high: Range = (0.96, 1.0)
    # Stripes, as motion leaves them: their amplitude relative to the signal, and distance.
    ringing_share: float = 0.15
    ringing: Range = (0.005, 0.05)
    ringing_mm: Range = (4.0, 16.0)
    oblique_share: float = 0.3
    # A faint shifted copy of the head.
    ghost_share: float = 0.07
    ghost: Range = (0.02, 0.1)
    # Standard deviation of a smooth field (logarithm of the factor).
    bias: Range = (0.0, 0.1)
    # How many times brighter than its darkest side the brightest side of a shaded sequence is.
    shading_share: float = 0.4
    shading: Range = (1.05, 3.0)
    # Thermal noise (robust z) and its factor.
    thermal: Mapping[str, float] = field(default_factory=lambda: {"t1": 0.075, "t1c": 0.05, "t2": 0.19, "flair": 0.17})
    thermal_factor: Range = (0.0, 3.0)


# The ranges of the training data: far wider than those of real cases.
WIDE = PhantomStyle()

# Ranges matched to nine real cases (lab/phantoms.md): no effect that these do not show.
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

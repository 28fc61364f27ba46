"""Rules for cases from every source: resample volumes to one grid, find the brain, and refuse unusable cases.

`settle` takes the volumes of a case unchanged, as read from files or arrays. `settle` returns the volumes on one grid,
with finite values that are zero outside the brain. It also returns each error and each warning as a `Finding`. The
image processor and the reader of case folders both call `settle`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .brain import (
    LEAST_BRAIN_LITRES,
    brain_of,
    constant_fills,
    cut_off_share,
    dark_rim,
    head_litres,
    spread_of,
)
from .findings import WHOLE_CASE, BadInputError, Finding, Level, prepare_command, raise_errors
from .grids import Volume, centres_apart_mm, check_affine, on_grid_of
from .label_schemes import LabelMapError, LabelScheme, detect_label_scheme, label_values
from .task import BRAIN_TUMOUR, Task

LABEL_MAP = "label map"
# In BraTS-Africa, the brain masks of two sequences of a case overlap by at least 0.99.
LEAST_OVERLAP = 0.9
# Smallest difference between the brightness of ET on T1c and on T1, in MADs of the brain. In BraTS-Africa, the
# difference is 1.8 to 6. It is mostly lower if another label is mistaken for ET.
ENHANCEMENT = 0.5
MOST_LABELS = 8
# A brain is cut off by the field of view if its area on the border exceeds this share of its largest cross-section.
CUT_OFF = 0.3


@dataclass(frozen=True)
class SettledCase:
    """A case that `settle` has checked and resampled to one grid, with all warnings and errors.

    Attributes:
        arrays: Volume of each sequence, by name, in channel order: `(D, H, W)` float32, zero outside the brain.
            Sequences whose voxels or affine are unusable are left out.
        affine: Affine of the grid to which all volumes were resampled, voxel to millimetre, `(4, 4)`.
        reference: Name of the sequence that had this grid already.
        interpolated: Names of the volumes that were resampled by interpolation: sequence names and `label map`.
        labels: Label map on the grid of the sequences, uint8; `None` if there is no usable label map.
        scheme: Label scheme of the label map.
        findings: Errors and warnings.
    """

    arrays: dict[str, np.ndarray]
    affine: np.ndarray
    reference: str
    interpolated: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    scheme: LabelScheme | None = None
    findings: tuple[Finding, ...] = ()

    def only(self, names: Iterable[str]) -> SettledCase:
        """Return the case with only the named sequences."""
        wanted = set(names)
        return replace(self, arrays={name: array for name, array in self.arrays.items() if name in wanted})

    @property
    def regions(self) -> np.ndarray:
        """Regions of the label map, `(R, D, H, W)` bool: WT, TC and ET for brain tumours."""
        assert self.labels is not None
        assert self.scheme is not None
        return self.scheme.decode(self.labels)

    def raise_errors(self, *, strict: bool = False) -> SettledCase:
        """Return this case, or raise if it cannot be used.

        Raises:
            BadInputError: If a finding has the level `error`, or, with `strict`, if there is any finding.
        """
        raise_errors(self.findings, strict=strict)
        return self


@dataclass
class _Notes:
    findings: list[Finding] = field(default_factory=list)

    def add(self, where: str, message: str, level: Level = "warning") -> None:
        self.findings.append(Finding(where, message, level))


def settle(
    volumes: Mapping[str, Volume],
    *,
    label_map: Volume | None = None,
    label_schemes: Sequence[str] = (),
    reference: str | None = None,
    not_finite: Level = "warning",
    allow_skull: bool = False,
    allow_partial: bool = False,
    task: Task = BRAIN_TUMOUR,
) -> SettledCase:
    """Check the volumes of one case, resample them to one grid, and set the background to zero.

    Args:
        volumes: Volume of each sequence that the case has, by name, in channel order; at least one.
        label_map: Ground truth, which is resampled to the same grid as the sequences.
        label_schemes: Names of the label schemes that the label map may have; an empty list allows every scheme.
        reference: Name of the sequence to whose grid all other volumes are resampled. `None` means the first usable
            sequence whose file or image object states an affine. If none states an affine, `None` means the first
            usable sequence.
        not_finite: Whether NaN and infinite voxels give an `error` or a `warning`. In both cases, these voxels are set
            to zero.
        allow_skull: Accept heads with their skull, with a warning.
        allow_partial: Accept volumes that show only a part of a brain, with a warning.
        task: Task that defines the regions and the label schemes.
    """
    notes = _Notes()
    usable = {}
    for name, volume in volumes.items():
        cleaned = _clean(notes, name, volume, not_finite)
        if cleaned is not None:
            usable[name] = cleaned
    if not usable:
        return SettledCase({}, np.eye(4), "", findings=tuple(notes.findings))
    if reference not in usable:
        # Prefer a sequence whose source states an affine. Other affines are assumptions.
        reference = next((name for name, volume in usable.items() if volume.has_geometry), next(iter(usable)))
    like = usable[reference]
    arrays, interpolated = {}, []
    for name, volume in usable.items():
        placed = _on_reference(notes, name, volume, reference, like)
        if placed is not None:
            arrays[name] = placed[0].array
            interpolated += [name] if placed[1] else []
    arrays = _without_rims(notes, arrays)
    _judge_brains(
        notes, {name: Volume(array, like.affine) for name, array in arrays.items()}, allow_skull, allow_partial
    )
    case = SettledCase(arrays, like.affine, reference)
    if label_map is not None:
        labels, scheme, moved = _settle_labels(notes, label_map, label_schemes, reference, like, task)
        interpolated += [LABEL_MAP] if moved else []
        case = replace(case, labels=labels, scheme=scheme)
        if labels is not None:
            _judge_labels(notes, case, task)
    return replace(case, interpolated=tuple(interpolated), findings=tuple(notes.findings))


def clean_volume(name: str, volume: Volume) -> tuple[Volume, tuple[Finding, ...]]:
    """Set NaN, infinite voxels and background to zero; return the volume and the warnings about the volume.

    Raises:
        BadInputError: If the volume is empty, constant, or a label map.
    """
    notes = _Notes()
    cleaned = _clean(notes, name, volume, "warning")
    raise_errors(notes.findings)
    assert cleaned is not None
    return cleaned, tuple(notes.findings)


def result_warnings(names: Iterable[str], task: Task = BRAIN_TUMOUR) -> tuple[Finding, ...]:
    """Return the task's warnings for a case that has only the sequences `names`, for example that T1c is missing."""
    present = set(names)
    return tuple(
        Finding(WHOLE_CASE, warning) for absent, warning in task.without.items() if not present & {*absent.split("+")}
    )


def _clean(notes: _Notes, name: str, volume: Volume, not_finite: Level) -> Volume | None:
    """Set NaN, infinite voxels and background to zero, and add findings about the volume to `notes`.

    The result is `None` if the volume is unusable.
    """
    array = volume.array
    for oddity in volume.oddities:
        notes.add(name, oddity)
    try:
        check_affine(name, volume.affine, array.shape)
    except BadInputError as error:
        notes.findings.append(error.finding)
        return None
    finite = np.isfinite(array)
    if not finite.any():
        notes.add(name, "All voxels are NaN or infinite. Export the sequence again.", "error")
        return None
    if not finite.all():
        count = array.size - np.count_nonzero(finite)
        are = "voxel is" if count == 1 else "voxels are"
        notes.add(
            name, f"{count} {are} not finite (NaN or infinite). NaN and infinity are treated as zero.", not_finite
        )
        array = np.where(finite, array, 0)
    if not array.any():
        notes.add(name, "All voxels are zero. Leave the sequence out if it was not acquired.", "error")
        return None
    if array.min() == array.max():
        found = f"{array.flat[0]:g}"
        notes.add(name, f"All voxels are {found}. Leave the sequence out if it was not acquired.", "error")
        return None
    # A label map has few values. Check a sample first, which is faster to check and never has more values than the
    # volume.
    values = np.unique(array[::2, ::2, ::2])
    if len(values) <= MOST_LABELS and (values == np.rint(values)).all() and len(np.unique(array)) <= MOST_LABELS:
        found = ", ".join(f"{value:g}" for value in np.unique(array))
        notes.add(
            name,
            f"This is a label map with the values {found}, not an image. Give the image of this sequence instead.",
            "error",
        )
        return None
    fills = constant_fills(array)
    if fills:
        found = ", ".join(f"{value:g}" for value in fills)
        notes.add(name, f"The background has the value {found} instead of 0. The background was set to 0.")
        array = np.where(np.logical_or.reduce(list(fills.values())), 0, array)
    if not array.any():
        notes.add(name, "The image shows only constant background. Leave the sequence out.", "error")
        return None
    if spread_of(array[array != 0]) == 0:
        level = np.median(array[array != 0])
        notes.add(
            name,
            f"More than half of the brain has the value {level:g}. Export the sequence again or leave it out.",
            "error",
        )
        return None
    return replace(volume, array=array)


def _on_reference(
    notes: _Notes, name: str, volume: Volume, reference: str, like: Volume, *, labels: bool = False
) -> tuple[Volume, bool] | None:
    """Return the volume on the reference's grid, and whether its values were interpolated.

    If the volume cannot be aligned with the reference, the result is `None`, and an error is added to `notes`.
    """
    if volume is like:
        return volume, False
    same_shape = volume.array.shape == like.array.shape
    if not (volume.has_geometry and like.has_geometry) and not same_shape:
        shapes = f"{volume.array.shape} and {like.array.shape}"
        notes.add(
            name,
            f"The shape differs from the shape of {reference} ({shapes}), and without an affine the volumes cannot be "
            "aligned. Give files that state an affine, such as NIfTI.",
            "error",
        )
        return None
    if volume.has_geometry != like.has_geometry:
        notes.add(
            name, f"Either this volume or {reference} has no affine. Both volumes are assumed to have the same grid."
        )
        return Volume(volume.array, like.affine), False
    placed, step, apart_mm = on_grid_of(volume, like, labels=labels)
    if step == "taken over":
        notes.add(
            name,
            f"The affine places the voxels up to {apart_mm:.3g} mm away from the voxels of {reference}. This small "
            f"distance is ignored: the affine of {reference} is used for both volumes.",
        )
    if step == "interpolated":
        if not placed.array.any() and volume.array.any():
            distance = centres_apart_mm(volume, like)
            notes.add(
                name,
                f"The volume does not overlap with {reference}: the centres of the two volumes are {distance:.0f} mm "
                "apart. Register the volumes to each other first.",
                "error",
            )
            return None
        how = "nearest-neighbour" if labels else "linear"
        notes.add(
            name,
            f"The grid differs from the grid of {reference} ({_differences(volume, like)}). The volume was resampled "
            f"to the grid of {reference} by {how} interpolation.",
        )
    return placed, step == "interpolated"


def _differences(volume: Volume, like: Volume) -> str:
    """Describe the difference between two grids in a few words."""
    edges = [np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (volume, like)]
    if np.abs(edges[0] - edges[1]).max() > 1e-2:
        sizes = [" x ".join(f"{edge:.3g}" for edge in sizes) for sizes in edges]
        return f"voxels of {sizes[0]} mm instead of {sizes[1]} mm"
    if volume.array.shape != like.array.shape:
        return f"shape {volume.array.shape} instead of {like.array.shape}"
    distance = centres_apart_mm(volume, like)
    return f"centres {distance:.3g} mm apart" if distance > 0.1 else "rotated axes"


def _without_rims(notes: _Notes, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Set dark noise around the brain to zero, except where another sequence shows tissue."""
    rims = {name: rim for name, array in arrays.items() if (rim := dark_rim(array)) is not None}
    if not rims:
        return arrays
    beside = np.logical_and.reduce([rims.get(name, False) | (array == 0) for name, array in arrays.items()])
    cleared = dict(arrays)
    for name, rim in rims.items():
        share = np.count_nonzero(rim & beside) / np.count_nonzero(arrays[name])
        if share > 0.01:
            notes.add(name, f"{share:.0%} of the voxels are dark noise around the brain. The noise was set to 0.")
            cleared[name] = np.where(rim & beside, 0, arrays[name])
    return cleared


def _judge_brains(notes: _Notes, volumes: Mapping[str, Volume], allow_skull: bool, allow_partial: bool) -> None:
    """Add findings about heads with skull, partial brains, misaligned brains, and images that are given twice."""
    brains = {name: volume.array != 0 for name, volume in volumes.items()}
    for name, brain in brains.items():
        litres = np.count_nonzero(brain) * volumes[name].voxel_litres
        head = head_litres(brain, volumes[name].affine)
        if head:
            notes.add(
                name,
                f"{head:.1f} litres of tissue look like a head with its skull. Remove the skull first: "
                f"{prepare_command()}. To segment a head with its skull, use `--allow-skull` (`allow_skull=True`).",
                "warning" if allow_skull else "error",
            )
        elif litres < LEAST_BRAIN_LITRES:
            notes.add(
                name,
                f"{litres:.2g} litres of tissue are too little for a brain. Check the voxel size. To segment a part "
                "of a brain, use `--allow-partial` (`allow_partial=True`).",
                "warning" if allow_partial else "error",
            )
        elif cut_off_share(brain) > CUT_OFF:
            notes.add(
                name,
                "The field of view cuts off a part of the brain, or the skull was not removed. Check that the image "
                "shows the complete brain and no skull.",
            )
    overlaps = {
        pair: np.count_nonzero(brains[pair[0]] & brains[pair[1]]) / np.count_nonzero(brains[pair[0]] | brains[pair[1]])
        for pair in itertools.combinations(brains, 2)
    }
    if overlaps and min(overlaps.values()) < LEAST_OVERLAP:
        pair = min(overlaps, key=lambda pair: overlaps[pair])
        notes.add(
            WHOLE_CASE,
            f"The brains in {pair[0]} and {pair[1]} share only {overlaps[pair]:.0%} of their voxels. The result is "
            "unreliable unless the images are registered to each other. Check the registration.",
        )
    for first, second in overlaps:
        if np.array_equal(volumes[first].array, volumes[second].array):
            notes.add(second, f"The volume has exactly the same voxels as {first}. Check which volume is wrong.")


def _settle_labels(
    notes: _Notes, label_map: Volume, schemes: Sequence[str], reference: str, like: Volume, task: Task
) -> tuple[np.ndarray | None, LabelScheme | None, bool]:
    """Return the label map on the reference's grid, its scheme, and whether it was resampled."""
    for oddity in label_map.oddities:
        notes.add(LABEL_MAP, oddity)
    try:
        check_affine(LABEL_MAP, label_map.affine, label_map.array.shape)
        scheme = detect_label_scheme(label_values(label_map.array), schemes, task.schemes)
    except BadInputError as error:
        notes.findings.append(error.finding)
        return None, None, False
    except LabelMapError as error:
        notes.add(LABEL_MAP, str(error), "error")
        return None, None, False
    if not label_map.has_geometry and label_map.array.shape == like.array.shape:
        # An array without an affine has the grid of the images.
        label_map = Volume(label_map.array, like.affine, like.has_geometry)
    placed = _on_reference(notes, LABEL_MAP, label_map, reference, like, labels=True)
    if placed is None:
        return None, None, False
    return np.rint(placed[0].array).astype(np.uint8), scheme, placed[1]


def _judge_labels(notes: _Notes, case: SettledCase, task: Task) -> None:
    """Add warnings about empty label maps, labels outside the brain, and an ET that T1c shows no brighter than T1."""
    regions = dict(zip(task.regions, case.regions, strict=True))
    whole = np.logical_or.reduce(list(regions.values()))
    if not whole.any():
        notes.add(LABEL_MAP, f"The label map contains no {task.target}.")
        return
    brain = brain_of(case.arrays.values())
    outside = np.count_nonzero(whole & ~brain) / np.count_nonzero(whole)
    if outside > 0.05:
        notes.add(
            LABEL_MAP,
            f"{outside:.0%} of the {task.target} is outside the brain. Check that the label map belongs to this case.",
        )
    enhancing = regions.get("et", np.zeros_like(whole))
    if enhancing.any() and {"t1", "t1c"} <= set(case.arrays):
        rest = brain & ~whole
        gain = _height(case.arrays["t1c"], enhancing, rest) - _height(case.arrays["t1"], enhancing, rest)
        if gain < ENHANCEMENT:
            notes.add(
                LABEL_MAP,
                f"With the scheme {case.scheme}, ET is not clearly brighter on t1c than on t1: the difference is "
                f"{gain:.2f} median absolute deviations of the brain. Check the scheme (`--label-scheme`).",
            )


def _height(volume: np.ndarray, inside: np.ndarray, rest: np.ndarray) -> float:
    """Median of `volume` in `inside` minus median in `rest`, divided by the median absolute deviation in `rest`."""
    values = volume[rest]
    if not values.size:
        return 0.0
    return float((np.median(volume[inside]) - np.median(values)) / max(spread_of(values), 1e-6))

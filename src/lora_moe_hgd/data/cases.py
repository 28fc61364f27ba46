"""Reading a case: its sequences on one grid, its label map as regions, and everything that is odd about either."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import LabelMapError, LabelScheme, detect_label_scheme, label_values
from .case_files import CaseFiles
from .findings import BadInputError, Finding, Level, got
from .grids import same_grid
from .nifti import has_geometry, read_image, read_stack

# Of 13 cases of BraTS-Africa the brains take 1.16 to 1.84 litres; with skull, face and neck it is 3 and more.
BRAIN_LITRES = (0.5, 2.5)
# Of the same cases the masks of two sequences overlap by 0.999 and more.
LEAST_OVERLAP = 0.9
# Of the same cases ET lies 1.8 to 6 spreads of the brain higher on T1c than on T1. Other labels, taken for ET, fall
# short of this in 9 of 12 (necrosis) and 10 of 13 (oedema).
ENHANCEMENT = 0.5
MOST_LABELS = 8


@dataclass
class CaseReading:
    """What was read of a case.

    Attributes:
        case: Its files.
        images: Each sequence that could be read, float32, all on one grid, in channel order.
        reference: Name of the sequence whose grid that is.
        interpolated: Sequences, and `seg` for the label map, that lay on another grid.
        labels: Label map on the same grid, if there is one and it was asked for.
        scheme: Its scheme.
        findings: What is wrong or odd.
    """

    case: CaseFiles
    images: dict[str, nib.Nifti1Image] = field(default_factory=dict)
    reference: str = ""
    interpolated: list[str] = field(default_factory=list)
    labels: np.ndarray | None = None
    scheme: LabelScheme | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def regions(self) -> np.ndarray:
        """WT, TC and ET `(3, D, H, W)` bool of the label map."""
        assert self.labels is not None
        assert self.scheme is not None
        return self.scheme.decode(self.labels)

    def checked(self, *, strict: bool = False) -> CaseReading:
        """The same reading, if it can be used.

        Raises:
            BadInputError: On the first error; with `strict` on the first warning as well.
        """
        for finding in sorted(self.findings, key=lambda finding: finding.level != "error"):
            if strict or finding.level == "error":
                raise BadInputError(finding.where, finding.message)
        return self

    def note(self, path: Path, rule: str, value: object, level: Level = "warning") -> None:
        self.findings.append(Finding(path, got(rule, value), level))


def read_case(
    case: CaseFiles, *, labels: bool = False, reference: str | None = None, not_finite: Level = "warning"
) -> CaseReading:
    """Read the files of a case, and judge them; what cannot be used is left out and found in `findings`.

    Args:
        case: What to read.
        labels: Whether to read the label map, which must then be there.
        reference: Sequence whose grid the others are brought to; the first that can be read when `None`.
        not_finite: What NaN and infinite voxels are; as a warning they count as zero.
    """
    reading = CaseReading(case)
    if reference is not None and reference not in case.images:
        reading.note(case.folder, f"must hold the reference {reference}", ", ".join(case.images), "error")
        return reading
    cleaned = {name: _clean(reading, name, image, not_finite) for name, image in _read_images(reading).items()}
    usable = {name: image for name, image in cleaned.items() if image is not None}
    if not usable:
        if not reading.findings:
            reading.note(case.folder, f"must hold at least one of {', '.join(MODALITIES)}", "none", "error")
        return reading
    reading.reference = reference if reference in usable else next(iter(usable))
    for name, image in usable.items():
        placed = _on_reference(reading, case.images[name], image, usable[reading.reference])
        if placed is not None:
            reading.images[name] = placed[0]
            if placed[1]:
                reading.interpolated.append(name)
    _judge_brains(reading)
    if labels:
        _read_labels(reading)
    return reading


def _read_images(reading: CaseReading) -> dict[str, nib.Nifti1Image]:
    case, images = reading.case, {}
    try:
        if case.channels:
            (path,) = set(case.images.values())
            stack = read_stack(path, case.channels)
            reading.findings += dict.fromkeys(finding for volume in stack.values() for finding in volume.findings)
            return {name: stack[name].image for name in case.images}
    except BadInputError as error:
        reading.findings.append(error.finding)
        return {}
    for name, path in case.images.items():
        try:
            volume = read_image(path)
            reading.findings += volume.findings
            images[name] = volume.image
        except BadInputError as error:
            reading.findings.append(error.finding)
    return images


def _clean(reading: CaseReading, name: str, image: nib.Nifti1Image, not_finite: Level) -> nib.Nifti1Image | None:
    """The image with finite values and a background of zero, or `None` if it shows nothing."""
    path, array = reading.case.images[name], np.asarray(image.dataobj)
    finite = np.isfinite(array)
    if not finite.all():
        found = f"{array.size - np.count_nonzero(finite)} voxels that are not"
        reading.note(path, "its voxels must be finite (others count as zero)", found, not_finite)
        array = np.where(finite, array, 0)
    lowest, highest = float(array.min()), float(array.max())
    if lowest == highest:
        found = "none that differs from zero" if lowest == 0 else f"{lowest:g} everywhere"
        reading.note(path, f"must show a brain in {name} (leave an absent sequence out)", found, "error")
        return None
    corners = array[:: array.shape[0] - 1 or 1, :: array.shape[1] - 1 or 1, :: array.shape[2] - 1 or 1]
    background = float(corners.flat[0])
    # Sequences that were normalised with their background, which then is no longer zero.
    if background != 0 and (corners == background).all() and np.count_nonzero(array == background) > 0.2 * array.size:
        reading.note(path, "its background must be zero (taken for zero)", f"{background:g}")
        array = np.where(array == background, 0, array)
    # A label map has few values, and sampled voxels cannot have more than all.
    values = np.unique(array[::2, ::2, ::2])
    if len(values) <= MOST_LABELS and (values == np.rint(values)).all() and len(np.unique(array)) <= MOST_LABELS:
        found = f"a label map with the values {', '.join(f'{value:g}' for value in np.unique(array))}"
        reading.note(path, f"must be an image to be {name}", found, "error")
        return None
    if not has_geometry(image) and path.suffix != ".npy":
        codes = "".join(nib.aff2axcodes(image.affine))
        reading.note(path, f"its header must say how it lies (taken for {codes})", "sform and qform codes 0")
    return image if array is image.dataobj else nib.Nifti1Image(array, image.affine, image.header)


def _on_reference(
    reading: CaseReading, path: Path, image: nib.Nifti1Image, reference: nib.Nifti1Image, *, labels: bool = False
) -> tuple[nib.Nifti1Image, bool] | None:
    """The image on the grid of the reference and whether it was interpolated, or `None` if that cannot be."""
    if image is reference:
        return image, False
    where = f"the grid of {reading.reference}"
    if image.shape != reference.shape and not (has_geometry(image) and has_geometry(reference)):
        found = f"shapes {image.shape} and {reference.shape}, and no geometry to go by"
        reading.note(path, f"must lie on {where}", found, "error")
        return None
    placed, step, apart_mm = same_grid(image, reference, labels=labels)
    if step == "taken over":
        reading.note(path, f"must lie on {where} (which is taken)", f"an affine that is up to {apart_mm:.3g} mm off")
    if step == "interpolated":
        how = "its nearest labels are taken" if labels else "interpolated"
        found = f"shape {image.shape} and {reference.shape}, up to {apart_mm:.3g} mm apart"
        if not np.asarray(placed.dataobj).any() and np.asarray(image.dataobj).any():
            reading.note(path, f"must overlap with {reading.reference}", found, "error")
            return None
        reading.note(path, f"must lie on {where} ({how})", found)
    return placed, step == "interpolated"


def _judge_brains(reading: CaseReading) -> None:
    """Warn of brains that are no brains, not of one place, or the same image twice."""
    case, images = reading.case, reading.images
    brains = {name: np.asarray(image.dataobj) != 0 for name, image in images.items()}
    for name, brain in brains.items():
        litres = np.count_nonzero(brain) * abs(np.linalg.det(images[name].affine[:3, :3])) / 1e6
        found = f"{litres:.2g} litres, {np.count_nonzero(brain) / brain.size:.1%} of the voxels"
        low, high = BRAIN_LITRES
        if litres > high:
            reading.note(
                case.images[name], f"its voxels beside zero must be a brain, not skull and air, {high} l", found
            )
        if litres < low:
            reading.note(case.images[name], f"its voxels beside zero must be a whole brain, {low} l", found)
    overlaps = {
        pair: np.count_nonzero(brains[pair[0]] & brains[pair[1]]) / np.count_nonzero(brains[pair[0]] | brains[pair[1]])
        for pair in itertools.combinations(brains, 2)
    }
    if overlaps and min(overlaps.values()) < LEAST_OVERLAP:
        pair = min(overlaps, key=lambda pair: overlaps[pair])
        rule = f"{pair[0]} and {pair[1]} must show the same brain, IoU at least {LEAST_OVERLAP}"
        reading.note(case.folder, rule, f"{overlaps[pair]:.3f}")
    for first, second in overlaps:
        if np.array_equal(images[first].dataobj, images[second].dataobj):
            reading.note(case.images[second], f"{second} must be another image than {first}", "the same voxels")


def _read_labels(reading: CaseReading) -> None:
    case = reading.case
    try:
        path = case.labelled()
        volume = read_image(path)
    except BadInputError as error:
        reading.findings.append(error.finding)
        return
    reading.findings += volume.findings
    image = volume.image
    array = np.asarray(image.dataobj)
    try:
        scheme = detect_label_scheme(label_values(array), case.label_schemes)
    except LabelMapError as error:
        reading.note(path, error.rule, error.value, "error")
        return
    if not reading.reference:
        return
    reference = reading.images[reading.reference]
    if not has_geometry(image) and image.shape == reference.shape:
        image = nib.Nifti1Image(array, reference.affine, reference.header)
    placed = _on_reference(reading, path, image, reference, labels=True)
    if placed is None:
        return
    if placed[1]:
        reading.interpolated.append("seg")
    reading.labels, reading.scheme = np.rint(np.asarray(placed[0].dataobj)).astype(np.uint8), scheme
    _judge_labels(reading, path)


def _judge_labels(reading: CaseReading, path: Path) -> None:
    """Warn of labels that lie beside the brain, or whose ET does not enhance."""
    regions = reading.regions
    volumes = {name: np.asarray(image.dataobj) for name, image in reading.images.items()}
    whole, enhancing = regions[0], regions[2]
    if not whole.any():
        reading.note(path, "must mark a tumour", "none")
        return
    brain = np.logical_or.reduce([volume != 0 for volume in volumes.values()])
    outside = np.count_nonzero(whole & ~brain) / np.count_nonzero(whole)
    if outside > 0.05:
        reading.note(path, "must mark a tumour inside the brain", f"{outside:.0%} outside")
    if enhancing.any() and {"t1", "t1c"} <= set(volumes):
        rest = brain & ~whole
        gain = _height(volumes["t1c"], enhancing, rest) - _height(volumes["t1"], enhancing, rest)
        if gain < ENHANCEMENT:
            rule = (
                f"its ET in {reading.scheme} must be brighter on t1c than on t1, by {ENHANCEMENT} spreads "
                "(is it another scheme? --label-scheme)"
            )
            reading.note(path, rule, f"{gain:.2f}")


def _height(volume: np.ndarray, inside: np.ndarray, rest: np.ndarray) -> float:
    """How much brighter the median is `inside` than in the `rest`, in median absolute deviations of the rest."""
    values = volume[rest]
    if not values.size:
        return 0.0
    median = np.median(values)
    return float((np.median(volume[inside]) - median) / max(np.median(np.abs(values - median)), 1e-6))

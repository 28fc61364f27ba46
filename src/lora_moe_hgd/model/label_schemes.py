"""Label schemes: the meaning of the integers in a label map.

A region is a set of labels. Two regions may be nested (such as WT and TC of a tumour), be disjoint, or overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class LabelScheme:
    """Labels (integers) of the parts of a segmented object; the background is 0.

    Attributes:
        name: Name on the command line and in files.
        regions: Labels of each region, in channel order. When a label map is written, later regions overwrite earlier
            regions. Therefore each region needs a label that belongs to no later region.
        words: For each region, a word for the part of the region outside all later regions, such as `oedema` for WT
            (default: the name of the region).
        others: Labels outside all regions, such as a resection cavity, that are read but never written.
        target: Word for the segmented object, such as `tumour`.
    """

    name: str
    regions: Mapping[str, tuple[int, ...]]
    words: tuple[str, ...] = ()
    others: tuple[int, ...] = ()
    target: str = "tumour"

    @property
    def labels(self) -> set[int]:
        """All labels of the scheme, including background."""
        return {0, *self.others}.union(*self.regions.values())

    @cached_property
    def written(self) -> dict[str, int]:
        """Map from the word for each region (`words`) to the label that `encode` writes for this region.

        The label means the part of the region outside all later regions.
        """
        members = list(self.regions.values())
        own = []
        for place, labels in enumerate(members):
            later = set[int]().union(*members[place + 1 :])
            # Prefer a label that belongs to the fewest regions, so that overlaps keep a label of their own.
            own.append(min(set(labels) - later, key=lambda label: (sum(self._regions_of(label)), labels.index(label))))
        return dict(zip(self.words or self.regions, own, strict=True))

    @cached_property
    def _exceptions(self) -> dict[int, tuple[bool, ...]]:
        """Labels that mark an overlap of regions, with one flag per region: true for the regions that overlap.

        Only overlaps of regions that are not nested have labels of their own. `encode` writes one region after
        another, and then the voxels of these overlaps.
        """
        painted = {self._regions_of(label) for label in self.written.values()}
        found: dict[tuple[bool, ...], int] = {}
        for label in sorted(self.labels - {0, *self.others}):
            if self._regions_of(label) not in painted:
                found.setdefault(self._regions_of(label), label)
        return {label: inside for inside, label in found.items()}

    def _regions_of(self, label: int) -> tuple[bool, ...]:
        return tuple(label in members for members in self.regions.values())

    def encode(self, regions: np.ndarray) -> np.ndarray:
        """Convert the masks of the regions, `(R, D, H, W)`, to a label map `(D, H, W)` uint8."""
        masks = np.asarray(regions, dtype=bool)
        labels = np.zeros(masks.shape[1:], dtype=np.uint8)
        for mask, label in zip(masks, self.written.values(), strict=True):
            labels[mask] = label
        for label, inside in self._exceptions.items():
            labels[(masks == np.reshape(inside, (-1, *[1] * labels.ndim))).all(axis=0)] = label
        return labels

    def decode(self, labels: np.ndarray) -> np.ndarray:
        """Convert a label map to the masks of the regions, `(R, D, H, W)` bool.

        Labels may be floats that differ from an integer by up to 1e-3.

        Raises:
            LabelMapError: If a value is not an integer or not a label of this scheme. The error message lists the
                wrong values.

        Example:
            >>> LABEL_SCHEMES["brats2018"].decode(np.array([0, 1, 2, 4])).astype(int)
            array([[0, 1, 1, 1],
                   [0, 1, 0, 1],
                   [0, 0, 0, 1]])
        """
        schemes = LABEL_SCHEMES if self.name in LABEL_SCHEMES else {self.name: self}
        detect_label_scheme(label_values(labels), [self.name], schemes)
        labels = np.rint(labels)
        return np.stack([np.isin(labels, members) for members in self.regions.values()])

    @property
    def meanings(self) -> dict[int, str]:
        """Meaning of each label of the scheme as a word, in ascending order of the labels.

        Example:
            >>> LABEL_SCHEMES["ped2024"].meanings
            {0: 'background', 1: 'enhancing', 2: 'core', 3: 'core', 4: 'oedema'}
        """
        words = {0: "background", **{label: word for word, label in self.written.items()}}
        names = list(self.words or self.regions)
        for label in self.labels - {*words, *self.others}:
            inside = [name for name, is_in in zip(names, self._regions_of(label), strict=True) if is_in]
            nested = self._regions_of(label) not in self._exceptions.values()
            words[label] = inside[-1] if nested else " and ".join(inside)
        return dict(sorted((words | dict.fromkeys(self.others, f"no {self.target}")).items()))

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(f'{label} {word}' for label, word in self.meanings.items())})"


def _of_tumour(
    name: str, *, edema: int, core: int, enhancing: int, more_core: tuple[int, ...] = (), others: tuple[int, ...] = ()
) -> LabelScheme:
    """Label scheme of a brain tumour with three nested regions.

    Args:
        name: Name of the scheme.
        edema: Label of WT outside TC.
        core: Label of TC outside ET.
        enhancing: Label of ET.
        more_core: Other labels of TC outside ET, which are read, but never written.
        others: Labels outside all regions.
    """
    inner = (core, *more_core, enhancing)
    regions = {"wt": (edema, *inner), "tc": inner, "et": (enhancing,)}
    return LabelScheme(name, regions, ("oedema", "core", "enhancing"), others)


LABEL_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        _of_tumour("brats2018", edema=2, core=1, enhancing=4),  # BraTS 2017 to 2021
        _of_tumour("brats2023", edema=2, core=1, enhancing=3),
        _of_tumour("msd", edema=1, core=2, enhancing=3),  # Medical Segmentation Decathlon, task 1
        _of_tumour("gli2024", edema=2, core=1, enhancing=3, others=(4,)),  # after surgery, with its cavity
        _of_tumour("ped2024", edema=4, core=2, enhancing=1, more_core=(3,)),  # children, with cysts
        _of_tumour("brats2015", edema=2, core=1, enhancing=4, more_core=(3,)),  # 2013 to 2015
    )
}


class LabelMapError(ValueError):
    """Error about a label map whose values do not fit the label schemes."""


def label_scheme(name: str, schemes: Mapping[str, LabelScheme] = LABEL_SCHEMES) -> LabelScheme:
    """Return the scheme called `name` among `schemes`.

    Raises:
        ValueError: If no scheme has this name. The error message lists the names of all schemes.
    """
    if name not in schemes:
        raise ValueError(f"Unknown label scheme '{name}'. The names are: {', '.join(schemes)}.")
    return schemes[name]


def label_values(labels: np.ndarray) -> set[int]:
    """Return all different values of a label map, rounded to integers.

    Raises:
        LabelMapError: If a value differs from an integer by more than 1e-3. The error message lists up to five of the
            wrong values.
    """
    found = np.unique(np.asarray(labels))
    with np.errstate(invalid="ignore"):
        whole = np.abs(found - np.rint(found)) <= 1e-3
    if not whole.all():
        values = ", ".join(f"{value:.4g}" for value in found[~whole][:5])
        raise LabelMapError(f"Labels must be integers, but the label map contains {values}.")
    return {int(value) for value in np.rint(found)}


def detect_label_scheme(
    values: set[int], candidates: Sequence[str] = (), schemes: Mapping[str, LabelScheme] = LABEL_SCHEMES
) -> LabelScheme:
    """Detect the scheme of a label map from its values.

    A scheme fits if all values are labels of this scheme. If several schemes fit and assign the values to the same
    regions, the first of these schemes is returned. If `candidates` is empty and the label map has the label 4 but not
    the label 3, the scheme of BraTS 2017 to 2021 is returned.

    Args:
        values: Labels in the label map.
        candidates: Names of the label schemes that the label map may have; an empty list allows every scheme.
        schemes: All schemes of the task, by name.

    Raises:
        LabelMapError: If no scheme fits, or if several schemes fit, but assign the values to different regions.

    Example:
        >>> detect_label_scheme({0, 1, 2, 3, 4}, ["brats2023", "gli2024"]).name
        'gli2024'
    """
    fitting = [scheme for scheme in schemes.values() if values <= scheme.labels]
    allowed = [label_scheme(name, schemes) for name in candidates]
    chosen = [scheme for scheme in allowed if scheme in fitting] if allowed else fitting
    if not chosen:
        known = set().union(*(scheme.labels for scheme in allowed or schemes.values()))
        unknown = sorted(values - known) or sorted(values)
        subject = (
            f"The label {unknown[0]} is" if len(unknown) == 1 else f"The labels {', '.join(map(str, unknown))} are"
        )
        named = allowed or (list(schemes.values()) if len(schemes) == 1 else [])
        wanted = " or ".join(map(str, named)) or "any known scheme"
        if "brats2018" not in schemes and not fitting:
            remedy = "Add the label to a region of the task or to `other_labels`, or correct the label map."
        elif fitting:
            fit = ", ".join(scheme.name for scheme in fitting)
            remedy = (
                f"These schemes contain all labels of the label map: {fit}. Choose a scheme with `--label-scheme`, or "
                "correct the label map."
            )
        else:
            remedy = "No known scheme contains all labels of the label map. Correct the label map."
        raise LabelMapError(f"{subject} not among the labels of {wanted}. {remedy}")
    if not allowed and "brats2018" in schemes and 4 in values and 3 not in values:
        return schemes["brats2018"]
    regions = {
        tuple(value in members for value in sorted(values) for members in scheme.regions.values()) for scheme in chosen
    }
    if len(regions) > 1:
        names = " or ".join(scheme.name for scheme in chosen)
        found = ", ".join(map(str, sorted(values - {0})))
        raise LabelMapError(
            f"The labels {found} fit several schemes, which assign them to different regions. Choose a scheme with "
            f"`--label-scheme`: {names}."
        )
    return chosen[0]

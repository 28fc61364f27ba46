"""Label schemes: the meaning of the integers in a label map.

A scheme gives a label to each of the three disjoint parts of a tumour: the part of WT outside TC (oedema), the part of
TC outside ET (necrosis and non-enhancing tumour), and ET.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelScheme:
    """One way to number the parts of a tumour; background is 0.

    Attributes:
        name: Name on the command line and in files.
        edema: Label of WT outside TC.
        core: Label of TC outside ET.
        enhancing: Label of ET.
        more_core: Other labels of TC outside ET. They are read, but never written.
        no_tumour: Labels outside all regions, such as a resection cavity. They are read, but never written.
    """

    name: str
    edema: int
    core: int
    enhancing: int
    more_core: tuple[int, ...] = ()
    no_tumour: tuple[int, ...] = ()

    @property
    def labels(self) -> set[int]:
        """All labels of the scheme, including background."""
        return {0, self.edema, self.core, self.enhancing, *self.more_core, *self.no_tumour}

    def encode(self, regions: np.ndarray) -> np.ndarray:
        """Convert the nested masks WT, TC and ET, `(3, D, H, W)`, to a label map `(D, H, W)` uint8."""
        whole, core, enhancing = np.asarray(regions, dtype=bool)
        labels = np.zeros(whole.shape, dtype=np.uint8)
        labels[whole] = self.edema
        labels[core] = self.core
        labels[enhancing] = self.enhancing
        return labels

    def decode(self, labels: np.ndarray) -> np.ndarray:
        """Convert a label map to the nested masks WT, TC and ET, `(3, D, H, W)` bool.

        Labels may be floats that differ from an integer by up to 1e-3.

        Raises:
            LabelMapError: If a value is not an integer or not a label of this scheme. The message lists such values.

        Example:
            >>> LABEL_SCHEMES["brats2018"].decode(np.array([0, 1, 2, 4])).astype(int)
            array([[0, 1, 1, 1],
                   [0, 1, 0, 1],
                   [0, 0, 0, 1]])
        """
        detect_label_scheme(label_values(labels), [self.name])
        labels = np.rint(labels)
        enhancing = labels == self.enhancing
        core = enhancing | np.isin(labels, (self.core, *self.more_core))
        return np.stack([core | (labels == self.edema), core, enhancing])

    def __str__(self) -> str:
        numbers = {0: "background", self.core: "core", self.edema: "oedema", self.enhancing: "enhancing"}
        parts = ", ".join(f"{number} {name}" for number, name in sorted(numbers.items()))
        more = "".join(f", {label} core" for label in self.more_core)
        return f"{self.name} ({parts}{more}{''.join(f', {label} no tumour' for label in self.no_tumour)})"


LABEL_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LabelScheme("brats2018", edema=2, core=1, enhancing=4),  # BraTS 2017 to 2021
        LabelScheme("brats2023", edema=2, core=1, enhancing=3),
        LabelScheme("msd", edema=1, core=2, enhancing=3),  # Medical Segmentation Decathlon, task 1
        LabelScheme("gli2024", edema=2, core=1, enhancing=3, no_tumour=(4,)),  # after surgery, with its cavity
        LabelScheme("ped2024", edema=4, core=2, enhancing=1, more_core=(3,)),  # children, with cysts
        LabelScheme("brats2015", edema=2, core=1, enhancing=4, more_core=(3,)),  # 2013 to 2015
    )
}


class LabelMapError(ValueError):
    """A label map that cannot be read."""


def label_scheme(name: str) -> LabelScheme:
    """Return the scheme called `name`.

    Raises:
        ValueError: If there is no such scheme. The message lists the names.
    """
    if name not in LABEL_SCHEMES:
        raise ValueError(f"Unknown label scheme '{name}'. The names are: {', '.join(LABEL_SCHEMES)}.")
    return LABEL_SCHEMES[name]


def label_values(labels: np.ndarray) -> set[int]:
    """Return all values of a label map.

    Raises:
        LabelMapError: If a value differs from an integer by more than 1e-3. The message lists some of them.
    """
    found = np.unique(np.asarray(labels))
    with np.errstate(invalid="ignore"):
        whole = np.abs(found - np.rint(found)) <= 1e-3
    if not whole.all():
        values = ", ".join(f"{value:.4g}" for value in found[~whole][:5])
        raise LabelMapError(f"Labels must be integers, but the label map contains {values}.")
    return {int(value) for value in np.rint(found)}


def detect_label_scheme(values: set[int], candidates: Sequence[str] = ()) -> LabelScheme:
    """Detect the scheme of a label map from its values.

    If several schemes fit and assign all values to the same regions, the first one is returned. Without candidates,
    the label 4 without the label 3 means BraTS 2017 to 2021.

    Args:
        values: Labels in the label map.
        candidates: Schemes that the data set may use. An empty list means any scheme.

    Raises:
        LabelMapError: If no scheme has all the values, or if several schemes have them but with different meanings.

    Example:
        >>> detect_label_scheme({0, 1, 2, 3, 4}, ["brats2023", "gli2024"]).name
        'gli2024'
    """
    fitting = [scheme for scheme in LABEL_SCHEMES.values() if values <= scheme.labels]
    allowed = [label_scheme(name) for name in candidates]
    chosen = [scheme for scheme in allowed if scheme in fitting] if allowed else fitting
    if not chosen:
        known = set().union(*(scheme.labels for scheme in allowed or LABEL_SCHEMES.values()))
        schemes = " or ".join(map(str, allowed)) or "any known scheme"
        fit = ", ".join(scheme.name for scheme in fitting) or "none"
        unknown = ", ".join(map(str, sorted(values - known) or sorted(values)))
        raise LabelMapError(
            f"The label {unknown} is not in {schemes}. Schemes with all labels: {fit}. Choose one with "
            "`--label-scheme`, or correct the label map."
        )
    if not allowed and 4 in values and 3 not in values:
        return LABEL_SCHEMES["brats2018"]
    regions = {
        tuple(
            (value == scheme.enhancing, value in (scheme.core, *scheme.more_core), value == scheme.edema)
            for value in sorted(values)
        )
        for scheme in chosen
    }
    if len(regions) > 1:
        names = " or ".join(scheme.name for scheme in chosen)
        found = ", ".join(map(str, sorted(values - {0})))
        raise LabelMapError(
            f"The labels {found} mean different regions in several schemes. Choose one with `--label-scheme`: {names}."
        )
    return chosen[0]

"""Label schemes: which integer of a label map means which nested region.

A scheme gives one label to each of the three disjoint parts of a tumour: the part of WT outside TC (oedema), the part
of TC outside ET (necrosis and non-enhancing tumour), and ET.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelScheme:
    """One way to number the parts of a tumour; background is 0.

    Attributes:
        name: How it is called on the command line and in files.
        edema: Label of WT outside TC.
        core: Label of TC outside ET.
        enhancing: Label of ET.
    """

    name: str
    edema: int
    core: int
    enhancing: int

    def encode(self, regions: np.ndarray) -> np.ndarray:
        """Label map `(D, H, W)` uint8 of the nested masks WT, TC and ET `(3, D, H, W)`."""
        whole, core, enhancing = np.asarray(regions, dtype=bool)
        labels = np.zeros(whole.shape, dtype=np.uint8)
        labels[whole] = self.edema
        labels[core] = self.core
        labels[enhancing] = self.enhancing
        return labels

    def decode(self, labels: np.ndarray) -> np.ndarray:
        """Nested masks WT, TC and ET `(3, D, H, W)` bool of a label map; floats may be off integers by 1e-3.

        Raises:
            ValueError: If a value is no integer or not of this scheme; the message lists what was found.

        Example:
            >>> LABEL_SCHEMES["brats2018"].decode(np.array([0, 1, 2, 4])).astype(int)
            array([[0, 1, 1, 1],
                   [0, 1, 0, 1],
                   [0, 0, 0, 1]])
        """
        labels = np.asarray(labels)
        found = np.unique(labels)
        rounded = np.rint(found)
        if not np.all(np.abs(found - rounded) <= 1e-3):
            raise ValueError(f"A label map must hold integers, but it holds {found[found != rounded][:5].tolist()}.")
        unknown = sorted({int(value) for value in rounded} - {0, self.edema, self.core, self.enhancing})
        if unknown:
            fitting = [
                name
                for name, scheme in LABEL_SCHEMES.items()
                if {int(v) for v in rounded} <= {0, scheme.edema, scheme.core, scheme.enhancing}
            ]
            raise ValueError(
                f"Label(s) {unknown} are not of the scheme '{self.name}' (0 background, {self.edema} oedema, "
                f"{self.core} core, {self.enhancing} enhancing). Schemes that fit: {', '.join(fitting) or 'none'}."
            )
        labels = np.rint(labels)
        enhancing = labels == self.enhancing
        core = enhancing | (labels == self.core)
        return np.stack([core | (labels == self.edema), core, enhancing])


LABEL_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LabelScheme("brats2018", edema=2, core=1, enhancing=4),  # BraTS 2017 to 2021
        LabelScheme("brats2023", edema=2, core=1, enhancing=3),
        LabelScheme("msd", edema=1, core=2, enhancing=3),  # Medical Segmentation Decathlon, task 1
    )
}


def label_scheme(name: str) -> LabelScheme:
    """Return the scheme called `name`.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in LABEL_SCHEMES:
        raise ValueError(f"Unknown label scheme '{name}'; there is: {', '.join(LABEL_SCHEMES)}.")
    return LABEL_SCHEMES[name]

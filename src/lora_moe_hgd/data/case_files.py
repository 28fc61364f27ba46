"""Which files a case is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.label_schemes import label_scheme as find_label_scheme
from .findings import BadInputError, got

EXTENSIONS = (".nii.gz", ".nii", ".npy")


def stem_of(path: Path) -> str | None:
    """File name without extension; `None` if it is no volume's, or hidden."""
    extension = next((end for end in EXTENSIONS if path.name.lower().endswith(end)), None)
    return None if extension is None or path.name.startswith(".") else path.name[: -len(extension)]


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case_id: Name of its folder, or of its files where many cases share one.
        folder: Where it lies.
        layout: Name of the family.
        label_schemes: Schemes that its segmentation may be in, the usual one first; none if its names do not tell.
        images: Path of each sequence that is there, in channel order.
        segmentation: Path of the ground truth, if any.
        channels: Of a sequence that is one volume of a file with four axes: which.
    """

    case_id: str
    folder: Path
    layout: str
    label_schemes: tuple[str, ...]
    images: dict[str, Path]
    segmentation: Path | None
    channels: Mapping[str, int] = field(default_factory=dict)

    def labelled(self) -> Path:
        """Path of the segmentation.

        Raises:
            BadInputError: If there is none.
        """
        if self.segmentation is None:
            raise BadInputError(self.folder, got("must hold a segmentation", "none"))
        return self.segmentation

    def only(self, names: Sequence[str]) -> CaseFiles:
        """The same case with these sequences alone."""
        return replace(self, images={name: path for name, path in self.images.items() if name in names})

    def in_scheme(self, label_scheme: str | None) -> CaseFiles:
        """The same case with a segmentation in this scheme, whatever its names say; `None` leaves that to them.

        Raises:
            ValueError: If there is no such scheme.
        """
        return self if label_scheme is None else replace(self, label_schemes=(find_label_scheme(label_scheme).name,))


def given_case(images: Mapping[str, Path]) -> CaseFiles:
    """The case whose sequences are these files, whatever they are called."""
    paths = {name: images[name] for name in MODALITIES if name in images}
    first = next(iter(paths.values()))
    return CaseFiles(stem_of(first) or first.name, first.parent, "given", (), paths, None)

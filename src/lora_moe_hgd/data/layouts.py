"""File names of the data sets this field uses, and finding cases by them.

A family is a few lines: how the files of a case end, and which label scheme its segmentations use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..model.configuration_lora_moe_hgd import MODALITIES
from .nifti import BadInputError

EXTENSIONS = (".nii.gz", ".nii", ".npy")


@dataclass(frozen=True)
class Layout:
    """One family of file names, compared without regard to case.

    Attributes:
        name: How messages call it.
        separator: What stands between the case's name and the suffix; empty if the suffix is the whole name.
        suffixes: Suffix of each sequence, and of the segmentation under `seg`.
        label_scheme: Scheme of its segmentations.
    """

    name: str
    separator: str
    suffixes: Mapping[str, str]
    label_scheme: str

    def role_of(self, path: Path) -> str | None:
        """Sequence name or `seg` if the file name is of this family, else `None`."""
        extension = next((end for end in EXTENSIONS if path.name.lower().endswith(end)), None)
        if extension is None:
            return None
        stem = path.name.lower()[: -len(extension)]
        for role, suffix in self.suffixes.items():
            if stem == suffix if not self.separator else stem.endswith(self.separator + suffix):
                return role
        return None


LAYOUTS = (
    Layout("plain", "", {"t1": "t1", "t1c": "t1c", "t2": "t2", "flair": "flair", "seg": "seg"}, "msd"),
    Layout(
        "BraTS 2017 to 2021",
        "_",
        {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"},
        "brats2018",
    ),
    Layout(
        "BraTS 2023",
        "-",
        {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"},
        "brats2023",
    ),
)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case_id: Name of its folder.
        folder: Where it lies.
        layout: Name of the family.
        label_scheme: Scheme of its segmentation.
        images: Path of each sequence that is there, in channel order.
        segmentation: Path of the ground truth, if any.
    """

    case_id: str
    folder: Path
    layout: str
    label_scheme: str
    images: dict[str, Path]
    segmentation: Path | None

    def labelled(self) -> Path:
        """Path of the segmentation.

        Raises:
            BadInputError: If there is none.
        """
        if self.segmentation is None:
            raise BadInputError(self.folder, "must hold a segmentation", "none")
        return self.segmentation


def find_case(folder: Path) -> CaseFiles:
    """Find the sequences of one case.

    Raises:
        BadInputError: If the folder has no sequence, mixes two families, or has one sequence twice.
    """
    if not folder.is_dir():
        raise BadInputError(folder, "must be the folder of a case", "a file" if folder.exists() else "nothing there")
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        for layout in LAYOUTS:
            role = layout.role_of(path)
            if role is not None and not path.name.startswith("."):
                found.setdefault(layout.name, {}).setdefault(role, []).append(path)
    with_images = {name: roles for name, roles in found.items() if set(roles) & set(MODALITIES)}
    if not with_images:
        endings = "; ".join(
            f"{layout.name}: " + ", ".join(f"*{layout.separator}{suffix}" for suffix in layout.suffixes.values())
            for layout in LAYOUTS
        )
        raise BadInputError(folder, f"must hold at least one sequence, named as in {endings}", "none of them")
    if len(with_images) > 1:
        names = [path.name for roles in with_images.values() for paths in roles.values() for path in paths]
        raise BadInputError(folder, "must hold files of one naming family", ", ".join(sorted(set(names))))
    ((name, roles),) = with_images.items()
    for role, paths in roles.items():
        if len(paths) > 1:
            raise BadInputError(folder, f"must hold one file for {role}", ", ".join(path.name for path in paths))
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    return CaseFiles(
        case_id=folder.resolve().name,
        folder=folder,
        layout=name,
        label_scheme=layout.label_scheme,
        images={modality: roles[modality][0] for modality in MODALITIES if modality in roles},
        segmentation=roles["seg"][0] if "seg" in roles else None,
    )


def find_cases(root: Path) -> list[CaseFiles]:
    """Every case below `root`, one folder each, in order of name; `root` itself if it is a case.

    Raises:
        BadInputError: If `root` is no folder or holds no case, or a case is ambiguous.
    """
    if not root.is_dir():
        raise BadInputError(root, "must be a folder of cases", "a file" if root.exists() else "nothing there")
    if _holds_sequences(root):
        return [find_case(root)]
    cases = [find_case(folder) for folder in sorted(root.iterdir()) if folder.is_dir() and _holds_sequences(folder)]
    if not cases:
        raise BadInputError(root, "must hold case folders with sequences", "none")
    return cases


def _holds_sequences(folder: Path) -> bool:
    return any(layout.role_of(path) in MODALITIES for path in folder.iterdir() for layout in LAYOUTS)

"""File names of the data sets this field uses, and finding cases by them.

A family is a few lines: patterns of the file names of a case, and which label schemes its segmentations may be in.
Families that keep a whole cohort in one folder are in `channels`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..model.configuration_lora_moe_hgd import MODALITIES
from .case_files import CaseFiles, stem_of
from .channels import channel_case, channel_cases
from .findings import BadInputError, Finding, got

# Such as `MICCAI_BraTS_2018_Data_Training/HGG/<case>`.
DEEPEST_CASE = 3


@dataclass(frozen=True)
class Layout:
    """One family of file names.

    Patterns are those of a shell, of the name without its extension, compared without regard to case; of several for
    one file, an earlier one is preferred.

    Attributes:
        key: How the command line calls it.
        name: How messages call it.
        patterns: Of each sequence, and of the segmentation under `seg`.
        label_schemes: Schemes that its segmentations may be in.
        elsewhere: Where the segmentation lies if not among the sequences, from the case's folder on.
    """

    key: str
    name: str
    patterns: Mapping[str, tuple[str, ...]]
    label_schemes: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()

    def role_of(self, path: Path) -> tuple[str, int] | None:
        """Sequence name or `seg`, and the number of the pattern, if the file is of this family, else `None`."""
        stem = stem_of(path)
        for role, patterns in self.patterns.items() if stem is not None else ():
            for number, pattern in enumerate(patterns):
                if fnmatchcase(str(stem).lower(), pattern.lower()):
                    return role, number
        return None

    def stem_for(self, role: str, case_id: str) -> str:
        """File name without extension for a sequence, or `seg`, of a case.

        Raises:
            ValueError: If the family's names begin otherwise than the case's.
        """
        begin, *rest = self.patterns[role][0].split("*")
        if rest and not case_id.startswith(begin):
            raise ValueError(f"Cases of {self.name} must be called {begin}..., got {case_id}.")
        return case_id + "0".join(rest) if rest else begin


def _family(key: str, name: str, pattern: str, words: str, *, seg: str, schemes: str, elsewhere: str = "") -> Layout:
    """Make a layout of which the sequences' patterns differ by one of the `words` each, for t1, t1c, t2 and flair."""
    patterns = {
        role: tuple(pattern.format(word) for word in choices.split("|"))
        for role, choices in zip(MODALITIES, words.split(), strict=True)
    }
    return Layout(key, name, {**patterns, "seg": tuple(seg.split())}, tuple(schemes.split()), tuple(elsewhere.split()))


# The first is taken of several that fit.
LAYOUTS = (
    _family("plain", "plain", "{}", "T1 T1c|T1gd T2 FLAIR", seg="seg", schemes="msd"),
    _family(
        "brats-ped",
        "BraTS-PED",
        "BraTS-PED-*-{}",
        "t1n t1c t2w t2f",
        seg="BraTS-PED-*-seg",
        schemes="ped2024 brats2023",
    ),
    _family("brats2023", "BraTS 2023 and later", "*-{}", "t1n t1c t2w t2f", seg="*-seg", schemes="brats2023 gli2024"),
    _family(
        "tcga",
        "TCGA",
        "TCGA-*_{}",
        "t1 t1gd t2 flair",
        seg="TCGA-*_GlistrBoost_ManuallyCorrected TCGA-*_GlistrBoost",
        schemes="brats2018",
    ),
    _family(
        "upenn-gbm",
        "UPENN-GBM",
        "UPENN-GBM-*_{}",
        "t1 t1gd t2 flair",
        seg="UPENN-GBM-*_segm UPENN-GBM-*_automated_approx_segm",
        schemes="brats2018",
        elsewhere="../../images_segm/{case}_segm.nii.gz ../../automated_segm/{case}_automated_approx_segm.nii.gz",
    ),
    _family(
        "ucsf-pdgm",
        "UCSF-PDGM",
        "UCSF-PDGM-*_{}",
        "t1|t1_bias t1c|t1c_bias t2|t2_bias flair|flair_bias",
        seg="UCSF-PDGM-*_tumor_segmentation",
        schemes="brats2018",
    ),
    _family("brats2018", "BraTS 2017 to 2021", "*_{}", "t1 t1ce t2 flair", seg="*_seg", schemes="brats2018"),
    _family(
        "brats2015",
        "BraTS 2012 to 2015",
        "VSD.Brain*.MR_{}.*",
        "t1 t1c t2 flair",
        seg="VSD.Brain*.OT.*",
        schemes="brats2015",
    ),
    # As DeepMedic's examples come.
    _family(
        "brats2015-renamed",
        "BraTS 2012 to 2015, renamed",
        "{}",
        "T1|t1_subtrmeandivstd T1c|t1c_subtrmeandivstd T2|t2_subtrmeandivstd FLAIR|flair_subtrmeandivstd",
        seg="OTMultiClass OT",
        schemes="brats2015",
    ),
)


def families_of(files: Collection[Path]) -> list[Layout]:
    """Families that have a place for every file; a case is taken to be of the first."""
    return [layout for layout in LAYOUTS if all(layout.role_of(file) for file in files)]


def find_case(path: Path, *, channel_order: Sequence[str] | None = None) -> CaseFiles:
    """Find the sequences of one case: a folder, a file with four axes, or the common start of numbered files.

    Args:
        path: What to look at.
        channel_order: Sequences of a file with four axes or of numbered files, in their order.

    Raises:
        BadInputError: If there is no sequence, or two families, or one sequence twice.
    """
    if not path.is_dir():
        return channel_case(path, channel_order)
    found: dict[str, dict[str, list[tuple[int, Path]]]] = {layout.name: {} for layout in LAYOUTS}
    known = set()
    for file in _listed(path):
        for layout in LAYOUTS:
            match = layout.role_of(file)
            if match is not None:
                role, preference = match
                found[layout.name].setdefault(role, []).append((preference, file))
                known.add(file)
    numbered = channel_cases(path)
    if numbered and not known:
        if len(numbered) > 1:
            raise BadInputError(
                path, got("must hold one case, or be given as PATH/CASE", ", ".join(list(numbered)[:5]))
            )
        return channel_case(next(iter(numbered.values())), channel_order)
    if not any(set(roles) & set(MODALITIES) for roles in found.values()):
        names = ", ".join(dict.fromkeys(layout.patterns["t1c"][0] for layout in LAYOUTS))
        raise BadInputError(path, got(f"must hold at least one sequence, named as T1c is in one of {names}", "none"))
    of_one = families_of(known)
    if not of_one or numbered:
        names = ", ".join(sorted({file.name for file in known} | set(numbered)))
        raise BadInputError(path, got("must hold files of one naming family", names))
    layout = of_one[0]
    chosen = {role: _preferred(path, role, files) for role, files in found[layout.name].items()}
    case_id = path.resolve().name
    elsewhere = [path / place.format(case=case_id) for place in layout.elsewhere]
    return CaseFiles(
        case_id=case_id,
        folder=path,
        layout=layout.name,
        label_schemes=layout.label_schemes,
        images={modality: chosen[modality] for modality in MODALITIES if modality in chosen},
        segmentation=chosen.get("seg") or next((file.resolve() for file in elsewhere if file.is_file()), None),
    )


def _preferred(folder: Path, role: str, files: Sequence[tuple[int, Path]]) -> Path:
    best = min(preference for preference, _ in files)
    paths = [path for preference, path in files if preference == best]
    if len(paths) > 1:
        raise BadInputError(folder, got(f"must hold one file for {role}", ", ".join(path.name for path in paths)))
    return paths[0]


def find_cases(root: Path, *, channel_order: Sequence[str] | None = None) -> list[CaseFiles]:
    """Every case below `root` in order of place, or `root` itself if it is a case.

    Raises:
        BadInputError: If `root` holds no case, or a case is ambiguous.
    """
    cases, findings = survey(root, channel_order=channel_order)
    if findings:
        first = findings[0]
        raise BadInputError(first.where, first.message)
    return cases


def survey(root: Path, *, channel_order: Sequence[str] | None = None) -> tuple[list[CaseFiles], list[Finding]]:
    """Every case below `root`, and what is wrong with those that cannot be told.

    Raises:
        BadInputError: If `root` holds no case.
    """
    if not root.is_dir():
        raise BadInputError(root, got("must be a folder of cases", "a file" if root.exists() else "nothing there"))
    cases, findings = [], []
    # `imagesTs` beside `imagesTr` has cases without labels, which whoever trains on the whole does not mean.
    apart = next((root / name for name in ("imagesTr", "imagesTs") if (root / name).is_dir()), None)
    together = channel_cases(apart or root)
    # A single file of the kind in `root` itself is a case's, which `find_case` tells from others.
    if len(together) > (0 if apart else 1):
        places = list(together.values())
    else:
        places = list(_case_folders(root, DEEPEST_CASE, set()))
        places = sorted([*places, *_odd_ones_out(root, places)])
    for path in places:
        try:
            cases.append(find_case(path, channel_order=channel_order))
        except BadInputError as error:
            findings.append(error.finding)
    if not cases and not findings:
        raise BadInputError(root, got("must hold case folders with sequences", "none"))
    named: dict[str, list[CaseFiles]] = {}
    for case in cases:
        named.setdefault(case.case_id, []).append(case)
    for case_id, same in named.items():
        if len(same) > 1:
            where = ", ".join(str(case.folder) for case in same)
            findings.append(Finding(root, got(f"must hold one case called {case_id}", where), "error"))
    return [same[0] for same in named.values() if len(same) == 1], findings


def _case_folders(folder: Path, deepest: int, seen: set[Path]) -> Iterator[Path]:
    """Folders with sequences, at most `deepest` below; each once, whatever links lead to it."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        files = _listed(folder)
    except BadInputError:
        # Left to `find_case`, which says so.
        yield folder
        return
    if channel_cases(folder) or any(
        (layout.role_of(file) or ("seg", 0))[0] in MODALITIES for file in files for layout in LAYOUTS
    ):
        yield folder
    elif deepest:
        for below in files:
            if below.is_dir() and not below.name.startswith("."):
                yield from _case_folders(below, deepest - 1, seen)


def _odd_ones_out(root: Path, places: Sequence[Path]) -> Iterator[Path]:
    """Folders beside those of cases that hold volumes under names of no family: cases, too, it seems."""
    for parent in {place.parent for place in places if place != root}:
        for folder in _listed(parent):
            if folder.name.startswith(".") or not folder.is_dir() or any(at.is_relative_to(folder) for at in places):
                continue
            if any(stem_of(file) for file in _listed(folder)):
                yield folder


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, in order of name."""
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise BadInputError(folder, got("must be readable", "no permission")) from error

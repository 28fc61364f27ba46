"""Identify the sequences of the files in a folder by the file names of public data sets.

A naming convention (`Layout`) consists of patterns for file names, and of the label schemes that its segmentations may
use. If the file names in a folder fit no convention, the words in the names determine the sequences (see
`sequence_names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..files import listed
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError, prepare_command
from ..model.task import BRAIN_TUMOUR, Task
from ..sequence_names import role_in, role_of
from .case_files import OTHER_FORMATS, shared_start, stem_of
from .volume_rules import NRRD

BY_WORDS = "recognised by words in the file names"
# Patient and session of a BIDS name.
BIDS_CASE = re.compile(r"(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)_")


@dataclass(frozen=True)
class Layout:
    """Naming convention for the files of a case, such as that of BraTS 2023.

    Patterns are shell patterns for a file name without its extension. Patterns match upper and lower case alike. If
    files fit several patterns of a sequence, the file of the earliest pattern is used.

    Attributes:
        key: Name of the convention on the command line.
        name: Name of the convention in messages.
        patterns: Patterns of each sequence, and of the segmentation under `seg`.
        label_schemes: Label schemes that the segmentations may use.
        elsewhere: Possible paths of the segmentation outside the case's folder, relative to that folder.
    """

    key: str
    name: str
    patterns: Mapping[str, tuple[str, ...]]
    label_schemes: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()

    @cached_property
    def _expressions(self) -> list[tuple[str, int, bool, re.Pattern[str]]]:
        return [
            (
                role,
                number,
                pattern.count("*") == 1,
                re.compile(re.escape(pattern).replace(r"\*", "(.*)"), re.IGNORECASE),
            )
            for role, patterns in self.patterns.items()
            for number, pattern in enumerate(patterns)
        ]

    def match(self, path: Path) -> Match | None:
        """Find the pattern of this convention that the file's name fits; `None` if the name fits no pattern."""
        stem = str(stem_of(path))
        matches = [
            Match(path, role, preference, found[1] if one else None)
            for role, preference, one, expression in self._expressions
            if (found := expression.fullmatch(stem))
        ]
        # `*_segm` also matches `x_automated_approx_segm`. Prefer the pattern in which `*` matches fewer characters.
        return min(matches, key=lambda match: len(match.begin or ""), default=None)

    def stem_for(self, role: str, case_id: str) -> str:
        """File name, without extension, of a case's sequence or segmentation (`seg`) in this convention.

        Raises:
            ValueError: If this convention needs a prefix, such as `TCGA-`, that the case's name lacks.
        """
        begin, *rest = self.patterns[role][0].split("*")
        if rest and not case_id.startswith(begin):
            raise ValueError(
                f"The case {case_id} cannot be written as {self.name}: its name must begin with {begin}. "
                "Rename its folder, or choose another layout."
            )
        return case_id + "0".join(rest) if rest else begin


@dataclass(frozen=True)
class Match:
    """A file whose name fits a pattern of a naming convention.

    Attributes:
        path: The file.
        role: Role of the file: a sequence, or `seg`.
        preference: Index of the pattern among the patterns of the role. The file with the smallest index is used.
        begin: Part of the file name that the `*` of the pattern matches. All files of a case share this part. `None`
            if the pattern has no `*` or several.
    """

    path: Path
    role: str
    preference: int
    begin: str | None


def _convention(
    key: str, name: str, pattern: str, words: str, *, seg: str, schemes: str, elsewhere: str = ""
) -> Layout:
    """Build a naming convention. The four entries of `words` (t1, t1c, t2, flair) each replace `{}` in `pattern`.

    An entry such as `T1c|T1gd` gives two patterns for the sequence. The first pattern is preferred.
    """
    patterns = {
        role: tuple(pattern.format(word) for word in choices.split("|"))
        for role, choices in zip(MODALITIES, words.split(), strict=True)
    }
    return Layout(key, name, {**patterns, "seg": tuple(seg.split())}, tuple(schemes.split()), tuple(elsewhere.split()))


# If several naming conventions fit, the first one is used.
LAYOUTS = (
    _convention("plain", "plain", "{}", "T1 T1c|T1gd T2 FLAIR", seg="seg", schemes="msd"),
    _convention(
        "brats-ped",
        "BraTS-PED",
        "BraTS-PED-*-{}",
        "t1n t1c t2w t2f",
        seg="BraTS-PED-*-seg",
        schemes="ped2024 brats2023",
    ),
    _convention(
        "brats2023", "BraTS 2023 and later", "*-{}", "t1n t1c t2w t2f", seg="*-seg", schemes="brats2023 gli2024"
    ),
    _convention(
        "tcga",
        "TCGA",
        "TCGA-*_{}",
        "t1 t1gd t2 flair",
        seg="TCGA-*_GlistrBoost_ManuallyCorrected TCGA-*_GlistrBoost",
        schemes="brats2018",
    ),
    _convention(
        "upenn-gbm",
        "UPENN-GBM",
        "UPENN-GBM-*_{}",
        "t1 t1gd t2 flair",
        seg="UPENN-GBM-*_segm UPENN-GBM-*_automated_approx_segm",
        schemes="brats2018",
        elsewhere="../../images_segm/{case}_segm.nii.gz ../../automated_segm/{case}_automated_approx_segm.nii.gz",
    ),
    _convention(
        "ucsf-pdgm",
        "UCSF-PDGM",
        "UCSF-PDGM-*_{}",
        "t1|t1_bias t1c|t1c_bias t2|t2_bias flair|flair_bias",
        seg="UCSF-PDGM-*_tumor_segmentation",
        schemes="brats2018",
    ),
    _convention(
        "mu-glioma-post",
        "MU-Glioma-Post",
        "PatientID_*_brain_{}",
        "t1n t1c t2w t2f",
        seg="PatientID_*_tumorMask",
        schemes="gli2024",
    ),
    _convention(
        "ucsd-ptgbm",
        "UCSD-PTGBM",
        "UCSD-PTGBM-*_{}",
        "T1pre T1post T2 FLAIR",
        seg="UCSD-PTGBM-*_BraTS_tumor_seg",
        schemes="gli2024",
    ),
    _convention("brats2018", "BraTS 2017 to 2021", "*_{}", "t1 t1ce t2 flair", seg="*_seg", schemes="brats2018"),
    _convention(
        "brats2015",
        "BraTS 2012 to 2015",
        "VSD.Brain*.MR_{}.*",
        "t1 t1c t2 flair",
        seg="VSD.Brain*.OT.*",
        schemes="brats2015",
    ),
    # File names of DeepMedic's examples.
    _convention(
        "brats2015-renamed",
        "BraTS 2012 to 2015, renamed",
        "{}",
        "T1|t1_subtrmeandivstd T1c|t1c_subtrmeandivstd T2|t2_subtrmeandivstd FLAIR|flair_subtrmeandivstd",
        seg="OTMultiClass OT",
        schemes="brats2015",
    ),
)


@dataclass(frozen=True)
class NamedFiles:
    """Role of each file in a folder, determined by the file names. A role is a sequence or `seg` (the segmentation).

    Attributes:
        layout: Naming convention of the files; `None` if the words in the names determine the roles.
        roles: Files of each sequence, and those of the segmentation under the key `seg`. A sequence has several files
            if the names are ambiguous.
        left_out: Files whose names show that they are not sequences, such as ADC maps and brain masks.
        unknown: Files whose names do not show what the files contain.
    """

    layout: Layout | None
    roles: dict[str, list[Path]]
    left_out: tuple[Path, ...]
    unknown: tuple[Path, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether there is at least one sequence, no file is unknown, and no role has two files."""
        known = not self.unknown and all(len(files) == 1 for files in self.roles.values())
        return known and self.has_sequence

    @property
    def has_sequence(self) -> bool:
        """Whether at least one file is a sequence."""
        return bool(set(self.roles) - {"seg"})


def read_names(files: Sequence[Path], task: Task = BRAIN_TUMOUR) -> NamedFiles:
    """Find the role of each volume in a folder: a sequence or `seg` (the segmentation).

    The first naming convention that fits all file names determines the roles. If no convention fits, the words in the
    names determine the roles. For a task other than brain tumour, the words in the definition of the task determine
    the roles, without any convention.
    """
    if not task.is_brain_tumour:
        return _sorted_by_role({file: role_in(task, str(stem_of(file))) for file in files}, task.modalities)
    by_word = {file: role_of(str(stem_of(file))) for file in files}
    for layout in LAYOUTS:
        matches = [match for file in files if (match := layout.match(file))]
        if _are_of_one_case(matches):
            own = {match.path for match in matches}
            rest = [file for file in files if file not in own]
            labelled = any(match.role == "seg" for match in matches)
            if all(by_word[file] == "other" or (labelled and by_word[file] == "seg") for file in rest):
                return _by_convention(layout, matches, rest)
    return _by_words(files, by_word)


def _are_of_one_case(matches: Sequence[Match]) -> bool:
    """Whether all files that fit a naming convention belong to one case.

    The `*` of the patterns must match the same text in all names, and this text must not be the name of a sequence.
    """
    roles, begins = {match.role for match in matches}, {match.begin for match in matches}
    if not roles & set(MODALITIES) or len(begins) > 1:
        return False
    (begin,) = begins
    # `ax_t2_flair`, `flair_to_t1` and `post_t1` have endings of BraTS names but are not BraTS names.
    return begin is None or (
        role_of(begin) is None and (not roles >= {"t1"} or "t1c" in roles or role_of(f"{begin}_t1") == "t1")
    )


def _by_convention(layout: Layout, matches: Sequence[Match], rest: Sequence[Path]) -> NamedFiles:
    roles: dict[str, list[Path]] = {}
    left_out = list(rest)
    for role in layout.patterns:
        found = [match for match in matches if match.role == role]
        best = min((match.preference for match in found), default=0)
        if found:
            roles[role] = [match.path for match in found if match.preference == best]
            left_out += [match.path for match in found if match.preference != best]
    return NamedFiles(layout, roles, tuple(sorted(left_out)))


def _by_words(files: Sequence[Path], by_word: Mapping[Path, str | None]) -> NamedFiles:
    """Find the roles of the files by the words in their names.

    If all names begin with the same word for contrast agent, such as `KM` (German `Kontrastmittel`), that word may be
    the patient's initials. So `KM_T1` and `KM_T1_post` are T1 and T1c of the patient KM. The role of a file is unknown
    if the file would be T1c only because of such a word.
    """
    in_full = _sorted_by_role({file: by_word[file] for file in files})
    stems = [str(stem_of(file)) for file in files]
    shared = shared_start(stems)
    if len(files) < 2 or role_of(shared) is not None or shared.lower().startswith("sub-"):
        return in_full
    short = {file: role_of(stem.removeprefix(shared)) for file, stem in zip(files, stems, strict=True)}
    if not in_full.is_clear:
        without = _sorted_by_role(short)
        return without if without.is_clear else in_full
    doubtful = {file: None for file in files if by_word[file] == "t1c" and short[file] == "t1"}
    return _sorted_by_role({**by_word, **doubtful})


def _sorted_by_role(roles: Mapping[Path, str | None], sequences: Sequence[str] = MODALITIES) -> NamedFiles:
    names = [role for role in (*sequences, "seg") if role in roles.values()]
    return NamedFiles(
        None,
        {name: [file for file, role in roles.items() if role == name] for name in names},
        tuple(file for file, role in roles.items() if role == "other"),
        tuple(file for file, role in roles.items() if role is None),
    )


def said_otherwise(images: Mapping[str, Path], task: Task = BRAIN_TUMOUR) -> dict[str, str]:
    """Find the files whose names clearly say another sequence than the one for which the user gave them.

    Args:
        images: Path of each sequence.
        task: Task that defines the sequences.

    Returns:
        For each such sequence, the sequence that the file's name says. A name such as `t1_mprage` contradicts T1c only
        within a naming convention or beside a file whose name says T1c: clinics often do not write the contrast agent
        into the name.
    """
    named = read_names(list(images.values()), task)
    said = {file: role for role, files in named.roles.items() if role in task.modalities for file in files}
    contrast_is_named = named.layout is not None or "t1c" in said.values()
    return {
        name: said[file]
        for name, file in images.items()
        if said.get(file, name) != name and (contrast_is_named or name != "t1c" or not _may_be_t1c(file))
    }


def _may_be_t1c(file: Path) -> bool:
    """Whether the name would be that of T1c if it also contained a word for contrast agent."""
    return role_of(f"{stem_of(file)}_gad") == "t1c"


def in_other_formats(files: Iterable[Path], task: Task = BRAIN_TUMOUR) -> dict[str, list[Path]]:
    """Map each sequence to its files in formats that must be converted first, such as MetaImage."""
    found: dict[str, list[Path]] = {}
    for file in files:
        role = role_in(task, stem_of(file, OTHER_FORMATS) or "")
        if role in task.modalities:
            found.setdefault(str(role), []).append(file)
    return found


def name_files(folder: Path, content: Sequence[Path], task: Task = BRAIN_TUMOUR) -> NamedFiles:
    """Find the role of each volume in a case's folder: a sequence or `seg` (the segmentation).

    Args:
        folder: Folder of the case.
        content: All files and folders in the folder.
        task: Task that defines the sequences and regions.

    Raises:
        BadInputError: If the files belong to several cases, if a file cannot be identified, if two files are the same
            sequence, or if no file is a sequence.
    """
    files = [file for file in content if stem_of(file) is not None]
    cases = _cases_in(files)
    if len(cases) > 1:
        raise BadInputError(
            folder,
            f"This folder contains files of several patients or sessions: {listed(cases)}. "
            "Put each patient and each session into a separate folder.",
        )
    named = read_names(files, task)
    unread = [
        file.name
        for role, found in in_other_formats(content, task).items()
        if role not in named.roles
        for file in found
    ]
    if unread:
        by_prepare = all(name.lower().endswith(NRRD) for name in unread)
        how = f" To convert NRRD files, run {prepare_command()}." if by_prepare else ""
        raise BadInputError(
            folder,
            f"These sequences are in an unsupported format: {listed(unread)}. Convert the files to NIfTI "
            f"(.nii.gz), or remove the files to continue without these sequences.{how}",
        )
    if not named.has_sequence:
        raise nothing_found(folder, task)
    if named.unknown:
        known = ", ".join(f"{role} {files[0].name}" for role, files in named.roles.items())
        raise BadInputError(
            folder,
            f"The sequence of these files is unclear: {listed(file.name for file in named.unknown)}. (Recognised: "
            f"{known}.) {_each_name(task)}. Rename or remove these files.",
            names_unclear=True,
        )
    for role, same in named.roles.items():
        if len(same) > 1:
            what = "the ground truth" if role == "seg" else role
            raise BadInputError(
                folder,
                f"Several files may be {what}: {listed(file.name for file in same)}. Keep one of these files, or put "
                "each patient and each session into a separate folder.",
                names_unclear=True,
            )
    return named


def _cases_in(files: Sequence[Path]) -> list[str]:
    """Names of the patients and sessions in the file names, sorted.

    Only BIDS names, and names with the prefix of a convention, such as `TCGA-`, identify a patient with certainty.
    Files with other names are ignored.
    """
    found = set()
    for file in files:
        bids = BIDS_CASE.match(file.name)
        if bids:
            found.add(bids[1])
        for layout in LAYOUTS:
            match = layout.match(file)
            # Only conventions with a fixed prefix are certain. Other names may begin with any text, such as a number.
            own = layout.patterns["t1"][0].split("*")[0]
            if match and match.begin and own and role_of(match.begin) is None:
                found.add(own + match.begin)
    return sorted(found)


def nothing_found(folder: Path, task: Task = BRAIN_TUMOUR) -> BadInputError:
    """Error that says that a folder contains no sequence, and lists its files."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return BadInputError(folder, "No MRI sequence found. The folder is empty. Give a folder that contains images.")
    message = f"No MRI sequence found. The folder contains: {listed(names)}. {_each_name(task)}. Rename the files."
    return BadInputError(folder, message, names_unclear=True)


def _each_name(task: Task) -> str:
    return f"Each file name must contain its sequence ({', '.join(task.modalities)})"

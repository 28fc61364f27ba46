"""Identify an MRI sequence by the name of a file, of a DICOM series, or of a channel in `dataset.json`.

A name is split into words. `WORDS` gives each word a kind, such as `contrast` for `gad`. The regular expressions in
`RULES` then determine the sequence from the kinds.
A name needs no fixed suffix: `ax_t2_flair` is FLAIR, and `t1_mprage_gad` and `sub-01_ce-gadolinium_T1w` are T1c.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from .files import did_you_mean
from .model.configuration_lora_moe_hgd import MODALITIES
from .model.task import BRAIN_TUMOUR, Task

Role = Literal["t1", "t1c", "t2", "flair", "seg", "other"]

# Words of each kind. A word may be alone or joined to other words, as in `axt1post`. Unknown words are ignored.
WORDS = {
    "t1": "t1 t1w t1wi mprage spgr fspgr bravo",
    "t1 contrast": "t1c ct1 ct1w",
    "t1 native": "t1n",
    "t2": "t2 t2w t2wi",
    "flair": "flair t2f darkfluid tirm",
    "contrast": "ce gd gad gado gadolinium gadovist gadavist dotarem magnevist prohance contrast postcontrast "
    "gadobutrol gadoterate gadoteridol gadopentetate gadodiamide gadolinio gbca clariscan vueway primovist cm pc plus "
    "enhanced km kontrast kontrastmittel inj injection injecte contraste contrasto mdc",
    "c": "c",  # Means contrast only after T1.
    "native": "native nativ natif precontrast noncontrast unenhanced",
    "before": "pre vor avant before",
    "after": "post nach apres after",
    "without": "without wo no non ohne sans senza sin",
    "treatment": "op operation operative operativ surgery rt radiation radiotherapy chemo therapy treatment resection "
    "biopsy biopsie",
    "to": "to onto into in on",
    "reg": "reg registered coreg coregistered aligned resampled resliced",
    "seg": "seg segm segmentation segmentations mask masks label labels labelmap dseg roi gtv gt groundtruth",
    "tumour": "tumor tumour",  # Means a segmentation if the name contains no sequence.
    "lesion": "lesion lesions",
    "anatomy": "brain bet skull head parenchyma tissue tissues wm gm csf deface",
    "other": "adc dwi dti diff diffusion trace tracew fa md b0 b1000 ep2d epi bold fmri asl pcasl perf perfusion pwi "
    "dsc dce cbf cbv rcbv mtt ttp tmax ktrans swi swan swip minip mip phase pha mag magnitude t2star t2starw t2s t2sw "
    "t2gre hemo tof mra mrv angio angiography venography pd pdw proton mt mtr stir dir map fieldmap mrs csi "
    "spectroscopy localizer localiser loc scout survey inplane spine subtraction subtracted ct pet prob probability "
    "probabilities probseg uncertainty aseg aparc",
    "sub": "sub",  # Means subtraction at the end of a name, otherwise the subject.
    "technique": "ax axial tra transversal sag sagittal cor coronal w weighted 2d 3d iso se tse fse gre ir fs fatsat "
    "tfe ffe mpr vibe space spc cube vista blade propeller",
}
KIND = {word: kind for kind, words in WORDS.items() for word in words.split()}
# A text of joined words must contain a word of these kinds: `petra` is a first name, not PET and transversal.
CORE = {"t1", "t1 contrast", "t1 native", "t2", "flair", "seg"}
# Words of these kinds after a sequence describe the sequence.
DETAILS = {"contrast", "c", "native", "before", "after", "without", "technique", "to", "reg"}

# Entities of BIDS names whose value says nothing about the sequence. BIDS names begin with `sub-`.
BIDS_ENTITIES = re.compile(r"(?:^|_)(?:sub|ses|space|run|task|dir|res|den|from|to|mode)-[^_]*")
# Signs and phrases in lower case, with their replacements. They are replaced before the name is split at all
# characters except letters and digits.
SIGNS = (
    (r"\*", "star "),
    (r"w/o\b", " without "),
    (r"\+ ?(?:c|gd|km)\b|(?<=[a-z0-9])\+(?![a-z0-9])", " contrast "),
    (r"(?<=\s)\+(?=\s*$)", " contrast "),
    (r"\bc-(?![a-z0-9])", " native "),
    (r"\bdark[ -]fl(?:uid)?\b|\bda-fl\b", " flair "),
    (r"\b(flair|t[12][a-z]*|adc|swi)2(?=t1|t2|flair)", r"\1 to "),
)
SEQUENCE = r"(?:t1|t2|flair)"
# Regular expressions and replacements, applied one after another to the kinds of the words.
RULES = (
    # In `FLAIR_to_T1`, the first sequence counts. The second one is only the grid to which it was registered.
    (rf"\bto\b.*\b{SEQUENCE}\b.*", ""),
    (rf"\b({SEQUENCE}\b.*?) reg\b.*\b{SEQUENCE}\b.*", r"\1"),
    (rf"\b({SEQUENCE}) 2 {SEQUENCE}\b.*", r"\1"),
    (r"\b(?:before|after) treatment\b", ""),
    (r"\b(?:before|without) contrast\b", "native"),
    (r"\bafter\b", "contrast"),
    (r"\bbefore\b", "native"),
    (r"\bt1((?: technique| \?| \d+)*) c\b", r"t1\1 contrast"),
    (r"\bsub$", "other"),
    # `t1c_tumour` may be an image or a mask.
    (rf"\b{SEQUENCE}\b.*\b(?:tumour|lesion)$", "unclear"),
)


def role_of(description: str) -> Role | None:
    """Identify a name as a sequence, as a tumour segmentation (`seg`), or as another kind of image (`other`).

    Args:
        description: File name without its extension, or the name of a DICOM series or of a channel. It may contain the
            patient's name.

    Returns:
        The role. `None` if the name contains no known word, or words that exclude each other, such as `t1` and `t2`.

    Example:
        >>> [role_of(name) for name in ("ax_t2_flair", "t1_mprage_gad", "FLAIR_to_T1", "ADC", "t1_t2_fused")]
        ['flair', 't1c', 'flair', 'other', None]
    """
    line = " ".join(_kinds(description))
    for pattern, replacement in RULES:
        line = re.sub(pattern, replacement, line).strip()
    kinds = set(line.split())
    sequences = kinds & {"t1", "t2", "flair"}
    if "other" in kinds:
        return "other"
    if "seg" in kinds:
        return "other" if "anatomy" in kinds and "tumour" not in kinds else "seg"
    if sequences == {"t1"}:
        if {"contrast", "native"} <= kinds:
            return None
        return "t1c" if "contrast" in kinds else "t1"
    # FLAIR is often called T2 FLAIR.
    if "flair" in sequences and "t1" not in sequences:
        return "flair"
    if sequences == {"t2"}:
        return "t2"
    if sequences:
        return None
    return "seg" if "tumour" in kinds else "other" if "lesion" in kinds else None


def role_in(task: Task, description: str) -> str | None:
    """Find the sequence of a task that a file name belongs to.

    The words of the task have priority over the built-in words.

    Returns:
        Name of the sequence; `seg` for the label map of the task; `other` for a file of another kind; `None` if the
        name is unclear or contains words of several sequences.
    """
    known = role_of(description)
    if task.is_brain_tumour:
        return known
    if description.lower().startswith("sub-"):
        description = BIDS_ENTITIES.sub("_", description)
    words = set(re.findall(r"[a-z0-9]+", description.lower()))
    named = {**task.sequences, "seg": task.label_map}
    found = [role for role, own in named.items() if words & set(own)]
    if found:
        return found[0] if len(found) == 1 else None
    if known in named and not named[known]:
        return known
    # The name is that of a sequence that the task lacks, or of a label map without the task's own words for it.
    return "other" if known in (*MODALITIES, "seg", "other") else None


def without_sequence(name: str, task: Task = BRAIN_TUMOUR) -> str:
    """Remove the words about the sequence from a file name, so that only the words about the case remain.

    Words about contrast agent or technique are removed only if they follow the sequence: in `KM_T1_post`, `post` is
    removed, but `KM` may be the patient's initials.

    Example:
        >>> [without_sequence(name) for name in ("BraTS-GLI-7-t1c", "KM_T1_post", "T1c_p7", "ax_T1", "flair")]
        ['BraTS-GLI-7', 'KM', 'p7', 'ax', '']
    """
    kept, about_sequence = "", False
    for piece in re.findall(r"[\W_]*[^\W_]+", name):
        is_detail = about_sequence and {*_kinds(piece)} <= DETAILS
        about_sequence = is_detail or role_in(task, piece) in task.modalities
        if not about_sequence:
            kept += piece
    return re.sub(r"^[\W_]+", "", kept)


def parse_sequences(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Split a text with sequence names that are separated by commas. Unknown names are also returned.

    Raises:
        ValueError: If known names are separated by spaces, plus signs or semicolons.

    Example:
        >>> parse_sequences("t1c, FLAIR", ["t1", "t1c", "t2", "flair"])
        ('t1c', 'flair')
    """
    names = tuple(name.strip().lower() for name in text.split(","))
    words = [re.findall(r"[^\s+;]+", name) for name in names]
    if any(len(some) > 1 and set(some) <= set(known) for some in words):
        right = ",".join(word for some in words for word in some)
        raise ValueError(f"Separate sequences by commas: {right}. Got: {text}.")
    return names


def sequence_hint(names: Sequence[str], known: Sequence[str]) -> str:
    """End of an error message: for each unknown name, the known name that the user probably meant.

    Args:
        names: Names of sequences, or options such as `--t1ce`. Known names get no hint.
        known: Names, or options, that exist.

    Example:
        >>> print(sequence_hint(["T1gd"], ["t1", "t1c"]), sequence_hint(["--t1ce"], ["--t1", "--t1c"]))
         'T1gd' is named 't1c' here.  '--t1ce' is named '--t1c' here.
        >>> print(sequence_hint(["T1C", "FLAIR", "t1w"], ["t1", "t1c", "flair"]))
         Write in lower case: 't1c', 'flair'. 't1w' is named 't1' here.
        >>> print(sequence_hint(["flare"], ["t1", "flair"]), sequence_hint(["--no-t1"], ["--t1", "--t1c"]))
         Did you mean 'flair'?  Did you mean '--t1'?
    """
    capitals = [name for name in names if name not in known and name.lower() in known]
    in_lower_case = f" Write in lower case: {', '.join(repr(name.lower()) for name in capitals)}." if capitals else ""
    return in_lower_case + "".join(_hint(name, known) for name in names if name.lower() not in known)


def _hint(name: str, known: Sequence[str]) -> str:
    """Sentence with the known name that the user probably meant by `name`; empty if no known name is similar."""
    own = f"{'--' if name.startswith('--') else ''}{role_of(name)}"
    # An option of several words, such as --no-t1, is no sequence.
    is_other_name = own in known and "-" not in name.removeprefix("--")
    return f" '{name}' is named '{own}' here." if is_other_name else did_you_mean(name, known)


def _kinds(description: str) -> list[str]:
    """Kind of each word of a name. A number stays as it is, and an unknown word becomes `?`."""
    if description.lower().startswith("sub-"):
        description = BIDS_ENTITIES.sub("_", description)
    plain = unicodedata.normalize("NFKD", description).encode("ascii", "ignore").decode()
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).lower().replace("_", " ")
    for pattern, replacement in SIGNS:
        text = re.sub(pattern, replacement, text)
    kinds = []
    for chunk in re.findall(r"[a-z0-9]+", text):
        words = [chunk] if chunk in KIND else _joined(chunk)
        if words is None:
            # Ignore a number at the end: `flair1` and `seg01` are known words, but `t11` is not.
            words = _joined(re.sub(r"(?<=[a-z])\d+$", "", chunk))
        if words is None or (len(words) > 1 and not CORE & {KIND[word] for word in words}):
            kinds.append(chunk if chunk.isdigit() else "other" if chunk.endswith("map") else "?")
        else:
            kinds.extend(KIND[word] for word in words)
    return kinds


@lru_cache(maxsize=4096)
def _joined(chunk: str) -> list[str] | None:
    """Split `chunk` into known words, the first one as long as possible; `None` if `chunk` cannot be split so."""
    if chunk in KIND:
        return [chunk]
    for end in range(len(chunk) - 1, 0, -1):
        if chunk[:end] in KIND and (rest := _joined(chunk[end:])) is not None:
            return [chunk[:end], *rest]
    return None

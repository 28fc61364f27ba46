"""Task of a network: the sequences that it reads, and the regions that it segments. A region is a set of labels.

The task of the shipped networks is `BRAIN_TUMOUR`. A YAML file can describe another task for training and for
`lora-moe-hgd check` (`lora_moe_hgd.task_files`). A trained network stores its task in `preprocessor_config.json`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .configuration_lora_moe_hgd import MODALITIES
from .findings import BadInputError
from .label_schemes import LABEL_SCHEMES, LabelScheme

# Highest number of sequences and of regions. More sequences have too many subsets, and the page of results stores the
# regions of a voxel in eight bits.
MOST = 8
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Names that sequences and regions cannot have. A sequence is an option of the command line, a subset and a column of
# tables, so it must differ from all other options, subsets and columns.
RESERVED = {
    "all",
    "mean",
    "seg",
    "task",
    "help",
    "in_path",
    "data",
    "out_path",
    "out",
    "base",
    "checkpoint",
    "sequences",
    "modalities",
    "label_scheme",
    "channel_order",
    "reference",
    "strict",
    "allow_skull",
    "allow_partial",
    "mirror",
    "bf16",
    "probabilities",
    "uncertainty",
    "html",
    "study",
    "series",
    "brain_mask",
    "brain_extraction",
    "case_id",
    "deface",
    "on",
    "keep",
    "device",
    "quiet",
}


@dataclass(frozen=True)
class Task:
    """Task of a network: its sequences and regions, both in channel order.

    Attributes:
        name: Name of the task. A task from a file also has one label scheme of this name.
        target: Word for the segmented object, such as `tumour`.
        sequences: For each sequence, the words that identify the sequence in file names. If `t1`, `t1c`, `t2` or
            `flair` has no words, the built-in words are used.
        schemes: Label schemes by name, all with the same regions.
        label_map: Words that identify the label map in file names; if empty, the built-in words are used.
        without: Warnings for cases that lack sequences, by the name of the missing sequence. Several names joined by
            `+` mean that all of these sequences are missing.
    """

    name: str
    target: str
    sequences: Mapping[str, tuple[str, ...]]
    schemes: Mapping[str, LabelScheme]
    label_map: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the sequences."""
        return tuple(self.sequences)

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions."""
        return tuple(self._scheme.regions)

    @property
    def is_brain_tumour(self) -> bool:
        """Whether this is the task of the shipped networks."""
        return self.name == BRAIN_TUMOUR.name

    @property
    def _scheme(self) -> LabelScheme:
        return next(iter(self.schemes.values()))

    @cached_property
    def around(self) -> tuple[tuple[int, ...], ...]:
        """For each region, the indices of all regions that contain it, outermost first.

        Region A contains region B if A has all labels of B, and at least one more.
        """
        sets = [frozenset(labels) for labels in self._scheme.regions.values()]
        return tuple(tuple(number for number, outer in enumerate(sets) if outer > labels) for labels in sets)

    def nested(self, probabilities: Tensor) -> Tensor:
        """Limit the probabilities of each region to those of all regions that contain it; `(R, D, H, W)`."""
        found: list[Tensor] = []
        for probability, outer in zip(probabilities, self.around, strict=True):
            for number in outer:
                probability = torch.minimum(probability, found[number])
            found.append(probability)
        return torch.stack(found)

    def to_dict(self) -> dict[str, Any]:
        """Convert the task to a dictionary for JSON.

        Sequences and regions become lists of pairs, because a JSON file with sorted keys would lose their order.
        """
        return {
            "name": self.name,
            "target": self.target,
            "sequences": [[name, list(words)] for name, words in self.sequences.items()],
            "regions": [[name, list(labels)] for name, labels in self._scheme.regions.items()],
            "other_labels": list(self._scheme.others),
            "label_map": list(self.label_map),
            "without": dict(self.without),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Task:
        """Build a task from the result of `to_dict`.

        Raises:
            BadInputError: If the dictionary is damaged, or if a key or a value is invalid.
        """
        where = "task of the checkpoint"
        try:
            pairs = {key: dict(content.get(key) or ()) for key in ("sequences", "regions")}
        except (AttributeError, TypeError, ValueError) as error:
            raise BadInputError(
                where,
                "Sequences and regions are not lists of pairs. The file is damaged. Download the checkpoint again.",
            ) from error
        return make_task({**content, **pairs}, where=where)


BRAIN_TUMOUR = Task(
    name="brain-tumour",
    target="tumour",
    sequences=dict.fromkeys(MODALITIES, ()),
    # The image processor, not the task, stores the default scheme of a checkpoint (brats2023).
    schemes=LABEL_SCHEMES,
    without={
        "t1c": "Only T1c shows contrast uptake. Without T1c, TC and ET are unreliable and may be missed.",
        "t2+flair": "Only T2 and FLAIR show oedema well. Without both, WT is unreliable and may be missed.",
    },
)

KEYS = ("name", "target", "sequences", "regions", "other_labels", "label_map", "without")


def shown(region: str) -> str:
    """Display name of a region. Names of one or two letters are abbreviations and get capital letters.

    Example:
        >>> shown("wt"), shown("lesion")
        ('WT', 'lesion')
    """
    return region.upper() if len(region) <= 2 else region


def make_task(content: Mapping[str, Any], *, where: Path | str) -> Task:
    """Build a task from its description, and check all values.

    Args:
        content: Description of the task, with the keys that docs/tasks.md explains.
        where: File or other source of the description, which error messages name.

    Raises:
        BadInputError: If a key is unknown or missing, or a value is invalid. The error message names the key and the
            remedy.
    """
    rules = _Rules(where)
    for key in content:
        if key not in KEYS:
            (nearest,) = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.0)
            rules.refuse(str(key), f"This key is unknown. The most similar key is `{nearest}`.")
    for key in ("name", "target", "sequences", "regions"):
        if not content.get(key):
            rules.refuse(key, "This key is missing. docs/tasks.md shows an example.")
    name, target = content["name"], content["target"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        rules.refuse("name", f"Use only small letters, digits and hyphens, as in ms-lesions. Got: {name!r}.")
    if name in (*LABEL_SCHEMES, "input", BRAIN_TUMOUR.name):
        rules.refuse("name", f"`{name}` is already the name of a label scheme or task. Choose another name.")
    if not isinstance(target, str) or not NAME.fullmatch(target):
        rules.refuse(
            "target", f"Give one word in small letters for the segmented object, such as lesion. Got: {target!r}."
        )
    sequences = {
        key: rules.words(f"sequences.{key}", words) for key, words in rules.named("sequences", content).items()
    }
    for key, words in sequences.items():
        if not words and key not in MODALITIES:
            rules.refuse(
                f"sequences.{key}",
                f"Give the words that identify this sequence in file names, such as [{key}]. "
                f"Only {', '.join(MODALITIES)} have built-in words.",
            )
    label_map = rules.words("label_map", content.get("label_map"))
    rules.refuse_shared_words(
        {**{f"sequences.{key}": words for key, words in sequences.items()}, "label_map": label_map}
    )
    regions = {key: rules.labels(f"regions.{key}", labels) for key, labels in rules.named("regions", content).items()}
    rules.refuse_covered_regions(regions)
    others = rules.labels("other_labels", content.get("other_labels") or [], may_be_empty=True)
    for key, labels in regions.items():
        if both := sorted(set(labels) & set(others)):
            rules.refuse(
                "other_labels",
                f"The label {both[0]} also belongs to the region `{key}`. Remove the label from the region or from "
                "`other_labels`.",
            )
    without = content.get("without") or {}
    if not isinstance(without, Mapping) or not all(isinstance(text, str) and text for text in without.values()):
        rules.refuse(
            "without",
            "Give the warning for a case without the sequence, such as `flair: Most lesions show only on FLAIR.`",
        )
    if unknown := sorted({name for names in map(str, without) for name in names.split("+")} - set(sequences)):
        rules.refuse(
            f"without.{unknown[0]}", f"This is not a sequence of the task. The sequences are {', '.join(sequences)}."
        )
    scheme = LabelScheme(name, regions, others=others, target=target)
    return Task(name, target, sequences, {name: scheme}, label_map, dict(without))


class _Rules:
    """Checks of the values of a task. Each check raises a `BadInputError` with the file and the key."""

    def __init__(self, where: Path | str) -> None:
        self.where = where

    def refuse(self, key: str, message: str) -> NoReturn:
        raise BadInputError(self.where, f"`{key}`: {message}")

    def named(self, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Check the names in the section `key` (`sequences` or `regions`); return the section."""
        values = content[key]
        if not isinstance(values, Mapping) or not values:
            self.refuse(key, f"Give at least one name with its list of words or labels. Got: {values!r}.")
        if len(values) > MOST:
            self.refuse(key, f"At most {MOST} names are allowed, but there are {len(values)}. Remove some.")
        for name in values:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.refuse(
                    key,
                    f"A name has only small letters, digits and `_`, and begins with a letter. Got: {name!r}.",
                )
            if name in RESERVED:
                self.refuse(
                    key,
                    f"`{name}` is already an option of the command line or a column of a table. Choose another name.",
                )
        return dict(values)

    def words(self, key: str, words: Any) -> tuple[str, ...]:
        """Check words of file names; return the words in small letters."""
        if words is None:
            return ()
        if not isinstance(words, Sequence) or isinstance(words, str):
            self.refuse(key, f"Give a list of words, such as [t2f, flair]. Got: {words!r}.")
        for word in words:
            if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9]+", word):
                self.refuse(key, f"A word contains only letters and digits. Got: {word!r}.")
        return tuple(dict.fromkeys(word.lower() for word in words))

    def labels(self, key: str, labels: Any, *, may_be_empty: bool = False) -> tuple[int, ...]:
        """Check that labels are distinct integers from 1 to 255; return the labels."""
        labels = [labels] if isinstance(labels, int) else labels
        if not isinstance(labels, Sequence) or isinstance(labels, str) or not (labels or may_be_empty):
            self.refuse(key, f"Give the labels of this region in the label map, such as [1, 3]. Got: {labels!r}.")
        for label in labels:
            if not isinstance(label, int) or isinstance(label, bool) or not 1 <= label <= 255:
                self.refuse(key, f"Labels are integers from 1 to 255, and 0 is the background. Got: {label!r}.")
        if len(set(labels)) < len(labels):
            self.refuse(key, f"A label occurs twice: {', '.join(map(str, labels))}. Remove one.")
        return tuple(labels)

    def refuse_shared_words(self, words: Mapping[str, tuple[str, ...]]) -> None:
        """Raise if a word of file names stands for two sequences, or for a sequence and the label map."""
        owner: dict[str, str] = {}
        for key, own in words.items():
            for word in own:
                if word in owner:
                    self.refuse(
                        key,
                        f"The word `{word}` is also in `{owner[word]}`. Remove the word from one of the two lists.",
                    )
                owner[word] = key

    def refuse_covered_regions(self, regions: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if later regions would overwrite a region completely when a label map is written."""
        names = list(regions)
        for place, name in enumerate(names):
            later = names[place + 1 :]
            if set(regions[name]) <= set().union(*(regions[other] for other in later)):
                self.refuse(
                    f"regions.{name}",
                    f"All labels of this region also belong to later regions ({', '.join(later)}), which overwrite it "
                    "in label maps. Put a region before the regions that it contains, or give this region a further "
                    "label.",
                )

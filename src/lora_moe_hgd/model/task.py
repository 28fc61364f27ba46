"""What a network segments: its sequences, its regions as sets of labels, and what follows from them.

The task of the shipped networks is `BRAIN_TUMOUR`. Others are described in a file, which training and the commands
read (`lora_moe_hgd.task_files`), and travel in `preprocessor_config.json` of each network that is trained for them.
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

# With more sequences there would be too many subsets, and a page of results shows a region by a bit of eight.
MOST = 8
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Sequences are options of the command line beside these, and names of subsets and of columns in tables.
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
    "probabilities",
    "uncertainty",
    "html",
    "device",
    "quiet",
}


@dataclass(frozen=True)
class Task:
    """Sequences and regions, both in channel order.

    Attributes:
        name: Its name, which is also that of its label scheme.
        target: Word for what is segmented, such as `tumour`.
        sequences: Words that name each sequence in file names. Without words, the built-in ones of `t1`, `t1c`, `t2`
            and `flair` are taken.
        schemes: Label schemes by name, all of the same regions; the first is the usual one.
        label_map: Words that name the label map in file names; the built-in ones if there are none.
        without: Warning about the result for a case that lacks a sequence, by the name of the sequence.
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
        """Whether this is the task of the shipped networks, of which names of files and tables are known."""
        return self.name == BRAIN_TUMOUR.name

    @property
    def _scheme(self) -> LabelScheme:
        return next(iter(self.schemes.values()))

    @cached_property
    def around(self) -> tuple[tuple[int, ...], ...]:
        """For each region the numbers of the regions that contain it, the outermost first: their labels are more."""
        sets = [frozenset(labels) for labels in self._scheme.regions.values()]
        return tuple(tuple(number for number, outer in enumerate(sets) if outer > labels) for labels in sets)

    def nested(self, probabilities: Tensor) -> Tensor:
        """Probabilities `(R, D, H, W)`, of which none exceeds that of a region that contains its own."""
        found: list[Tensor] = []
        for probability, outer in zip(probabilities, self.around, strict=True):
            for number in outer:
                probability = torch.minimum(probability, found[number])
            found.append(probability)
        return torch.stack(found)

    def to_dict(self) -> dict[str, Any]:
        """The task as JSON can hold it. Lists keep an order that sorted keys would lose."""
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
        """Make the task that `to_dict` gave.

        Raises:
            BadInputError: If it breaks a rule.
        """
        where = "task of the checkpoint"
        try:
            pairs = {key: dict(content.get(key) or ()) for key in ("sequences", "regions")}
        except (AttributeError, TypeError, ValueError) as error:
            raise BadInputError(
                where, "Sequences and regions are not lists of pairs. Get the checkpoint again."
            ) from error
        return make_task({**content, **pairs}, where=where)


BRAIN_TUMOUR = Task(
    name="brain-tumour",
    target="tumour",
    sequences=dict.fromkeys(MODALITIES, ()),
    # Label maps are written in that of BraTS 2023 unless a checkpoint says otherwise.
    schemes=LABEL_SCHEMES,
    without={"t1c": "TC and ET are guesses, because contrast uptake shows on T1c alone. Do not rely on them."},
)

KEYS = ("name", "target", "sequences", "regions", "other_labels", "label_map", "without")


def shown(region: str) -> str:
    """Name of a region as people read it: short ones are abbreviations.

    Example:
        >>> shown("wt"), shown("lesion")
        ('WT', 'lesion')
    """
    return region.upper() if len(region) <= 2 else region


def make_task(content: Mapping[str, Any], *, where: Path | str) -> Task:
    """Check the description of a task, and make it.

    Args:
        content: Values by key, as docs/tasks.md describes them.
        where: Where it comes from, for messages.

    Raises:
        BadInputError: If a key is unknown or missing, or a value breaks a rule; the message names the key and the
            remedy.
    """
    rules = _Rules(where)
    for key in content:
        if key not in KEYS:
            (nearest,) = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.0)
            rules.refuse(str(key), f"This key is not known. The nearest is `{nearest}`.")
    for key in ("name", "target", "sequences", "regions"):
        if not content.get(key):
            rules.refuse(key, "This key is missing. docs/tasks.md shows an example.")
    name, target = content["name"], content["target"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        rules.refuse("name", f"Use small letters, digits and hyphens, such as ms-lesions, not {name!r}.")
    if name in (*LABEL_SCHEMES, "input", BRAIN_TUMOUR.name):
        rules.refuse("name", f"`{name}` is the name of something else. Choose another.")
    if not isinstance(target, str) or not NAME.fullmatch(target):
        rules.refuse(
            "target", f"Give one word in small letters for what is segmented, such as lesion, not {target!r}."
        )
    sequences = {
        key: rules.words(f"sequences.{key}", words) for key, words in rules.named("sequences", content).items()
    }
    for key, words in sequences.items():
        if not words and key not in MODALITIES:
            rules.refuse(
                f"sequences.{key}",
                f"Give the words that name it in file names, such as [{key}]. "
                f"Only {', '.join(MODALITIES)} have built-in ones.",
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
                "other_labels", f"{both[0]} is a label of the region `{key}`, too. Remove it from one of them."
            )
    without = content.get("without") or {}
    if not isinstance(without, Mapping) or not all(isinstance(text, str) and text for text in without.values()):
        rules.refuse("without", "Give a sentence for each sequence, such as `flair: Lesions show on FLAIR alone.`")
    if unknown := sorted(set(map(str, without)) - set(sequences)):
        rules.refuse(f"without.{unknown[0]}", f"This is no sequence of the task. They are {', '.join(sequences)}.")
    scheme = LabelScheme(name, regions, others=others, target=target)
    return Task(name, target, sequences, {name: scheme}, label_map, dict(without))


class _Rules:
    """Rules for the values of a task; each raises a `BadInputError` that names the file and the key."""

    def __init__(self, where: Path | str) -> None:
        self.where = where

    def refuse(self, key: str, message: str) -> NoReturn:
        raise BadInputError(self.where, f"`{key}`: {message}")

    def named(self, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the names of sequences or regions."""
        values = content[key]
        if not isinstance(values, Mapping) or not values:
            self.refuse(key, f"Give a name and a list for each, not {values!r}.")
        if len(values) > MOST:
            self.refuse(key, f"There may be at most {MOST}, here are {len(values)}. Leave some out.")
        for name in values:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.refuse(
                    key, f"Names begin with a small letter and go on with these, digits and `_`. {name!r} does not."
                )
            if name in RESERVED:
                self.refuse(
                    key, f"`{name}` means something else on the command line or in tables. Choose another name."
                )
        return dict(values)

    def words(self, key: str, words: Any) -> tuple[str, ...]:
        """Words of file names in small letters."""
        if words is None:
            return ()
        if not isinstance(words, Sequence) or isinstance(words, str):
            self.refuse(key, f"Give a list of words, such as [t2f, flair], not {words!r}.")
        for word in words:
            if not isinstance(word, str) or not re.fullmatch(r"[A-Za-z0-9]+", word):
                self.refuse(key, f"A word has letters and digits alone, unlike {word!r}.")
        return tuple(dict.fromkeys(word.lower() for word in words))

    def labels(self, key: str, labels: Any, *, may_be_empty: bool = False) -> tuple[int, ...]:
        """Labels, distinct integers from 1 to 255."""
        labels = [labels] if isinstance(labels, int) else labels
        if not isinstance(labels, Sequence) or isinstance(labels, str) or not (labels or may_be_empty):
            self.refuse(key, f"Give the labels of the label map that belong to it, such as [1, 3], not {labels!r}.")
        for label in labels:
            if not isinstance(label, int) or isinstance(label, bool) or not 1 <= label <= 255:
                self.refuse(key, f"Labels are integers from 1 to 255, unlike {label!r}. 0 is the background.")
        if len(set(labels)) < len(labels):
            self.refuse(key, f"It names a label twice: {', '.join(map(str, labels))}. Remove one.")
        return tuple(labels)

    def refuse_shared_words(self, words: Mapping[str, tuple[str, ...]]) -> None:
        """Raise if a word names two sequences, or a sequence and the label map."""
        owner: dict[str, str] = {}
        for key, own in words.items():
            for word in own:
                if word in owner:
                    self.refuse(key, f"The word `{word}` is already in `{owner[word]}`. Remove it from one of them.")
                owner[word] = key

    def refuse_covered_regions(self, regions: Mapping[str, tuple[int, ...]]) -> None:
        """Raise if painting the regions in order would leave nothing of one."""
        names = list(regions)
        for place, name in enumerate(names):
            later = names[place + 1 :]
            if set(regions[name]) <= set().union(*(regions[other] for other in later)):
                self.refuse(
                    f"regions.{name}",
                    f"Each of its labels belongs to a later region ({', '.join(later)}), painted over it. Put "
                    "the region that contains others first, or give this one a label of its own.",
                )

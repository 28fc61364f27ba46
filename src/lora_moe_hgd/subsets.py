"""Non-empty subsets of the sequences of a task.

A subset has a name, such as `t1c+flair`, and a mask: one boolean for each sequence. Four sequences have 15 subsets.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from .model.configuration_lora_moe_hgd import MODALITIES
from .sequence_names import sequence_hint

Mask = tuple[bool, ...]


def every_subset(sequences: Sequence[str]) -> tuple[Mask, ...]:
    """All non-empty subsets as masks, one boolean for each sequence, sorted by the number of sequences."""
    masks = itertools.product([True, False], repeat=len(sequences))
    return tuple(sorted((mask for mask in masks if any(mask)), key=sum))


EVERY_SUBSET = every_subset(MODALITIES)


def subset_name(mask: Mask, sequences: Sequence[str] = MODALITIES) -> str:
    """Name of a subset: the names of its sequences in channel order, joined by plus signs.

    Example:
        >>> subset_name((False, True, False, True))
        't1c+flair'
    """
    return "+".join(name for name, present in zip(sequences, mask, strict=True) if present)


def sequences_of(mask: Mask, sequences: Sequence[str] = MODALITIES) -> list[str]:
    """Names of the sequences of a subset, in channel order."""
    return [name for name, used in zip(sequences, mask, strict=True) if used]


def parse_subset(name: str, sequences: Sequence[str] = MODALITIES) -> Mask:
    """Convert a subset, written as `t1c+flair` or `all`, to a mask: one boolean for each sequence.

    Raises:
        ValueError: If a name is unknown or empty, or if the names are not joined by plus signs.

    Example:
        >>> parse_subset("flair+t1c")
        (False, True, False, True)
    """
    if name == "all":
        return (True,) * len(sequences)
    names = [part.strip().lower() for part in name.split("+")]
    unknown = sorted(set(names) - set(sequences))
    if unknown:
        words = re.split(r"[\s;]+", name.lower())
        if set(words) <= set(sequences):
            raise ValueError(
                f"To use sequences together, join their names by plus signs, such as {'+'.join(words)}. To use each "
                f"sequence alone, separate the names by commas, such as {','.join(words)}. Got: {name}."
            )
        if all(set(word.split("+")) <= set(sequences) for word in words):
            raise ValueError(f"Separate subsets by commas: {','.join(words)}. Got: {name}.")
        raise ValueError(
            f"Unknown sequence(s) {', '.join(unknown)} in '{name}'.{sequence_hint(unknown, sequences)} The names "
            f"are {', '.join(sequences)}."
        )
    return tuple(sequence in names for sequence in sequences)


def parse_subsets(text: str, sequences: Sequence[str] = MODALITIES) -> list[Mask]:
    """Convert subsets that are separated by commas to masks, as `parse_subset` does for one subset.

    Raises:
        ValueError: If the list has brackets, or if a subset cannot be parsed.

    Example:
        >>> parse_subsets("t2,t1c+flair")
        [(False, False, True, False), (False, True, False, True)]
    """
    # Training reads its subsets from YAML, where a list has brackets.
    if (plain := text.strip("[]() ")) != text.strip():
        raise ValueError(f"Leave out the brackets, as in {plain}. Got: {text}.")
    return [parse_subset(name, sequences) for name in text.split(",")]


def sequence_shown(name: str) -> str:
    """Display name of a sequence.

    Example:
        >>> sequence_shown("t1c"), sequence_shown("flair")
        ('T1c', 'FLAIR')
    """
    return "T1c" if name == "t1c" else name.upper()

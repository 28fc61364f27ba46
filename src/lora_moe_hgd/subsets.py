"""The 15 non-empty subsets of the four sequences, by name and as masks."""

from __future__ import annotations

import itertools

from .model.configuration_lora_moe_hgd import MODALITIES

Mask = tuple[bool, ...]

# Sorted from one sequence to all four.
EVERY_SUBSET: tuple[Mask, ...] = tuple(
    sorted((mask for mask in itertools.product([True, False], repeat=len(MODALITIES)) if any(mask)), key=sum)
)


def subset_name(mask: Mask) -> str:
    """Name of a subset, its sequences in channel order.

    Example:
        >>> subset_name((False, True, False, True))
        't1c+flair'
    """
    return "+".join(name for name, present in zip(MODALITIES, mask, strict=True) if present)


def parse_subset(name: str) -> Mask:
    """Mask of a subset written as names joined by plus signs, or `all`.

    Raises:
        ValueError: If a name is unknown or none is given.

    Example:
        >>> parse_subset("flair+t1c")
        (False, True, False, True)
    """
    if name == "all":
        return (True,) * len(MODALITIES)
    names = [part.strip().lower() for part in name.split("+")]
    unknown = sorted(set(names) - set(MODALITIES))
    if unknown:
        raise ValueError(
            f"Unknown sequence(s) {', '.join(unknown)} in '{name}'. The names are {', '.join(MODALITIES)}."
        )
    return tuple(modality in names for modality in MODALITIES)

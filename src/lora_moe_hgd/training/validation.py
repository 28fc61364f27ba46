"""Find the validation cases for each subset: the cases that have all sequences of the subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..files import counted, listed
from ..model.task import BRAIN_TUMOUR, Task
from ..subsets import Mask, parse_subset, subset_name
from .options import DEFAULT_SUBSETS


def default_subsets(task: Task) -> tuple[str, ...]:
    """Subsets that are scored by default. For a task of your own: all sequences together, and each sequence alone."""
    return DEFAULT_SUBSETS if task.is_brain_tumour else tuple(dict.fromkeys(("all", *task.modalities)))


def scored_subsets(
    subsets: Sequence[str] | None, acquired: Mapping[str, Mask], task: Task = BRAIN_TUMOUR
) -> dict[str, list[str]]:
    """Find the validation cases on which each subset can be scored.

    Args:
        subsets: Names of subsets, such as `t1c+flair`. Each of them needs a validation case that has all of its
            sequences. `None` means `default_subsets`, of which at least one needs such a case.
        acquired: Acquired sequences of each validation case, by case id.
        task: Task that defines the sequences and regions.

    Returns:
        Ids of the cases that have all sequences of a subset, by the name of the subset. The list of a default
        subset is empty if no case has all of its sequences.

    Raises:
        ValueError: If no case has all sequences of a requested subset, or if no case has all sequences of any default
            subset.

    Example:
        >>> scored_subsets(["t1c", "t1c+flair"], {"a": (False, True, False, True), "b": (False, True, True, False)})
        {'t1c': ['a', 'b'], 't1c+flair': ['a']}
    """
    scored = {
        name: [case for case, has in acquired.items() if _has_all(has, parse_subset(name, task.modalities))]
        for name in subsets or default_subsets(task)
    }
    empty = [name for name, cases in scored.items() if not cases]
    if empty and (subsets is not None or len(empty) == len(scored)):
        there = [f"{case} has {subset_name(has, task.modalities)}" for case, has in acquired.items()]
        raise ValueError(
            f"No validation case has all sequences of the subset {' or of '.join(empty)} "
            f"({listed(there, separator='; ')}). Name other subsets with `--subsets`, or validate on other cases."
        )
    return scored


def describe_subsets(scored: Mapping[str, Sequence[str]], cases: Sequence[str]) -> list[str]:
    """Describe for each subset how many validation cases have all of its sequences, and name the other cases."""
    lines = []
    for name, able in scored.items():
        lacking = [case for case in cases if case not in able]
        without = f", without {listed(lacking)}" if lacking else ""
        lines.append(f"Validation on {name}: {len(able)} of {counted(len(cases), 'case')}{without}.")
    return lines


def _has_all(acquired: Mask, subset: Mask) -> bool:
    return all(has or not needed for has, needed in zip(acquired, subset, strict=True))

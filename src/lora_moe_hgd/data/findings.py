"""For messages that are still written as a rule and what was found instead."""

from ..model.findings import BadInputError, Finding, Level

__all__ = ["BadInputError", "Finding", "Level", "got"]


def got(rule: str, value: object) -> str:
    """One sentence from a rule and what was found."""
    return f"{rule}, got {value}."

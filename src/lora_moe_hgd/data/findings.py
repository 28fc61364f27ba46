"""What is wrong with a user's files: which file, which rule it breaks, what was found instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a file; as text, one line.

    Attributes:
        path: The file or folder.
        rule: What it should be.
        value: What was found.
        level: `error`: it cannot be used; `warning`: it can, and the result may not be what is expected.
    """

    path: Path
    rule: str
    value: str
    level: Level = "warning"

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}, got {self.value}."


class BadInputError(ValueError):
    """A file that cannot be used.

    Attributes:
        path: The file or folder.
        rule: What it should be.
        value: What was found.
    """

    def __init__(self, path: Path, rule: str, value: object) -> None:
        self.finding = Finding(path, rule, " ".join(str(value).split()), "error")
        super().__init__(str(self.finding))
        self.path, self.rule, self.value = path, rule, value

    # Exceptions come back from other processes by their arguments, which are not the message alone.
    def __reduce__(self) -> tuple[type[BadInputError], tuple[Path, str, object]]:
        return BadInputError, (self.path, self.rule, self.value)

"""Findings: warnings and errors about a case. Each finding says where the problem is and what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

Level = Literal["error", "warning"]
# Value of `Finding.where` if a finding is about the case itself, not about one of its files. Only the message is
# shown.
WHOLE_CASE = "case"
# Modules of the packages in the extra `scans` of `lora-moe-hgd`, which `lora-moe-hgd prepare` imports.
SCAN_MODULES = ("pydicom", "dcm2niix", "SimpleITK", "deepbet", "highdicom")


@dataclass(frozen=True)
class Finding:
    """A warning or an error about a case.

    Attributes:
        where: Subject of the finding: a sequence name, `label map`, `WHOLE_CASE`, or the path of a file or folder.
        message: Full sentences that say what is wrong and what to do.
        level: `error` if the case cannot be used; `warning` if the case can be used, but the result may be wrong.
        names_unclear: True if the file names do not show which file contains which sequence. The user can then give
            the file of each sequence by an option. Only some commands have such an option, so `message` does not
            mention it. These commands add it to the message.
    """

    where: Path | str
    message: str
    level: Level = "warning"
    names_unclear: bool = False

    def __str__(self) -> str:
        return self.message if self.where == WHOLE_CASE else f"{self.where}: {self.message}"


def missing_scan_modules() -> list[str]:
    """Modules that `lora-moe-hgd prepare` needs, but that are not installed."""
    return [name for name in SCAN_MODULES if importlib.util.find_spec(name) is None]


def prepare_command() -> str:
    """Return the command that prepares raw images, and how to install its packages if some are missing."""
    install = ' (first install its packages: pip install "lora-moe-hgd[scans]")' if missing_scan_modules() else ""
    return f"lora-moe-hgd prepare FOLDER OUT{install}"


def raise_errors(findings: Iterable[Finding], *, strict: bool = False) -> None:
    """Raise an exception for the first error; with `strict`, and if there is no error, for the first warning.

    Raises:
        BadInputError: If a finding has the level `error`, or, with `strict`, if there is any finding.
    """
    for finding in sorted(findings, key=lambda finding: finding.level != "error"):
        if strict or finding.level == "error":
            raise BadInputError(finding.where, finding.message, names_unclear=finding.names_unclear)


class BadInputError(ValueError):
    """Error about a file or a case that cannot be used.

    Attributes:
        finding: The problem, as a `Finding` of level `error`.
    """

    def __init__(self, where: Path | str, message: str, *, names_unclear: bool = False) -> None:
        self.finding = Finding(where, " ".join(message.split()), "error", names_unclear)
        super().__init__(str(self.finding))

    def with_remedy(self, remedy: str) -> BadInputError:
        """Return the same error with a further sentence that says what to do."""
        return BadInputError(self.finding.where, f"{self.finding.message} {remedy}")

    # By default, pickle rebuilds an exception from its message alone. Worker processes need all arguments.
    def __reduce__(self) -> tuple[Callable[[], BadInputError], tuple[()]]:
        finding = self.finding
        return partial(BadInputError, finding.where, finding.message, names_unclear=finding.names_unclear), ()

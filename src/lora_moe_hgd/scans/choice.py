"""Choose one series for each sequence, and show all series in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import counted
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import WHOLE_CASE, BadInputError, Finding
from ..sequence_names import sequence_hint
from .recognise import Recognised, recognise
from .series import Series
from .studies import shown_date


@dataclass(frozen=True)
class Choice:
    """All series of a study, and the series chosen for each sequence.

    Attributes:
        rows: Each series, and the result of `recognise` for this series.
        chosen: The series to use for each sequence, in channel order.
        findings: Warnings about the choice.
    """

    rows: tuple[tuple[Series, Recognised], ...]
    chosen: dict[str, Series]
    findings: tuple[Finding, ...]

    def table(self) -> str:
        """One line for each series: number, date, plane, voxel size, slice count, description, sequence, and reason.

        An asterisk marks the series that are used.
        """
        used = {series.number for series in self.chosen.values()}
        lines = [("#", "date", "plane", "voxel in mm", "slices", "description", "recognised as")]
        for series, found in self.rows:
            voxel = " x ".join(f"{edge:.3g}" for edge in series.spacing_mm) if series.shape[2] else ""
            lines.append(
                (
                    f"{series.number}{'*' if series.number in used else ''}",
                    shown_date(series.date),
                    series.plane,
                    voxel,
                    str(series.shape[2] or ""),
                    series.acquisition.description[:40],
                    f"{found.sequence or '-'}: {found.why}",
                )
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        cells = (["{:<{}}".format(*cell) for cell in zip(line, widths, strict=True)] for line in lines)
        return "\n".join("  ".join(line).rstrip() for line in cells)


def choose(series: Sequence[Series], wanted: Mapping[str, str], *, where: Path) -> Choice:
    """Choose a series for each sequence.

    Three criteria decide, in this order: an original series is better than a derived series, even gaps between the
    slices are better than uneven gaps, and small voxels are better than large voxels.

    Args:
        series: All series of one study.
        wanted: Series to use for a sequence, such as `{"t1c": "5"}`: its number in `series`, or its UID. These series
            are used whatever their headers say.
        where: Name of the study in error messages.

    Raises:
        BadInputError: If no sequence is found, or if a wanted series is missing or is not a volume.
    """
    rows = [(row, recognise(row)) for row in series]
    chosen: dict[str, Series] = {}
    findings: list[Finding] = []
    named = {name: _find(series, text, where) for name, text in wanted.items()}
    for name in MODALITIES:
        if name in named:
            chosen[name] = named[name]
            continue
        candidates = [row for row, found in rows if found.sequence == name and row not in named.values()]
        if candidates:
            chosen[name] = min(candidates, key=_rank)
        if len(candidates) > 1:
            numbers = ", ".join(str(row.number) for row in candidates)
            findings.append(
                Finding(
                    name,
                    f"Several series were recognised as {name}: {numbers}. Series {chosen[name].number} is used. "
                    f"Choose another series with --series {name}=NUMBER.",
                )
            )
    if not chosen:
        raise BadInputError(where, _nothing(rows))
    for name, row in chosen.items():
        if row.gaps:
            findings.append(
                Finding(
                    name,
                    f"Series {row.number} has {counted(row.gaps, 'uneven gap')} between slices. Slices may be "
                    "missing. Copy the series again, or look at the prepared image.",
                )
            )
    findings += [
        Finding(
            found.sequence or WHOLE_CASE,
            f"Series {row.number}: {found.why}. The sequence was recognised by these times, not by the description. "
            f"If this is wrong, name the sequence with --series SEQUENCE={row.number}.",
        )
        for row, found in rows
        if row in chosen.values() and "its description says" in found.why and row not in named.values()
    ]
    damaged = [str(row.number) for row, _ in rows if row.cut_off]
    if damaged:
        findings.append(
            Finding(
                WHOLE_CASE,
                f"Files of series {', '.join(damaged)} are cut off: their last pixels are missing. If you need these "
                "series, copy the files again.",
            )
        )
    return Choice(tuple(rows), chosen, tuple(findings))


def parse_series(texts: Sequence[str]) -> dict[str, str]:
    """Parse texts such as `t1c=5`, which give the number or the UID of the series to use for a sequence.

    Raises:
        ValueError: If a text has another form, or if a sequence is unknown or occurs twice.

    Example:
        >>> parse_series(["t1c=5", "flair=2"])
        {'t1c': '5', 'flair': '2'}
    """
    wanted: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.strip().lower()
        if name not in MODALITIES or not value.strip() or name in wanted:
            raise ValueError(
                f"--series must be SEQUENCE=NUMBER or SEQUENCE=UID, with each of {', '.join(MODALITIES)} at most "
                f"once. Got: {text}.{sequence_hint([name], MODALITIES)}"
            )
        wanted[name] = value.strip()
    return wanted


def _rank(row: Series) -> tuple[bool, bool, float, float, int]:
    """Sort key, which is lowest for the best series.

    Original series come before derived series, then even gaps before uneven gaps, then a short longest voxel edge
    before a long one, then small voxels before large voxels, then low numbers before high numbers.
    """
    volume = row.spacing_mm[0] * row.spacing_mm[1] * row.spacing_mm[2]
    derived = "DERIVED" in row.acquisition.image_type
    return derived, row.gaps > 0, round(max(row.spacing_mm), 1), round(volume, 2), row.number


def _find(series: Sequence[Series], text: str, where: Path) -> Series:
    found = [row for row in series if text in (str(row.number), row.uid)]
    if not found:
        numbers = ", ".join(str(row.number) for row in series)
        raise BadInputError(where, f"There is no series {text}. Give one of the numbers {numbers}.")
    if len(found) > 1:
        numbers = ", ".join(str(row.number) for row in found)
        raise BadInputError(
            where,
            f"The series with the UID {text} has several stacks of slices. Give the number of one stack: {numbers}.",
        )
    if found[0].shape[2] < 2 or found[0].plane == "none":
        # The positions of the slices are unknown without an orientation, so they would count as one.
        unplaced = found[0].plane == "none" and found[0].shape[2] > 0
        what = "no orientation" if unplaced else counted(found[0].shape[2], "slice")
        raise BadInputError(where, f"Series {found[0].number} is not a volume: it has {what}. Choose another series.")
    return found[0]


def _nothing(rows: Sequence[tuple[Series, Recognised]]) -> str:
    """Message that says why no sequence was found."""
    modalities = {row.acquisition.modality for row, _ in rows if row.shape[2]}
    if not modalities:
        return "The DICOM files contain no images. Give an MRI study of the head."
    if "MR" not in modalities:
        return f"The images are {', '.join(sorted(modalities))}, not MRI. Give an MRI study of the head."
    reasons = "; ".join(f"{row.number}: {found.why}" for row, found in rows[:20])
    return f"No series was recognised as T1, T1c, T2 or FLAIR ({reasons}). Name a series with --series t1c=NUMBER."

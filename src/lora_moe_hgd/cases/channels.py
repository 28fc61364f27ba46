"""Cases whose sequences are identified by number: numbered files, and volumes of one file with four axes.

Two families use numbers, in folders such as `imagesTr` and `labelsTr`. The Medical Segmentation Decathlon has the
sequences along a fourth axis, and nnU-Net has files `<case>_0000`, `<case>_0001` and so on. There is no standard order
of the sequences. It comes from the command line, from `dataset.json`, or, for `BRATS_*` of the Decathlon, from its
publication.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError
from ..model.task import BRAIN_TUMOUR, Task
from .case_files import EXTENSIONS, CaseFiles, name_them, safe_name, stem_of
from .sequence_names import role_in, role_of

DECATHLON = "Medical Segmentation Decathlon"
DECATHLON_NAMES = re.compile(r"brats_\d+", re.IGNORECASE)
DECATHLON_ORDER = ("flair", "t1", "t1c", "t2")
NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def order_option(task: Task) -> str:
    """Option that gives the order of numbered sequences, for error messages."""
    return f"--channel-order {','.join(task.modalities)} (in the order of the file)"


def parse_channel_order(text: str, task: Task = BRAIN_TUMOUR) -> tuple[str, ...]:
    """Split a list of sequence names, separated by commas.

    Raises:
        ValueError: If a name is unknown or appears twice.

    Example:
        >>> parse_channel_order("flair,t1,t1c,t2")
        ('flair', 't1', 't1c', 't2')
    """
    names = tuple(name.strip().lower() for name in text.split(","))
    if not set(names) <= set(task.modalities) or len(set(names)) != len(names):
        raise ValueError(
            f"A channel order lists {', '.join(task.modalities)}, each at most once and separated by commas. "
            f"Got: {text}."
        )
    return names


def channel_of(path: Path) -> tuple[str, int | None] | None:
    """Case name and sequence number of a numbered file. A file with four axes has the number `None`.

    Other files give `None`, also files such as `t1_2019.nii.gz`, whose name already contains the sequence.
    """
    stem = stem_of(path)
    if stem is None:
        return None
    match = NUMBERED.fullmatch(stem)
    if match and role_of(match["case"]) not in MODALITIES:
        return match["case"], int(match["channel"])
    return (stem, None) if DECATHLON_NAMES.fullmatch(stem) else None


def channel_cases(folder: Path) -> dict[str, Path]:
    """For each case with numbered sequences in `folder`: its name, and the path to pass to `channel_case`."""
    cases = {}
    for file in sorted(folder.glob("*")):
        found = channel_of(file)
        if found is not None:
            case, number = found
            cases[case] = file if number is None else folder / case
    return cases


def channel_case(path: Path, channel_order: Sequence[str] | None, task: Task = BRAIN_TUMOUR) -> CaseFiles:
    """The case at `path`: a file with four axes, or the common start of numbered files.

    Raises:
        BadInputError: If there is no such case, or the order of its sequences is unknown.
    """
    if path.is_file():
        return _stacked(path, channel_order, task)
    numbered: dict[int, Path] = {}
    for file in sorted(path.parent.glob("*")) if path.parent.is_dir() else ():
        case, number = channel_of(file) or ("", None)
        if number is not None and case == path.name:
            if number in numbered:
                raise BadInputError(
                    path.parent,
                    f"Two files have the number {number:04d}: {numbered[number].name}, {file.name}. Remove one.",
                )
            numbered[number] = file
    if not numbered:
        raise BadInputError(path, "There is no such file or folder.")
    order = channel_order or _order_of_dataset(path.parent, task)
    if order is None:
        raise BadInputError(
            path,
            "The file names do not determine which sequence has which number: "
            f"{', '.join(file.name for file in numbered.values())}. Give the order with {order_option(task)}, or in "
            "dataset.json under channel_names.",
        )
    if max(numbered) >= len(order):
        raise BadInputError(
            path,
            f"There is a file with the number {max(numbered):04d}, but the channel order has {len(order)} "
            f"sequences: {', '.join(order)}. Give all of them with {order_option(task)}.",
        )
    images = {
        name: numbered[order.index(name)]
        for name in task.modalities
        if name in order and order.index(name) in numbered
    }
    return CaseFiles(safe_name(path.name), path.parent, "nnU-Net", (), images, _labels_of(path, path.name))


def _stacked(path: Path, channel_order: Sequence[str] | None, task: Task) -> CaseFiles:
    stem = stem_of(path)
    if stem is None:
        raise BadInputError(path, f"This file is not an image. Give a folder, or a file {', '.join(EXTENSIONS)}.")
    same = [end for end in EXTENSIONS if path.with_name(f"{stem}{end}").is_file()]
    if len(same) > 1:
        names = ", ".join(f"{stem}{end}" for end in same)
        raise BadInputError(path, f"Several files have the name of this case: {names}. Keep only one.")
    decathlon = task.is_brain_tumour and bool(DECATHLON_NAMES.fullmatch(stem))
    order = channel_order or _order_of_dataset(path.parent, task) or (DECATHLON_ORDER if decathlon else None)
    if order is None:
        raise BadInputError(
            path,
            f"It is unknown which sequences this file contains. For a 3-D file, use one of {name_them(task)}. "
            f"For a 4-D file, give the sequences along its fourth axis with {order_option(task)}.",
        )
    return CaseFiles(
        case_id=safe_name(stem),
        folder=path.parent,
        layout=DECATHLON if decathlon else "one file with four axes",
        label_schemes=("msd",) if decathlon else (),
        images={name: path for name in task.modalities if name in order},
        segmentation=_labels_of(path, stem),
        channels={name: number for number, name in enumerate(order)},
    )


def _labels_of(path: Path, case: str) -> Path | None:
    """Path of the label map: `labelsTr/<case>` for a case in `imagesTr`; `None` if there is no such file."""
    folder = path.parent.parent / path.parent.resolve().name.replace("images", "labels")
    if folder.name == path.parent.name:
        return None
    return next((folder / f"{case}{end}" for end in EXTENSIONS if (folder / f"{case}{end}").is_file()), None)


def _order_of_dataset(folder: Path, task: Task) -> tuple[str, ...] | None:
    """Read the order of the sequences from `dataset.json` in `folder` or its parent; `None` if neither has this file.

    Raises:
        BadInputError: If the file cannot be read, or contains other names than the sequences.
    """
    path = next(
        (place / "dataset.json" for place in (folder, folder.parent) if (place / "dataset.json").is_file()), None
    )
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        names = content.get("channel_names") or content["modality"]
        words = [str(names[str(number)]) for number in range(len(names))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(
            path,
            f"This file does not list the sequences by number under channel_names or modality "
            f"({type(error).__name__}). Correct it, or give {order_option(task)}.",
        ) from error
    order = [role_in(task, word) for word in words]
    if not set(order) <= set(task.modalities) or len(set(order)) != len(order):
        raise BadInputError(
            path,
            f"This file has an unknown channel, or the same channel twice: {', '.join(words)}. The channels must be "
            f"{', '.join(task.modalities)}, each at most once.",
        )
    return tuple(name for name in order if name is not None)

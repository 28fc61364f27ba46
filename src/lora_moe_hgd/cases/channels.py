"""Cases whose sequences are identified by number: numbered files, and volumes of one file with four axes.

Two naming conventions identify sequences by number. Both have images in folders such as `imagesTr`, and label maps in
folders such as `labelsTr`. The Medical Segmentation Decathlon stores the sequences along the fourth axis of one file.
nnU-Net stores them in the files `<case>_0000`, `<case>_0001` and so on. There is no standard order of the sequences,
so the command line or `dataset.json` gives the order. For files named `BRATS_*`, the default is the order that the
Decathlon published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..files import MAX_LONG_JSON_BYTES, read_json
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..model.findings import BadInputError
from ..model.task import BRAIN_TUMOUR, Task
from ..sequence_names import parse_sequences, role_in, role_of, sequence_hint
from .case_files import EXTENSIONS, CaseFiles, safe_name, stem_of

DECATHLON = "Medical Segmentation Decathlon"
DECATHLON_NAMES = re.compile(r"brats_\d+", re.IGNORECASE)
DECATHLON_ORDER = ("flair", "t1", "t1c", "t2")
NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def order_option(task: Task) -> str:
    """Text for error messages: `--channel-order` with all sequences, which the user puts into the right order."""
    return f"--channel-order {','.join(task.modalities)} (put these names into the order of your data)"


def parse_channel_order(text: str, task: Task = BRAIN_TUMOUR) -> tuple[str, ...]:
    """Split a list of sequence names, separated by commas.

    Raises:
        ValueError: If a name is unknown or appears twice, or if the names are not separated by commas.

    Example:
        >>> parse_channel_order("flair,t1,t1c,t2")
        ('flair', 't1', 't1c', 't2')
    """
    names = parse_sequences(text, task.modalities)
    unknown = [name for name in names if name not in task.modalities]
    if unknown or len(set(names)) != len(names):
        raise ValueError(
            f"A channel order lists {', '.join(task.modalities)}, each at most once and separated by commas. "
            f"Got: {text}.{sequence_hint(unknown, task.modalities)}"
        )
    return names


def channel_of(path: Path) -> tuple[str, int | None] | None:
    """Return the case name and the sequence number of a numbered file, or `None` if the file is not numbered.

    A 4-D file of the Decathlon contains all sequences, so its number is `None`, but its case name is returned. In a
    name such as `t1_2019.nii.gz`, 2019 is not the number of a sequence, so the file is not a numbered file.
    """
    stem = stem_of(path)
    if stem is None:
        return None
    match = NUMBERED.fullmatch(stem)
    if match and role_of(match["case"]) not in MODALITIES:
        return match["case"], int(match["channel"])
    return (stem, None) if DECATHLON_NAMES.fullmatch(stem) else None


def channel_cases(folder: Path) -> dict[str, Path]:
    """Find the cases with numbered sequences in `folder`.

    Returns:
        Map from the name of each case to the path from which `channel_case` builds the case.
    """
    cases = {}
    for file in sorted(folder.glob("*")):
        found = channel_of(file)
        if found is not None:
            case, number = found
            cases[case] = file if number is None else folder / case
    return cases


def channel_case(path: Path, channel_order: Sequence[str] | None, task: Task = BRAIN_TUMOUR) -> CaseFiles:
    """Build the case at `path`: a file with four axes, or the shared start of the paths of numbered files.

    The shared start of `imagesTr/case_7_0000.nii.gz` and `imagesTr/case_7_0001.nii.gz` is `imagesTr/case_7`.

    Raises:
        BadInputError: If there is no case at `path`, or if the order of the sequences is unknown.
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
                    f"Two files have the number {number:04d}: {numbered[number].name}, {file.name}. Remove one file.",
                )
            numbered[number] = file
    if not numbered:
        raise BadInputError(path, "There is no such file or folder. Check the path.")
    order = channel_order or _order_of_dataset(path.parent, task)
    if order is None:
        raise BadInputError(
            path,
            "The numbers in these file names do not say which sequence each file contains: "
            f"{', '.join(file.name for file in numbered.values())}. Give the order with {order_option(task)}, or in "
            "dataset.json under channel_names.",
        )
    if max(numbered) >= len(order):
        raise BadInputError(
            path,
            f"A file has the channel number {max(numbered):04d}, but the channel order has {len(order)} "
            f"sequences: {', '.join(order)}. Name a sequence for each number: {order_option(task)}.",
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
        raise BadInputError(
            path, f"This file is not an image. Give the folder of a case, or an image file ({', '.join(EXTENSIONS)})."
        )
    same = [end for end in EXTENSIONS if path.with_name(f"{stem}{end}").is_file()]
    if len(same) > 1:
        names = ", ".join(f"{stem}{end}" for end in same)
        raise BadInputError(path, f"Several files have the name of this case: {names}. Keep only one of these files.")
    decathlon = task.is_brain_tumour and bool(DECATHLON_NAMES.fullmatch(stem))
    order = channel_order or _order_of_dataset(path.parent, task) or (DECATHLON_ORDER if decathlon else None)
    if order is None:
        raise BadInputError(
            path,
            "It is unknown which sequences this file contains. For a 3-D file, give the folder of the case. For a "
            f"4-D file, give the sequences along the fourth axis with {order_option(task)}.",
            names_unclear=True,
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
        BadInputError: If `dataset.json` cannot be read, or if a name in the file is not a sequence.
    """
    path = next(
        (place / "dataset.json" for place in (folder, folder.parent) if (place / "dataset.json").is_file()), None
    )
    if path is None:
        return None
    try:
        # The first version of nnU-Net and the Decathlon list all cases in this file.
        content = read_json(
            path,
            remedy=f"Correct this file, or give {order_option(task)}.",
            max_bytes=MAX_LONG_JSON_BYTES,
        )
        names = content.get("channel_names") or content["modality"]
        words = [str(names[str(number)]) for number in range(len(names))]
    except BadInputError:
        raise
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise BadInputError(
            path,
            f"This file does not give each number, counted from 0, the name of a sequence under channel_names or "
            f"modality ({type(error).__name__}). Correct the file, or add the option {order_option(task)}.",
        ) from error
    order = [role_in(task, word) for word in words]
    if not set(order) <= set(task.modalities) or len(set(order)) != len(order):
        raise BadInputError(
            path,
            f"This file has an unknown channel, or the same channel twice: {', '.join(words)}. The channels must be "
            f"{', '.join(task.modalities)}, each at most once. Correct the file, or add the option "
            f"{order_option(task)}.",
        )
    return tuple(name for name in order if name is not None)

"""Cases that are told apart by file name alone, with sequences told apart by number.

Two families keep a cohort so, in folders such as `imagesTr` and `labelsTr`: the Medical Segmentation Decathlon, whose
files have the sequences along a fourth axis, and nnU-Net, with files `<case>_0000`, `<case>_0001` and so on. No order
of the sequences is standard: it comes from the command line, from `dataset.json`, or, for `BRATS_*` of the Decathlon,
from its publication.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..model.configuration_lora_moe_hgd import MODALITIES
from .case_files import EXTENSIONS, CaseFiles, stem_of
from .findings import BadInputError, got

DECATHLON = "Medical Segmentation Decathlon"
DECATHLON_NAMES = re.compile(r"brats_\d+", re.IGNORECASE)
DECATHLON_ORDER = ("flair", "t1", "t1c", "t2")
NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
# What `dataset.json` of either family calls the sequences, without signs and in lower case.
SPELLINGS = {
    "t1": ("t1", "t1w", "t1n"),
    "t1c": ("t1c", "t1ce", "t1gd", "t1wce", "t1wgd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "t2flair"),
}


def parse_channel_order(text: str) -> tuple[str, ...]:
    """Sequence names of `text`, which separates them by commas.

    Raises:
        ValueError: If a name is unknown or comes twice.

    Example:
        >>> parse_channel_order("flair,t1,t1c,t2")
        ('flair', 't1', 't1c', 't2')
    """
    names = tuple(name.strip().lower() for name in text.split(","))
    if not set(names) <= set(MODALITIES) or len(set(names)) != len(names):
        raise ValueError(f"A channel order takes each of {', '.join(MODALITIES)} at most once, got {text}.")
    return names


def channel_cases(folder: Path) -> dict[str, Path]:
    """What `channel_case` takes, for each case in `folder`, by its name; empty where files are of other families."""
    cases = {}
    for file in sorted(folder.glob("*")):
        stem = stem_of(file)
        if stem is None:
            continue
        match = NUMBERED.fullmatch(stem)
        if match:
            cases[match["case"]] = folder / match["case"]
        elif DECATHLON_NAMES.fullmatch(stem):
            cases[stem] = file
    return cases


def channel_case(path: Path, channel_order: Sequence[str] | None) -> CaseFiles:
    """The case at `path`: a file with four axes, or the common start of numbered files.

    Raises:
        BadInputError: If there is no such case, or no order is known.
    """
    if path.is_file():
        return _stacked(path, channel_order)
    numbered: dict[int, Path] = {}
    for file in sorted(path.parent.glob("*")) if path.parent.is_dir() else ():
        match = NUMBERED.fullmatch(stem_of(file) or "")
        if match and match["case"] == path.name:
            if int(match["channel"]) in numbered:
                names = f"{numbered[int(match['channel'])].name}, {file.name}"
                raise BadInputError(path.parent, got(f"must hold one file for channel {match['channel']}", names))
            numbered[int(match["channel"])] = file
    if not numbered:
        raise BadInputError(path, got("must be the folder of a case", "nothing there"))
    order = channel_order or _order_of_dataset(path.parent)
    if order is None:
        raise BadInputError(
            path,
            got(
                "must have its sequences named in the order of their numbers: --channel-order "
                "t1,t1c,t2,flair or `channel_names` in dataset.json",
                ", ".join(file.name for file in numbered.values()),
            ),
        )
    if max(numbered) >= len(order):
        raise BadInputError(
            path, got(f"must have at most {len(order)} channels: {', '.join(order)}", max(numbered) + 1)
        )
    images = {
        name: numbered[order.index(name)] for name in MODALITIES if name in order and order.index(name) in numbered
    }
    return CaseFiles(path.name, path.parent, "nnU-Net", (), images, _labels_of(path, path.name))


def _stacked(path: Path, channel_order: Sequence[str] | None) -> CaseFiles:
    stem = stem_of(path)
    if stem is None:
        raise BadInputError(path, got(f"must be a case's folder or a file {', '.join(EXTENSIONS)}", "another file"))
    decathlon = bool(DECATHLON_NAMES.fullmatch(stem))
    order = channel_order or _order_of_dataset(path.parent) or (DECATHLON_ORDER if decathlon else None)
    if order is None:
        raise BadInputError(
            path,
            got(
                "must be the folder of a case; of a file with four axes name the sequences, --channel-order "
                "flair,t1,t1c,t2, and a single sequence by its name, as in --t1c FILE",
                "a file",
            ),
        )
    return CaseFiles(
        case_id=stem,
        folder=path.parent,
        layout=DECATHLON if decathlon else "one file with four axes",
        label_schemes=("msd",) if decathlon else (),
        images={name: path for name in MODALITIES if name in order},
        segmentation=_labels_of(path, stem),
        channels={name: number for number, name in enumerate(order)},
    )


def _labels_of(path: Path, case: str) -> Path | None:
    """`labelsTr/<case>` for what lies in `imagesTr`."""
    folder = path.parent.parent / path.parent.resolve().name.replace("images", "labels")
    if folder.name == path.parent.name:
        return None
    return next((folder / f"{case}{end}" for end in EXTENSIONS if (folder / f"{case}{end}").is_file()), None)


def _order_of_dataset(folder: Path) -> tuple[str, ...] | None:
    """Order that `dataset.json` beside `folder`, or in it, names; `None` if there is none.

    Raises:
        BadInputError: If it cannot be read, or names something else than the sequences.
    """
    path = next(
        (place / "dataset.json" for place in (folder, folder.parent) if (place / "dataset.json").is_file()), None
    )
    if path is None:
        return None
    rule = f"must name the sequences ({', '.join(MODALITIES)}) by number under `channel_names` or `modality`"
    try:
        content = json.loads(path.read_text())
        names = content.get("channel_names") or content["modality"]
        words = [re.sub("[^a-z0-9]", "", str(names[str(number)]).lower()) for number in range(len(names))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(path, got(rule, type(error).__name__)) from error
    order = [next((name for name, known in SPELLINGS.items() if word in known), word) for word in words]
    if not set(order) <= set(MODALITIES) or len(set(order)) != len(order):
        raise BadInputError(path, got(rule, ", ".join(words)))
    return tuple(order)

"""Warning about a checkpoint whose licence differs from that of the checkpoint from which it was made."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from ..files import read_json
from ..loading import adapter_base, is_adapter, local_folder, shipped_name
from ..pretrained import LICENCES
from .checksums import CARD


def licence_warning(folder: Path, license: str) -> str | None:
    """Warn if a checkpoint is pushed with another licence than that of the weights from which it was made.

    Args:
        folder: Folder of the checkpoint.
        license: Licence that the user gives, named as on the Hub.

    Returns:
        The warning. `None` if the licences are equal, or if no licence of the weights is recorded on this machine.
    """
    known = _known_licence(folder)
    if known is None or known[1] == license:
        return None
    name, own = known
    return (
        f"The licence of {name} is {own}, but --license is {license}. Weights that are made from {name} must comply "
        f"with {own}. If in doubt, give --license {own}."
    )


def _known_licence(folder: Path) -> tuple[str, str] | None:
    """Name and licence of a checkpoint, or of a checkpoint from which it was made; `None` if no licence is known.

    If the licence of a checkpoint is not recorded, the checkpoint from which it was made is looked up, and so on.

    `LICENCES` has the licences of shipped checkpoints. The card of a pulled checkpoint names its licence.
    """
    if shipped := shipped_name(folder):
        return shipped, LICENCES[shipped]
    card = folder / CARD
    if card.is_file() and (own := ModelCard.load(card, ignore_metadata_errors=True).data.license):
        return folder.name, own
    source = adapter_base(folder) if is_adapter(folder) else _base_of_run(folder.parent)
    try:
        found = source and local_folder(source)
    except ValueError:
        # The base is on another machine.
        return None
    return _known_licence(found) if found else None


def _base_of_run(run: Path) -> str | None:
    """Checkpoint from which a run started. `None` if the folder is not a run, or if the run started from scratch."""
    record = run / "run.json"
    return read_json(record)["config"]["base"] if record.is_file() else None

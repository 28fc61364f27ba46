"""Weights that are installed with the package: networks and adapters."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import did_you_mean

# Checkpoint that is used if none is named.
DEFAULT_CHECKPOINT = "glioma"
# Licence of each shipped checkpoint, named as on the Hub.
LICENCES = {"glioma": "cc-by-4.0", "tiny": "mit"}

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Names of the shipped networks and adapters, in alphabetical order.

    The names are part of the code and are not read from the folder, because the folder may also contain checkpoints of
    the user. The wheel contains exactly the checkpoints in this list (`package-data` in `pyproject.toml`).
    """
    return ["glioma", "tiny"]


def hub_id(name: str) -> str | None:
    """Hub id of a shipped checkpoint from the environment variable `LORA_MOE_HGD_HUB_IDS`; `None` if not listed there.

    Raises:
        ValueError: If the variable is not of the form `tiny=OWNER/NAME,glioma=OWNER/NAME`.

    Example:
        >>> os.environ["LORA_MOE_HGD_HUB_IDS"] = "tiny=me/lora-moe-hgd-tiny"
        >>> hub_id("tiny"), hub_id("glioma")
        ('me/lora-moe-hgd-tiny', None)
        >>> del os.environ["LORA_MOE_HGD_HUB_IDS"]
    """
    stated = os.environ.get("LORA_MOE_HGD_HUB_IDS", "")
    pairs = [pair.partition("=") for pair in stated.split(",") if pair]
    if any("/" not in repo for _, _, repo in pairs):
        raise ValueError(f"LORA_MOE_HGD_HUB_IDS must look like tiny=OWNER/NAME,glioma=OWNER/NAME, got {stated}.")
    return {shipped.strip(): repo.strip() for shipped, _, repo in pairs}.get(name)


def pretrained_path(name: str) -> Path:
    """Return the folder of a shipped network or adapter, which `from_pretrained` can load.

    Raises:
        ValueError: If no shipped checkpoint has this name. The error message lists the shipped checkpoints.
    """
    if name not in shipped_names():
        raise ValueError(
            f"No shipped checkpoint is named '{name}'.{did_you_mean(name, shipped_names())} The names are: "
            f"{', '.join(shipped_names())}."
        )
    return _FOLDER / name

"""The weights that are installed with the package: networks, and adapters over them."""

from __future__ import annotations

from pathlib import Path

# What is used wherever no checkpoint is named.
DEFAULT_CHECKPOINT = "glioma"

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Names of the shipped networks and adapters, in alphabetical order."""
    kinds = ("config.json", "adapter_config.json")
    return sorted(path.parent.name for kind in kinds for path in _FOLDER.glob(f"*/{kind}"))


def pretrained_path(name: str) -> Path:
    """Return the folder of a shipped network, in `from_pretrained` form, or of a shipped adapter.

    Raises:
        ValueError: If nothing of that name is shipped; the message lists what is.
    """
    if name not in shipped_names():
        raise ValueError(f"No shipped checkpoint is named '{name}'; there is: {', '.join(shipped_names()) or 'none'}.")
    return _FOLDER / name

"""Weights that are installed with the package: networks and adapters."""

from __future__ import annotations

from pathlib import Path

# Checkpoint that is used if none is named.
DEFAULT_CHECKPOINT = "glioma"

_FOLDER = Path(__file__).parent


def shipped_names() -> list[str]:
    """Names of the shipped networks and adapters, in alphabetical order."""
    kinds = ("config.json", "adapter_config.json")
    return sorted(path.parent.name for kind in kinds for path in _FOLDER.glob(f"*/{kind}"))


def pretrained_path(name: str) -> Path:
    """Return the folder of a shipped network or adapter, in `from_pretrained` form.

    Raises:
        ValueError: If no shipped checkpoint has this name. The message lists the shipped names.
    """
    if name not in shipped_names():
        raise ValueError(
            f"No shipped checkpoint is named '{name}'. The names are: {', '.join(shipped_names()) or 'none'}."
        )
    return _FOLDER / name

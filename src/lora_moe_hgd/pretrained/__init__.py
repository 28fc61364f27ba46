"""The weights that are installed with the package."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def pretrained_path(name: str = "tiny") -> Path:
    """Return the folder of the shipped checkpoint `name`, in `from_pretrained` form.

    Raises:
        ValueError: If no checkpoint of that name is shipped; the message lists those that are.
    """
    shipped = sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))
    if name not in shipped:
        raise ValueError(f"No shipped checkpoint is named '{name}'; there is: {', '.join(shipped) or 'none'}.")
    return _FOLDER / name

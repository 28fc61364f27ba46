"""`lora-moe-hgd info`: versions, device, shipped checkpoints with their tasks, and installed extras."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement

from .arguments import CommandParser
from .files import install_command
from .loading import checkpoint_folder, checkpoint_task, is_adapter, usable_device
from .model.task import Task, shown
from .pretrained import DEFAULT_CHECKPOINT, shipped_names

PACKAGE = "lora-moe-hgd"
# Extras for the development of this package, which users do not need.
FOR_DEVELOPERS = {"dev", "docs", "test"}


def describe() -> dict[str, Any]:
    """Return everything that the command prints, as a dictionary that can be written as JSON."""
    tasks = {name: checkpoint_task(checkpoint_folder(name)) for name in shipped_names()}
    return {
        "version": metadata.version(PACKAGE),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "nibabel")}
        | {"python": platform.python_version()},
        "device": usable_device(None),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "default_checkpoint": DEFAULT_CHECKPOINT,
        "checkpoints": {
            name: {"kind": "adapter" if is_adapter(checkpoint_folder(name)) else "network", "task": task.name}
            for name, task in tasks.items()
        },
        "tasks": {task.name: _described(task) for task in tasks.values()},
        "extras": extras_found(),
    }


def _described(task: Task) -> dict[str, Any]:
    return {
        "sequences": list(task.modalities),
        "regions": list(task.regions),
        "label_schemes": {name: scheme.meanings for name, scheme in task.schemes.items()},
    }


def extras_found() -> dict[str, bool]:
    """Map the name of each extra to whether all of its packages are installed."""
    about = metadata.metadata(PACKAGE)
    requirements = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    names = sorted(set(about.get_all("Provides-Extra") or ()) - FOR_DEVELOPERS)
    return {
        extra: all(
            _is_installed(requirement)
            for requirement in requirements
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        )
        for extra in names
    }


def _is_installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{PACKAGE} {found['version']}, " + ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    ]
    lines.append(f"device: {found['device']}" + "".join(f", {name}" for name in found["gpus"]))
    for name, about in found["checkpoints"].items():
        default = " (default)" if name == found["default_checkpoint"] else ""
        lines.append(f"checkpoint {name}: {about['kind']} for {about['task']}{default}")
    for name, task in found["tasks"].items():
        lines.append(f"task {name}: sequences {', '.join(task['sequences'])}; regions {_joined(task['regions'])}")
        for scheme, labels in task["label_schemes"].items():
            lines.append(f"  labels {scheme}: " + ", ".join(f"{label} {word}" for label, word in labels.items()))
    for extra, there in found["extras"].items():
        lines.append(f"extra {extra}: " + ("installed" if there else f"missing; {install_command(extra)}"))
    return lines


def _joined(regions: Sequence[str]) -> str:
    return ", ".join(map(shown, regions))


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Show versions, device, shipped checkpoints, label schemes and extras.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print versions, device, checkpoints, label schemes and extras."""
    args = build_parser().parse_args(argv)
    found = describe()
    print(json.dumps(found, indent=2) if args.json else "\n".join(_lines(found)))

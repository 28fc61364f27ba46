"""Reading the options of a run: one YAML file, and command-line options that overrule it.

A key that does not exist is an error that names the nearest one.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .options import RunConfig


def read_config(argv: Sequence[str]) -> RunConfig:
    """Read `--config FILE`, `--continue`, and options such as `--epochs 3` or `--data.num-workers 0`.

    Raises:
        ValueError: If a key is unknown (the message names the nearest one), or a value has the wrong type or breaks a
            rule.
    """
    parser = argparse.ArgumentParser(
        description="Train on a folder of cases or on phantoms.",
        epilog="Options of the configuration: "
        + ", ".join(f"--{name.replace('_', '-')}" for name in _leaves(RunConfig)),
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="continue_run",
        help="continue the run in the output folder although its options have changed, and print what changed",
    )
    args, rest = parser.parse_known_args(argv)
    if not args.config.is_file():
        raise ValueError(f"There is no configuration file {args.config}.")
    try:
        values = yaml.safe_load(args.config.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{args.config} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{args.config} must hold keys and values, but holds a {type(values).__name__}.")
    for path, text in _overrides(rest):
        part = values
        for name in path[:-1]:
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise ValueError(f"{name} in {args.config} must hold keys and values, but is {part!r}.")
        part[path[-1]] = yaml.safe_load(text)
    config = _build(RunConfig, values, where=str(args.config))
    config.continue_run = args.continue_run
    return config


def _overrides(rest: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Path and text of each option, written as `--name value` or `--name=value`."""
    leaves = _leaves(RunConfig)
    found = []
    words = list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"'{word}' is not an option. Options begin with two dashes, such as --epochs.")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ValueError(f"The option --{name} needs a value.")
            text = words.pop(0)
        # `--data FOLDER` is short for the option that most commands need.
        key = "data.root" if name == "data" else name.replace("-", "_")
        matches = [path for path in leaves.values() if ".".join(path) == key or path[-1] == key]
        if len(matches) != 1:
            known = list(leaves) + [path[-1] for path in leaves.values()]
            raise ValueError(f"Unknown option --{name}.{_nearest(key, known)}")
        found.append((matches[0], text))
    return found


def _leaves(part: type, prefix: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Path of each option below `part`, by its dotted name."""
    leaves: dict[str, tuple[str, ...]] = {}
    for name, kind in _options(part).items():
        if dataclasses.is_dataclass(kind):
            leaves |= _leaves(typing.cast(type, kind), (*prefix, name))
        else:
            leaves[".".join((*prefix, name))] = (*prefix, name)
    return leaves


def _options(part: type) -> dict[str, Any]:
    """Type of each option of the dataclass `part`, by name."""
    kinds = typing.get_type_hints(part)
    return {item.name: kinds[item.name] for item in dataclasses.fields(part) if item.init}


def _build(part: type, values: Any, *, where: str) -> Any:
    """Build the dataclass `part` from `values`; a typo must not leave a default in place."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold keys and values, but is {values!r}.")
    kinds = _options(part)
    built = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise ValueError(f"Unknown key '{key}' in {where}.{_nearest(name, list(kinds))}")
        if dataclasses.is_dataclass(kinds[name]):
            built[name] = _build(typing.cast(type, kinds[name]), value, where=f"{name} of {where}")
        else:
            built[name] = _typed(value, kinds[name], where=f"{name} of {where}")
    return part(**built)


def _typed(value: Any, kind: Any, *, where: str) -> Any:
    """Convert `value` to `kind`, or raise. Integers pass as floats and lists as tuples."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        item_kind = typing.get_args(kind)[0]
        return tuple(_typed(item, item_kind, where=where) for item in items)
    if typing.get_origin(kind) is dict:
        kind = dict
    # YAML reads `no` as false, but `no` is also a precision.
    if kind is str and value is False:
        return "no"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        hint = " Write numbers as 2.0e-4: YAML reads 2e-4 as text." if kind is float and isinstance(value, str) else ""
        raise ValueError(f"{where} must be of type {kind.__name__}, but is {value!r}.{hint}")
    return value


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(sorted(set(known)))}."

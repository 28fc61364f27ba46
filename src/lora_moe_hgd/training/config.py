"""Read the options of a run from one YAML file and from command-line options, which override the file.

`jsonargparse` takes name, type, default and help of each option from the dataclasses in `options.py`.
An unknown key raises an error that names the most similar known key.
"""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ..files import did_you_mean
from .options import RunConfig

# How jsonargparse reports a value of the wrong type.
WRONG_TYPE = re.compile(r'Parser key "(?P<key>[^"]+)".*(?:Got|Given) value: (?P<value>.*)', re.DOTALL)


def read_config(argv: Sequence[str]) -> RunConfig:
    """Read `--config FILE`, `--continue`, and options such as `--epochs 3` or `--data.num-workers 0`.

    Raises:
        ValueError: If a key is unknown, or if a value has the wrong type or breaks a rule. For an unknown key, the
            message names the most similar known key.
    """
    parser = build_parser()
    options, names = _options(parser), spellings(parser)
    words = [_in_full(word, names) for word in argv]
    try:
        file = Namespace()
        for option, value in _read_file(Path(parser.parse_args(words).config), options):
            file[option] = value
        values = vars(parser.instantiate(parser.parse_args(words, namespace=file)))
    except argparse.ArgumentError as error:
        raise ValueError(_in_one_line(str(error))) from error
    del values["config"]
    continue_run = values.pop("continue_run")
    config = RunConfig(**values)
    config.continue_run = continue_run
    return config


def build_parser() -> ArgumentParser:
    """Build the parser of the options. The options have dotted names, such as `--data.num_workers`."""
    parser = ArgumentParser(
        usage="%(prog)s --config FILE [--continue] [--OPTION VALUE ...]",
        description="Train on a folder of cases or on phantoms. Options on the command line override the YAML file. "
        "The last part of an option's name is enough, and - may replace _: `--num-workers 0` sets `data.num_workers`. "
        "`--data FOLDER` sets `data.root`.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_class_arguments(RunConfig)
    parser.add_argument("--config", metavar="FILE", type=str, required=True, help="YAML file of the run")
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="continue_run",
        help="continue the run in the output folder although options have changed, and print the changes",
    )
    # Hide the options of jsonargparse that read one part from a separate file, such as `--sample FILE`.
    parts = {option.partition(".")[0] for option in _options(parser) if "." in option}
    for action in parser._actions:
        if action.dest in parts:
            action.help = argparse.SUPPRESS
    return parser


def spellings(parser: ArgumentParser) -> dict[str, str]:
    """Map each name that users may write to the dotted name of an option: `num_workers` to `data.num_workers`."""
    options = _options(parser)
    names = {option.rpartition(".")[2]: option for option in options}
    return names | {name: name for name in (*options, "config", "continue", "help")} | {"data": "data.root"}


def _options(parser: ArgumentParser) -> list[str]:
    """Dotted name of each option of `RunConfig`."""
    return [name for name in parser.get_defaults().keys() if name not in ("config", "continue_run")]  # noqa: SIM118


def _in_full(word: str, names: Mapping[str, str]) -> str:
    """Replace the short name of an option: `--num-workers=0` becomes `--data.num_workers=0`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    key = name[2:].replace("-", "_")
    if key not in names:
        raise ValueError(f"Unknown option {name}.{_nearest(key, names)}")
    return f"--{names[key]}{equals}{value}"


def _read_file(path: Path, options: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each option in a YAML file."""
    if not path.is_file():
        raise ValueError(f"The configuration file {path} does not exist. Check the path.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    yield from _flatten(values or {}, options, where=str(path))


def _flatten(values: Any, options: Sequence[str], *, where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must contain keys and values, but is {values!r}.")
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        if name in options:
            # YAML reads `no` as false, but `no` is also a precision.
            yield name, "no" if name == "optim.precision" and value is False else value
        elif any(option.startswith(f"{name}.") for option in options):
            yield from _flatten(value, options, where=f"{key} of {where}", prefix=f"{name}.")
        else:
            raise ValueError(f"Unknown key '{key}' in {where}.{_nearest(name, options)}")


def _in_one_line(message: str) -> str:
    """Shorten an error of jsonargparse to one line, without its list of the types that it tried."""
    wrong = WRONG_TYPE.match(message)
    if wrong is None:
        return " ".join(message.split())
    kind: Any = RunConfig
    for name in wrong["key"].split("."):
        kind = typing.get_type_hints(kind)[name]
    text = inspect.formatannotation(kind).replace("typing.", "")
    return f"`{wrong['key']}` must be of type {text}, but is {wrong['value']}."


def _nearest(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or f" Known: {', '.join(sorted(set(known)))}."

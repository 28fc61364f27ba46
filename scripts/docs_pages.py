"""Generate pages of the documentation from the program, when `mkdocs` builds the site."""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
import sys
from typing import Any, get_args
from unittest import mock

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import lora_moe_hgd_cli
from lora_moe_hgd.cases.naming import LAYOUTS, Layout
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.sequence_names import WORDS
from lora_moe_hgd.training.config import build_parser, spellings

COMMANDS = """# Commands

Each command prints its section of this page with `--help`. `lora-moe-hgd --version` prints the version.

{helps}
"""

SCHEMES = """# Label schemes

A label scheme says which part of a tumour each number of a label map means. For `segment`, `--label-scheme` chooses
the scheme of the written label maps. For other commands, `--label-scheme` names the scheme of the ground truth, if the
file names do not show it.

| scheme | labels |
|---|---|
{rows}
"""

TRAINING = """# Training options

`lora-moe-hgd train` and `train.py` take these options, and the YAML file of a run takes them as keys: the option
`--num-workers 0` is the key `num_workers: 0` below `data:`. An option on the command line overrides the key in the
file. `null` means that an option is not given. An option that has no effect is an error.

{sections}

## On the command line only

| option | meaning |
|---|---|
{others}
"""

HEAD = "| option | type | default | meaning |\n|---|---|---|---|"
SECTIONS = {
    "": "Run",
    "data": "Data: keys below `data:`",
    "sample": "Training samples: keys below `sample:`",
    "optim": "Optimization: keys below `optim:`",
    "validation": "Validation: keys below `validation:`",
}

KINDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    tuple[int, int, int]: "three whole numbers",
    tuple[str, ...]: "list of text",
    dict[str, Any]: "keys and values",
}

FILE_NAMES = """# File names

A folder is a case if the names of its images fit one of these conventions, or if the words of the names are known.
[Segment cases](../use.md#file-names) explains the rules.

## Naming conventions of public data sets

`*` stands for any text, which is the same in all files of a case. Upper and lower case do not matter. If a case has
several of the names in a cell, the first name is used. The key is the value of the option `convert --layout`. If a
convention has two label schemes, the labels of the ground truth decide.

| key | data set | T1 | T1c | T2 | FLAIR | ground truth | label scheme |
|---|---|---|---|---|---|---|---|
{conventions}

Two further keys are for sequences that have numbers instead of names. The order of the sequences is read from
`dataset.json`, or given with `--channel-order`.

- `nnunet`: files `CASE_0000`, `CASE_0001` and so on in `imagesTr`, and the label map `CASE` in `labelsTr`.
- `decathlon`: files `BRATS_001` with four axes in `imagesTr`, and label maps of the same names in `labelsTr`, in the
  scheme `msd`.

## Words

Other file names are split into words. All words of a name decide together: a word for T1 and a word for contrast mean
T1c, and words for T2 and FLAIR mean FLAIR. Words that are not in this table are ignored.

| kind | words |
|---|---|
{words}
"""


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """Add the generated pages. mkdocs calls this function."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/training.md": training_page(),
        "reference/file_names.md": file_names_page(),
        "reference/label_schemes.md": schemes_page(),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **kwargs: Any) -> str:
    """Replace links to files outside the site by the names of the files. mkdocs calls this function."""

    def kept_or_named(link: re.Match[str]) -> str:
        text, path = link.groups()
        if files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))):
            return link.group()
        named = path.replace("../", "")
        return f"`{named}`" if text == named else f"{text} (`{named}` in the repository)"

    return re.sub(r"\[([^\]]*)\]\((\.\./[^)#]+)\)", kept_or_named, markdown)


def commands_page() -> str:
    """Page with the help text of every command."""
    return COMMANDS.format(
        helps="\n\n".join(f"## {name}\n\n```text\n{help_of(name)}```" for name in lora_moe_hgd_cli.COMMANDS)
    )


def help_of(command: str) -> str:
    """Return the text that `lora-moe-hgd COMMAND --help` prints."""
    printed = io.StringIO()
    words = ["lora-moe-hgd", command, "--help"]
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict("os.environ", {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        lora_moe_hgd_cli.main()
    return printed.getvalue()


def schemes_page() -> str:
    """Page with one row for each label scheme."""
    rows = []
    for scheme in LABEL_SCHEMES.values():
        name, _, labels = str(scheme).partition(" ")
        rows.append(f"| `{name}` | {labels.strip('()')} |")
    return SCHEMES.format(rows="\n".join(rows))


def training_page() -> str:
    """Page with a table of the training options for each part of the configuration."""
    parser = build_parser()
    actions = {action.dest: action for action in parser._actions}
    alone = {"config": "config", "continue": "continue_run"}
    options = [name for name in dict.fromkeys(spellings(parser).values()) if name not in (*alone, "help")]
    sections = []
    for part, title in SECTIONS.items():
        rows = [_option_row(actions[name]) for name in options if name.rpartition(".")[0] == part]
        sections.append(
            "\n".join([f"## {title}\n", "| option | type | default | meaning |", "|---|---|---|---|", *rows])
        )
    others = [f"| `--{name}` | {_cell(actions[dest].help)} |" for name, dest in alone.items()]
    return TRAINING.format(sections="\n\n".join(sections), others="\n".join(others))


def _option_row(action: Any) -> str:
    name = action.dest.rpartition(".")[2].replace("_", "-")
    kind = next((inner for inner in get_args(action._typehint) if type(None) in get_args(action._typehint)), None)
    default = action.default if isinstance(action.default, str) else json.dumps(action.default)
    return f"| `--{name}` | {KINDS[kind or action._typehint]} | `{default}` | {_cell(action.help)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def file_names_page() -> str:
    """Page with the naming conventions and the known words."""
    return FILE_NAMES.format(
        conventions="\n".join(map(_convention_row, LAYOUTS)),
        words="\n".join(f"| {kind} | {', '.join(words.split())} |" for kind, words in WORDS.items()),
    )


def _convention_row(layout: Layout) -> str:
    names = [", ".join(f"`{pattern}`" for pattern in layout.patterns[role]) for role in (*MODALITIES, "seg")]
    schemes = ", ".join(f"`{name}`" for name in layout.label_schemes)
    return f"| {' | '.join([f'`{layout.key}`', layout.name, *names, schemes])} |"

"""Pages of the documentation that are made from the program itself, when `mkdocs` builds the site."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

import lora_moe_hgd_cli
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES

COMMANDS = """# Commands

Each command prints this with `--help`. `lora-moe-hgd --version` prints the version.

{helps}
"""

SCHEMES = """# Label schemes

Which number of a label map means which part of a tumour. `--label-scheme` chooses the scheme that `segment` writes.
For other commands it names the scheme of a ground truth whose file names do not tell it.

| scheme | labels |
|---|---|
{rows}
"""


def on_files(files: Files, config: Any, **kwargs: Any) -> Files:
    """Add the pages; mkdocs calls it."""
    for path, text in (("reference/commands.md", commands_page()), ("reference/label_schemes.md", schemes_page())):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Name the files of the repository that are no pages, instead of linking to them; mkdocs calls it."""
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)+([^)#]+)\)", name_file, markdown)


def name_file(link: re.Match[str]) -> str:
    """A link as the name of the file that it leads to."""
    text, path = link.groups()
    return f"`{path}`" if text == path else f"{text} (`{path}` in the repository)"


def commands_page() -> str:
    """The help of every command."""
    return COMMANDS.format(
        helps="\n\n".join(f"## {name}\n\n```text\n{help_of(name)}```" for name in lora_moe_hgd_cli.COMMANDS)
    )


def help_of(command: str) -> str:
    """What `lora-moe-hgd COMMAND --help` prints."""
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
    """A row for each label scheme."""
    rows = []
    for scheme in LABEL_SCHEMES.values():
        name, _, labels = str(scheme).partition(" ")
        rows.append(f"| `{name}` | {labels.strip('()')} |")
    return SCHEMES.format(rows="\n".join(rows))

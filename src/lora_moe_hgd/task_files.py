"""Reading the description of a task from its YAML file."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from .model.findings import BadInputError
from .model.task import Task, make_task

MAX_BYTES = 65536


class _StrictLoader(yaml.SafeLoader):
    """YAML without keys that come twice, of which the last would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key `{key}` comes twice")
        return super().construct_mapping(node, deep)


def read_task(path: str | Path) -> Task:
    """Read a task, see docs/tasks.md.

    Raises:
        BadInputError: If the file cannot be read or breaks a rule; the message names the file, the key and the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(path, "There is no such task file. Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise BadInputError(path, f"A task file has at most {MAX_BYTES} bytes. Is this another file?")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(path, f"This is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise BadInputError(path, "A task file holds keys and values. docs/tasks.md shows an example.")
    return make_task(content, where=path)

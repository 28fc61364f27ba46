"""Reader for the YAML file of a task."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from .model.findings import BadInputError
from .model.task import Task, make_task

MAX_BYTES = 65536


class _StrictLoader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys. PyYAML alone would silently use only the last value of a key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key `{key}` occurs twice")
        return super().construct_mapping(node, deep)


def read_task(path: str | Path) -> Task:
    """Read a task from its YAML file, see docs/tasks.md.

    Raises:
        BadInputError: If the file cannot be read or a value is invalid. The error message names file, key and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(path, "The task file does not exist. Check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise BadInputError(
            path, f"The file has more than {MAX_BYTES} bytes, which is too much. Check that this is a task file."
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(
            path, f"This is not valid YAML ({error}). Correct the file. docs/tasks.md shows an example."
        ) from error
    if not isinstance(content, dict):
        raise BadInputError(path, "A task file must contain keys and values. docs/tasks.md shows an example.")
    return make_task(content, where=path)

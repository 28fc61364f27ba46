"""Fingerprints (SHA-256) of the inputs from which a result, a score or a preprocessed case is computed.

A stored file is reused only if its fingerprint equals the fingerprint of the current inputs. Fingerprints cover the
complete content of the inputs. The fingerprint of a case of BraTS-Africa (9 MB) takes 10 ms on one core.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, Protocol

_PACKAGE_FOLDER = Path(__file__).parent
_PACKAGE = _PACKAGE_FOLDER.name


class FilesOfCase(Protocol):
    """Attributes of `cases.case_files.CaseFiles` that fingerprints cover, because they determine what is read."""

    @property
    def images(self) -> Mapping[str, Path]: ...

    @property
    def segmentation(self) -> Path | None: ...

    @property
    def channels(self) -> Mapping[str, int]: ...

    @property
    def label_schemes(self) -> Sequence[str]: ...


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of the parts and of the package's version, in hexadecimal.

    Args:
        parts: Values that can be written as JSON. The order of a mapping's keys does not matter.

    Example:
        >>> fingerprint("ab", "c") == fingerprint("a", "bc")
        False
    """
    content = json.dumps([version("lora-moe-hgd"), *parts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def case_fingerprint(case: FilesOfCase, *, labels: bool) -> str:
    """Fingerprint of the names and contents of a case's files, and of its `channels` and `label_schemes`.

    The path of the folder is not included, so a case keeps its fingerprint when it is moved.

    Args:
        case: Files of the case.
        labels: Whether to include the label map.

    Raises:
        OSError: If a file cannot be read.
    """
    roles = dict(case.images)
    if labels and case.segmentation is not None:
        roles["label map"] = case.segmentation
    # Several sequences may be in one 4-D file. Read each file only once.
    contents = {path: file_fingerprint(path) for path in set(roles.values())}
    files = [(role, path.name, contents[path]) for role, path in roles.items()]
    return fingerprint(files, dict(case.channels), list(case.label_schemes))


def images_fingerprint(case: FilesOfCase) -> str:
    """Fingerprint of only the images of a case. Names of the case and of its files do not change the fingerprint.

    Raises:
        OSError: If a file cannot be read.
    """
    contents = {path: file_fingerprint(path) for path in set(case.images.values())}
    return combined_fingerprint({name: contents[path] for name, path in case.images.items()})


def combined_fingerprint(contents: Mapping[str, str]) -> str:
    """SHA-256 of the file fingerprints of all sequences. Unlike in `fingerprint`, no package version is included."""
    return hashlib.sha256(json.dumps(dict(contents), sort_keys=True).encode()).hexdigest()


@cache
def code_fingerprint(*modules: str) -> str:
    """Fingerprint of the code of `modules` and of all modules of this package that `modules` import.

    Indirect imports are included. Comments, docstrings and formatting are ignored. The package's version cannot
    replace this fingerprint, because the code in a checkout can change while the version stays the same.

    Args:
        modules: Full names of the modules, such as the value of `__name__`.
    """
    return fingerprint(_code_of(modules))


def _code_of(modules: Sequence[str]) -> dict[str, str]:
    """Map the full name of each of `modules`, and of each module of this package that they import, to its code."""
    code: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in code:
            continue
        path = _source_of(module)
        assert path is not None, f"{module} is not a module of {_PACKAGE}"
        tree = ast.parse(path.read_bytes())
        waiting += _imports_of(tree, module if path.name == "__init__.py" else module.rpartition(".")[0])
        code[module] = ast.dump(_without_docstrings(tree))
    return code


def _source_of(module: str) -> Path | None:
    """Source file of a module of this package; `None` if there is no such module."""
    first, *rest = module.split(".")
    if first != _PACKAGE:
        return None
    path = _PACKAGE_FOLDER.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imports_of(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names of the modules of this package that `tree` imports. Relative imports begin at `package`."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            # In `from package import name`, the name may be a module.
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if _source_of(name) is not None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree

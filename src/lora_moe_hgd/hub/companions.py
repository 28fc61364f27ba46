"""Files with which others can try a pushed checkpoint: a notebook, a Space, and the wheel that these two install."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCard, hf_hub_url

from ..files import listed

PACKAGE = Path(__file__).parents[1]
NOTEBOOK = PACKAGE / "hub/segment_your_case.ipynb"
SPACE = PACKAGE / "app/space"
# The Hub shows buttons that open a notebook of this name in Colab and Kaggle.
NOTEBOOK_ON_HUB = "notebook.ipynb"
# Line in the notebook and in the program of the Space that names the checkpoint. A push replaces the name.
CHECKPOINT = 'CHECKPOINT = "glioma"'
WHEEL = b"Wheel-Version: 1.0\nGenerator: lora-moe-hgd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
REQUIREMENT = "lora-moe-hgd[app,scans]"
# Cell of the notebook on the Hub that installs the wheel. Only the wheel's requirements come from PyPI.
INSTALL = """from huggingface_hub import hf_hub_download

wheel = hf_hub_download({arguments})
%pip install --quiet "{{wheel}}[notebooks,scans]\""""


def write_wheel(folder: Path) -> Path:
    """Pack the installed package into a wheel, and return the path of the wheel.

    The package may be installed from a clone or from a wheel, and need not be on PyPI. Other files in the package's
    folder, such as checkpoints of the user, are left out. The same files always give the same wheel, byte for byte.

    Raises:
        ValueError: If the installation does not record its files, or if files of the package are missing.
    """
    installed = next(found for found in distributions(name="lora-moe-hgd") if found.read_text("METADATA"))
    information = f"lora_moe_hgd-{installed.version}.dist-info"
    paths = sorted({path for path in _package_files(installed) if path.suffix != ".pyc"})
    if not paths or installed.files is None:
        raise ValueError(
            f"The installation of lora-moe-hgd in {PACKAGE.parent} does not record its files (RECORD), so no wheel "
            "can be made from it. Install the package again with pip."
        )
    if missing := [path for path in paths if not path.is_file()]:
        names = listed(path.relative_to(PACKAGE.parent).as_posix() for path in missing)
        raise ValueError(
            f"Files of the package are missing in {PACKAGE.parent}: {names}. Restore them, or install the package "
            "again with pip."
        )
    files = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in paths}
    files[f"{information}/METADATA"] = str(installed.read_text("METADATA")).encode()
    files[f"{information}/entry_points.txt"] = str(installed.read_text("entry_points.txt")).encode()
    files[f"{information}/WHEEL"] = WHEEL
    for licence in installed.files:
        if "licenses" in licence.parts and licence.parts[0].endswith(".dist-info"):
            files[Path(information, *licence.parts[1:]).as_posix()] = Path(str(licence.locate())).read_bytes()
    record = [f"{name},sha256={_record_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{information}/RECORD"] = "\n".join([*record, f"{information}/RECORD,,", ""]).encode()
    path = folder / f"lora_moe_hgd-{installed.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            # The date is fixed, so that a second push of the same package changes nothing on the Hub.
            # Weights and compressed images are stored, because deflating takes seconds and saves next to nothing.
            method = zipfile.ZIP_STORED if name.endswith((".safetensors", ".gz")) else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content, method)
    return path


def _package_files(installed: Distribution) -> Iterator[Path]:
    """Files of the package, as listed by `pyproject.toml` in a clone, or by `RECORD` of an installed wheel."""
    setuptools = _build_rules()
    if setuptools is None:
        names = (PACKAGE.name, "lora_moe_hgd_cli.py")
        yield from (PACKAGE.parent / file for file in installed.files or () if file.parts[0] in names)
        return
    yield from (PACKAGE.parent / f"{module}.py" for module in setuptools["py-modules"])
    yield from (path for path in PACKAGE.rglob("*.py") if (path.parent / "__init__.py").is_file())
    for pattern in setuptools["package-data"][PACKAGE.name]:
        yield from (path for path in PACKAGE.glob(pattern) if path.is_file())


def _build_rules() -> dict[str, Any] | None:
    """Section `tool.setuptools` in `pyproject.toml` of the clone of the package; `None` if there is no clone."""
    path = PACKAGE.parents[1] / "pyproject.toml"
    # With `pip install --target`, the folder above may belong to another project.
    if PACKAGE.parent.name != "src" or not path.is_file():
        return None
    rules = tomllib.loads(path.read_text(encoding="utf-8"))
    ours = rules.get("project", {}).get("name") == "lora-moe-hgd"
    return rules["tool"]["setuptools"] if ours else None


def _record_digest(content: bytes) -> str:
    """SHA-256 in the notation of the file `RECORD` of a wheel: URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def write_notebook(folder: Path, *, repo: str, revision: str | None, wheel: str) -> None:
    """Write a notebook that installs the wheel and segments a case with the checkpoint of a repository.

    Args:
        folder: Folder of the repository's files.
        repo: Name of the repository.
        revision: Branch of the repository; `None` means `main`.
        wheel: File name of the wheel in the repository.
    """
    book = json.loads(NOTEBOOK.read_text())
    book["cells"] = [
        {**cell, "source": _with_checkpoint("".join(cell["source"]), repo, revision).splitlines(keepends=True)}
        for cell in book["cells"]
    ]
    words = [repo, wheel]
    arguments = ", ".join([*(f'"{word}"' for word in words), *([f'revision="{revision}"'] if revision else [])])
    install: dict[str, Any] = {
        "cell_type": "code",
        "id": "cell-install",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
    }
    install["source"] = INSTALL.format(arguments=arguments).splitlines(keepends=True)
    # The first cell is the introduction.
    book["cells"].insert(1, install)
    (folder / NOTEBOOK_ON_HUB).write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def write_space(folder: Path, *, repo: str, revision: str | None, commit: str, wheel: str) -> None:
    """Write the files of a Space that serves the page of `lora-moe-hgd app` with the checkpoint of a repository.

    Args:
        folder: Folder for the files of the Space.
        repo: Name of the repository. The repository must be public, because the Space downloads without a token.
        revision: Branch of the repository; `None` means `main`.
        commit: Commit of the repository from which the Space installs the wheel. If the commit differs from that of
            the last push, the Hub builds the Space again.
        wheel: File name of the wheel in the repository.
    """
    shutil.copytree(SPACE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    app, card, needed = folder / "app.py", folder / "README.md", folder / "requirements.txt"
    app.write_text(_with_checkpoint(app.read_text(), repo, revision))
    address = hf_hub_url(repo, wheel, revision=commit)
    needed.write_text(needed.read_text().replace(REQUIREMENT, f"{REQUIREMENT} @ {address}"))
    loaded = SpaceCard.load(card)
    # With this entry, the Hub's page of the model links to the Space.
    loaded.data.models = [repo]
    loaded.save(card)


def _with_checkpoint(text: str, repo: str, revision: str | None) -> str:
    """Set the variable `CHECKPOINT` in the text of a program to the name of the repository."""
    name = f"{repo}@{revision}" if revision else repo
    return text.replace(CHECKPOINT, f'CHECKPOINT = "{name}"')

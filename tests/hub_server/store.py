"""The repositories of `server.py`: folders, with commits, and checks of what goes in.

Below the root, every repository has its settings and refs in `repo.json`, its commits in `commits/ID.json` and the
contents of its files in `blobs/SHA256`. All are written beside their place and then moved there, so a killed server
leaves nothing half-written.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

# Bytes of a file that is kept out of the commit.
LARGE = 10_000_000
# Endings of files that go to LFS unless a repository says otherwise.
LFS_ENDINGS = ["arrow", "bin", "gz", "h5", "nii", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "zip"]


class HubError(Exception):
    """An answer other than success; `code` is what the clients make their exceptions from."""

    def __init__(self, status: int, message: str, *, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        # Names from the request must not be able to end a header line.
        headers = {"X-Error-Code": code, "X-Error-Message": ascii(message)[1:-1], "X-Repo-Commit": commit}
        self.status, self.message = status, message
        self.headers = {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class Entry:
    """A file of a commit: where its bytes are, and the id that git would give it (for LFS: give its pointer)."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    def lfs_info(self, id_key: str) -> dict[str, Any]:
        info = {id_key: self.sha256, "size": self.size, "pointerSize": len(lfs_pointer(self.sha256, self.size))}
        return {"lfs": info} if self.lfs else {}


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def checked_path(path: str) -> str:
    """Return `path`, or raise: what leads out of a repository must not reach the disk of those who download it."""
    parts = path.split("/")
    if "\\" in path or not path.isprintable() or not {"", ".", "..", ".git"}.isdisjoint(parts):
        raise HubError(400, f"Not a path inside a repository: {path!r}.")
    return path


def folders_of(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, which becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


class Repo:
    """A repository on disk."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        self.folder, self.kind, self.name = folder / kind / name, kind, name
        self.owner = name.split("/")[0]

    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    def create(self, *, private: bool) -> None:
        settings: dict[str, Any] = {"private": private, "gated": False, "branches": {}, "tags": {}}
        self.write("repo.json", settings)
        attributes = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS_ENDINGS)
        files = {".gitattributes": self.add_blob(attributes.encode())}
        self.add_commit("main", files, author=self.owner, title="initial commit")

    def settings(self) -> dict[str, Any]:
        """`private`, `gated`, and the commit of each of `branches` and `tags`."""
        return self._read("repo.json")

    def commit(self, commit_id: str) -> dict[str, Any]:
        return self._read(f"commits/{commit_id}.json")

    def files(self, commit_id: str) -> dict[str, Entry]:
        return {path: Entry(**entry) for path, entry in self.commit(commit_id)["files"].items()}

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def write(self, file: str, value: dict[str, Any]) -> None:
        with replacing(self.folder / file) as scratch:
            scratch.write_text(json.dumps(value, indent=1))

    def add_blob(self, content: bytes) -> Entry:
        sha256 = hashlib.sha256(content).hexdigest()
        with replacing(self.blob(sha256)) as scratch:
            scratch.write_bytes(content)
        return Entry(sha256, len(content), git_oid(content), lfs=False)

    def add_commit(self, branch: str, files: dict[str, Entry], *, author: str, title: str, message: str = "") -> str:
        """Put `files` on top of `branch`, unless they are what is there already; return the id of the commit."""
        settings = self.settings()
        parent = settings["branches"].get(branch)
        if parent and self.files(parent) == files:
            return str(parent)
        commit = {
            "parent": parent,
            "author": author,
            "title": title,
            "message": message,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "files": {path: asdict(files[path]) for path in sorted(files)},
        }
        commit_id = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        self.write(f"commits/{commit_id}.json", commit)
        settings["branches"][branch] = commit_id
        self.write("repo.json", settings)
        return commit_id

    def changed(self, files: dict[str, Entry], operations: Iterable[dict[str, Any]]) -> dict[str, Entry]:
        """`files` after the lines of a commit."""
        files = dict(files)
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = checked_path(value["path"].rstrip("/") if key.startswith("deleted") else value["path"])
            if key == "file":
                content = value["content"]
                content = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
                files[path] = self.add_blob(content)
            elif key == "lfsFile":
                files[path] = self.lfs_entry(value["oid"])
            elif key in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if name == path or name.startswith(f"{path}/")]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
                for name in gone:
                    del files[name]
            else:
                raise HubError(400, f"Not an operation that can be committed here: {key!r}.")
        if clash := {folder for path in files for folder in folders_of(path)} & files.keys():
            raise HubError(400, f"Both a file and a folder: {min(clash)}.")
        if "README.md" in files and (errors := check_card(self.text(files["README.md"]))[1]):
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
        return files

    def lfs_entry(self, sha256: str) -> Entry:
        """The entry of a file that was uploaded before."""
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not self.blob(sha256).is_file():
            raise HubError(400, f"No such file was uploaded: {sha256!r}.")
        size = self.blob(sha256).stat().st_size
        return Entry(sha256, size, git_oid(lfs_pointer(sha256, size)), lfs=True)

    def resolve(self, revision: str) -> str:
        """The id of the commit that a branch, a tag or an id names."""
        settings = self.settings()
        commit_id = settings["branches"].get(revision) or settings["tags"].get(revision) or revision
        if not re.fullmatch("[0-9a-f]{40}", commit_id) or not (self.folder / f"commits/{commit_id}.json").is_file():
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return str(commit_id)

    def card(self, files: dict[str, Entry]) -> dict[str, Any]:
        """The metadata at the head of README.md."""
        if "README.md" not in files:
            return {}
        data, errors, _ = check_card(self.text(files["README.md"]))
        return {} if errors else data

    def text(self, entry: Entry) -> str:
        return self.blob(entry.sha256).read_text(errors="replace")

    def uses_lfs(self, path: str, size: int, files: dict[str, Entry]) -> bool:
        """Whether the file is large, or `.gitattributes` says that such files go to LFS."""
        attributes = self.text(files[".gitattributes"]) if ".gitattributes" in files else ""
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line.split()[1:]]
        name = path.rsplit("/", 1)[-1]
        return size > LARGE or any(fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)

    def _read(self, file: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / file).read_text())
        return value


def check_card(content: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata of a model or dataset card, its errors, and warnings."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", content, flags=re.DOTALL | re.MULTILINE)
    if match is None:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        return {}, [f"The metadata is not valid YAML: {error}"], []
    if not isinstance(data, dict):
        return {}, ["The metadata must be a mapping of names to values."], []
    errors = []
    for key in ("datasets", "language", "license", "metrics", "tags"):
        values = data.get(key, [])
        if not all(isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{key}" must be a string or a list of strings')
        elif key == "license" and not all(re.fullmatch("[a-z0-9][a-z0-9.-]*", value) for value in as_list(values)):
            errors.append(f'"license" must be a known identifier such as "mit" or "apache-2.0", got {values!r}')
    return data, errors + check_model_index(data.get("model-index", [])), []


def check_model_index(index: Any) -> list[str]:
    """What is wrong with the results in a model card."""
    try:
        for model in index:
            for result in [model["name"]] and model["results"]:
                wanted = [result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"]]
                wanted += [metric["type"] for metric in result["metrics"] if metric["value"] is not None]
                if not all(isinstance(value, str) for value in wanted):
                    return [f'"model-index": names and types must be strings, got {wanted}']
    except (KeyError, TypeError) as error:
        return [f'"model-index" is not a list of models with `name` and `results` of task, dataset, metrics: {error}']
    return []


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def listing(files: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """Files and folders as the Hub lists them."""
    listed: list[dict[str, Any]] = [
        {"type": "file", "path": path, "oid": entry.oid, "size": entry.size, **entry.lfs_info("oid")}
        for path, entry in files.items()
    ]
    for folder in {folder for path in files for folder in folders_of(path)}:
        below = sorted(f"{path} {entry.oid}" for path, entry in files.items() if path.startswith(f"{folder}/"))
        listed.append({"type": "directory", "path": folder, "oid": git_oid("\n".join(below).encode()), "size": 0})
    return sorted(listed, key=lambda entry: entry["path"])

"""A small Hugging Face Hub on this computer: try a push, a download or a private repository without an account.

`python -m tests.hub_server --root runs/hub --port 8000` serves until Ctrl-C and prints the variables that point the
unmodified clients (huggingface_hub, transformers, peft, datasets) at it. In a test: `with LocalHub(...) as hub`.

Models, datasets, collections and the files of Spaces are served. Spaces do not run, and pull requests and the Xet
protocol are absent. Everyone on this computer can read what is public, and only the owner writes, with a token.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import math
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .store import HubError, Repo, as_list, check_card, checked_path, listing, replacing

# Bytes of a request that is read into memory, and of an uploaded file.
MAX_BODY = 2**28
MAX_FILE = 5 * 2**30
CHUNK = 2**20

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
API = rf"/api/(?P<kind>models|datasets|spaces)/(?P<name>{NAME}(?:/{NAME})?)"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?(?P<name>{NAME}(?:/{NAME})?)"
STORED = rf"(?P<kind>models|datasets|spaces)/(?P<name>{NAME}/{NAME})/(?P<sha256>[0-9a-f]{{64}})"
REVISION = "/(?P<revision>[^/]+)"


def byte_range(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one behind the last that a `Range` header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "bytes=0-")
    if match is None or match[0] == "bytes=-":
        return 0, size  # as the standard has it: what is not understood is ignored
    first, last = match.groups()
    start, stop = (int(first), int(last or size - 1) + 1) if first else (max(size - int(last), 0), size)
    if header and not start < min(stop, size):
        error = HubError(416, f"The file has {size} bytes, got {header!r}.")
        error.headers["Content-Range"] = f"bytes */{size}"
        raise error
    return start, min(stop, size)


class LocalHub(ThreadingHTTPServer):
    """The server, running while its `with` block does.

    Args:
        root: Folder for the repositories.
        users: The token of each user; nobody else can write.
        port: 0 for any that is free.
        log: Called with a line for each request.
    """

    daemon_threads = True

    def __init__(
        self, root: Path, *, users: Mapping[str, str], port: int = 0, log: Callable[[str], object] = print
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.root, self.users, self.log = root, dict(users), log
        self.secret = secrets.token_bytes(32)
        self.lock = threading.Lock()
        self.cuts: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, user: str | None) -> dict[str, str]:
        """The variables that make the clients in a new process use this Hub; without a token for the user `None`."""
        token = {} if user is None else {"HF_TOKEN": self.users[user]}
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", **token}

    def cut(self, pattern: str, *, after_bytes: int, times: float = 1) -> None:
        """Drop the next `times` transfers (`math.inf`: all) of a file whose path matches, after so many bytes."""
        self.cuts.append({"pattern": pattern, "after_bytes": after_bytes, "times": times})

    def mend(self) -> None:
        """Cut no more."""
        self.cuts.clear()

    def bytes_until_cut(self, path: str) -> float:
        """How much of the transfer that now begins is to go through."""
        with self.lock:
            for cut in self.cuts:
                if cut["times"] > 0 and fnmatch(path, cut["pattern"]):
                    cut["times"] -= 1
                    return int(cut["after_bytes"])
        return math.inf

    def signature(self, kind: str, name: str, sha256: str, size: int) -> str:
        """What allows one upload: clients send no token with it."""
        return hmac.new(self.secret, f"{kind}/{name}/{sha256}/{size}".encode(), "sha256").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; the methods named in `ROUTES` answer the requests."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # s without a byte
    server: LocalHub

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.unread = int(length) if (length := self.headers.get("Content-Length", "0")).isdecimal() else MAX_FILE + 1
        try:
            for method, pattern, answer in ROUTES:
                if method in (self.command, {"HEAD": "GET"}.get(self.command)) and (
                    match := pattern.fullmatch(url.path)
                ):
                    answer(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
                    return
            raise HubError(404, f"{self.command} {url.path} is not served here.")
        except HubError as error:
            self.send_json({"error": error.message}, status=error.status, headers=error.headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.send_json({"error": f"Malformed request: {error!r}"}, status=400)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = handle_request

    # What comes in

    def body(self) -> bytes:
        if self.unread > MAX_BODY or "Transfer-Encoding" in self.headers:
            raise HubError(413, f"A request may have {MAX_BODY} bytes, and must say how many.")
        size, self.unread = self.unread, 0
        return self.rfile.read(size)

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body())
        return value

    def user(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        for name, token in self.server.users.items():
            if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return name
        raise HubError(401, "Invalid credentials in Authorization header")

    def readable(self, kind: str, name: str) -> Repo:
        repo = Repo(self.server.root, kind or "models", name)
        user = self.user()
        if not repo.exists() or (repo.settings()["private"] and user != repo.owner):
            # The same for both: that a private repository exists is private too.
            raise HubError(404 if user else 401, f"Repository not found: {name}", code="RepoNotFound")
        return repo

    def writable(self, kind: str, name: str) -> Repo:
        repo = self.readable(kind, name)
        if self.user() is None:
            # Clients read any 401 so, but only from an https address.
            raise HubError(401, "Invalid username or password.", code="RepoNotFound")
        self.check_owner(repo.owner)
        return repo

    def check_owner(self, owner: str) -> None:
        user = self.user()
        if user != owner:
            raise HubError(403 if user else 401, f"Only {owner} may do this, with a token.")

    # What goes out

    def send_head(self, status: int, headers: Mapping[str, Any]) -> None:
        if self.unread > CHUNK:
            self.close_connection = True
        else:
            self.rfile.read(self.unread)
        self.send_response(status)
        for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_json(self, value: Any, *, status: int = 200, headers: Mapping[str, Any] | None = None) -> None:
        content = json.dumps(value, default=str).encode()
        self.send_head(status, {"Content-Type": "application/json", "Content-Length": len(content), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def copy(self, read: Callable[[int], bytes], write: Callable[[bytes], object], size: int) -> None:
        """Move `size` bytes, or as many as go through until the connection is cut."""
        left = int(min(size, allowed := self.server.bytes_until_cut(urlsplit(self.path).path)))
        while left:
            chunk = read(min(left, CHUNK))
            if not chunk:
                raise ConnectionError("The other side has gone.")
            write(chunk)
            left -= len(chunk)
        if allowed < size:
            self.wfile.flush()
            raise ConnectionError("Cut on purpose.")

    def log_message(self, format: str, *args: object) -> None:
        self.server.log(format % args)

    # Accounts and repositories

    def get_user(self) -> None:
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        self.send_json({"type": "user", "name": user, "fullname": user, "isPro": False, "orgs": []})

    def validate_card(self) -> None:
        _, errors, warnings = check_card(self.json()["content"])
        found = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        self.send_json(found, status=400 if errors else 200)

    def named_repo(self) -> tuple[Repo, dict[str, Any]]:
        """The repository that the body is about, which is the caller's, and that body."""
        wanted = self.json()
        owner = wanted.get("organization") or self.user()
        kind = {"model": "models", "dataset": "datasets", "space": "spaces"}.get(wanted.get("type") or "model")
        if kind is None or not re.fullmatch(NAME, wanted["name"]) or wanted["name"].endswith(".git"):
            raise HubError(400, f"A model, dataset or Space with a plain name is wanted, got {wanted['name']!r}.")
        if kind == "spaces" and self.command == "POST" and wanted.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, f"A Space needs an sdk, got {wanted.get('sdk')!r}.")
        self.check_owner(str(owner))
        return Repo(self.server.root, kind, f"{owner}/{wanted['name']}"), wanted

    def address(self, repo: Repo) -> str:
        """Address of the page of a repository."""
        return f"{self.server.url}/{'' if repo.kind == 'models' else f'{repo.kind}/'}{repo.name}"

    def create_repo(self) -> None:
        repo, wanted = self.named_repo()
        place = {"url": self.address(repo), "name": repo.name}
        with self.server.lock:
            if repo.exists():
                self.send_json({"error": "You already created this repo", **place}, status=409)
                return
            repo.create(private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
        self.send_json(place)

    def delete_repo(self) -> None:
        repo, _ = self.named_repo()
        self.readable(repo.kind, repo.name)
        with self.server.lock:
            (repo.folder / "repo.json").unlink()
            shutil.rmtree(repo.folder)
        self.send_json({})

    def change_settings(self, kind: str, name: str) -> None:
        repo, wanted = self.writable(kind, name), self.json()
        with self.server.lock:
            settings = repo.settings()
            if "visibility" in wanted:
                settings["private"] = wanted["visibility"] == "private"
            settings["gated"] = wanted.get("gated", settings["gated"])
            repo.write("repo.json", settings)
        self.send_json({})

    # Collections

    def collection(self, slug: str) -> tuple[Path, dict[str, Any]]:
        """File and content of a collection that the caller may read."""
        path = self.server.root / "collections" / f"{checked_path(slug)}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        if not found or (found["private"] and self.user() != found["owner"]["name"]):
            raise HubError(404, f"Collection not found: {slug}")
        return path, found

    def create_collection(self) -> None:
        wanted = self.json()
        owner, title = wanted["namespace"], wanted["title"]
        self.check_owner(owner)
        with self.server.lock:
            for path in (self.server.root / "collections" / owner).glob("*.json"):
                found = json.loads(path.read_text())
                if found["title"] == title:
                    self.send_json({"error": "This collection exists", "slug": found["slug"]}, status=409)
                    return
            words = "-".join(re.findall("[a-z0-9]+", title.lower()))
            made = {"slug": f"{owner}/{words}-{secrets.token_hex(12)}", "title": title, "owner": {"name": owner}}
            made |= {"private": bool(wanted.get("private")), "items": [], "lastUpdated": "2026-01-01T00:00:00.000Z"}
            made |= {"position": 0, "theme": "green", "upvotes": 0}
            with replacing(self.server.root / "collections" / f"{made['slug']}.json") as scratch:
                scratch.write_text(json.dumps(made))
        self.send_json(made)

    def get_collection(self, slug: str) -> None:
        self.send_json(self.collection(slug)[1])

    def add_to_collection(self, slug: str) -> None:
        wanted = self.json()["item"]
        with self.server.lock:
            path, found = self.collection(slug)
            self.check_owner(found["owner"]["name"])
            self.readable(f"{wanted['type']}s", wanted["id"])
            if any((item["id"], item["type"]) == (wanted["id"], wanted["type"]) for item in found["items"]):
                raise HubError(409, "This item is in the collection already.")
            found["items"].append({**wanted, "_id": secrets.token_hex(12), "position": len(found["items"])})
            with replacing(path) as scratch:
                scratch.write_text(json.dumps(found))
        self.send_json(found)

    # Branches, tags, commits

    def get_refs(self, kind: str, name: str) -> None:
        settings = self.readable(kind, name).settings()
        listed: dict[str, list[dict[str, str]]] = {"converts": [], "pullRequests": []}
        for group, prefix in (("branches", "heads"), ("tags", "tags")):
            listed[group] = [
                {"name": ref, "ref": f"refs/{prefix}/{ref}", "targetCommit": commit}
                for ref, commit in settings[group].items()
            ]
        self.send_json(listed)

    def create_branch(self, kind: str, name: str, revision: str) -> None:
        self.create_ref(self.writable(kind, name), "branches", revision, self.json().get("startingPoint") or "main")

    def create_tag(self, kind: str, name: str, revision: str) -> None:
        self.create_ref(self.writable(kind, name), "tags", self.json()["tag"], revision)

    def create_ref(self, repo: Repo, group: str, ref: str, start: str) -> None:
        with self.server.lock:
            settings = repo.settings()
            if ref in settings[group]:
                raise HubError(409, f"Reference already exists: {ref}")
            settings[group][checked_path(ref)] = repo.resolve(start)
            repo.write("repo.json", settings)
        self.send_json({})

    def delete_branch(self, kind: str, name: str, revision: str) -> None:
        if revision == "main":
            raise HubError(403, "The branch main cannot be deleted.")
        self.delete_ref(self.writable(kind, name), "branches", revision)

    def delete_tag(self, kind: str, name: str, revision: str) -> None:
        self.delete_ref(self.writable(kind, name), "tags", revision)

    def delete_ref(self, repo: Repo, group: str, ref: str) -> None:
        with self.server.lock:
            settings = repo.settings()
            if settings[group].pop(ref, None) is None:
                raise HubError(404, f"Reference not found: {ref}", code="RevisionNotFound")
            repo.write("repo.json", settings)
        self.send_json({})

    def get_commits(self, kind: str, name: str, revision: str) -> None:
        """All commits on one page, the newest first."""
        repo = self.readable(kind, name)
        commit_id: str | None = repo.resolve(revision)
        listed = []
        while commit_id is not None:
            commit = repo.commit(commit_id)
            about = {key: commit[key] for key in ("title", "message", "date")}
            listed.append({"id": commit_id, "authors": [{"user": commit["author"]}], **about})
            commit_id = commit["parent"]
        self.send_json(listed)

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo = self.writable(kind, name)
        files = repo.files(repo.resolve(revision))
        modes = []
        for file in self.json()["files"]:
            path, entry = checked_path(file["path"]), files.get(file["path"])
            oid = entry and (entry.sha256 if entry.lfs else entry.oid)
            mode = "lfs" if repo.uses_lfs(path, file["size"], files) else "regular"
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": modes})

    def commit(self, kind: str, name: str, revision: str) -> None:
        repo = self.writable(kind, name)
        if "create_pr" in self.query:
            raise HubError(403, "Pull requests are not served here")
        header, *operations = (json.loads(line) for line in self.body().split(b"\n") if line)
        about = header["value"]
        with self.server.lock:
            parent = repo.settings()["branches"].get(revision)
            if parent is None:
                raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
            if about.get("parentCommit", parent) != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = repo.changed(repo.files(parent), operations)
            words = {"title": about["summary"], "message": about.get("description", "")}
            commit_id = repo.add_commit(revision, files, author=repo.owner, **words)
        url = f"{self.address(repo)}/commit/{commit_id}"
        self.send_json({"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""})

    # Large files

    def start_uploads(self, kind: str, name: str) -> None:
        repo = self.writable(kind, name)
        objects = []
        for wanted in self.json()["objects"]:
            sha256, size = wanted["oid"], int(wanted["size"])
            answer: dict[str, Any] = {"oid": sha256, "size": size}
            if not re.fullmatch("[0-9a-f]{64}", sha256) or not 0 <= size <= MAX_FILE:
                answer["error"] = {"code": 422, "message": f"Not a SHA-256, or more than {MAX_FILE} bytes."}
            elif not repo.blob(sha256).is_file():
                place = f"{self.server.url}/lfs/{repo.kind}/{repo.name}/{sha256}"
                signed = f"size={size}&signature={self.server.signature(repo.kind, repo.name, sha256, size)}"
                answer["actions"] = {"upload": {"href": f"{place}?{signed}"}, "verify": {"href": place}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, kind: str, name: str, sha256: str) -> None:
        size = int(self.query["size"][0])
        signature = self.server.signature(kind, name, sha256, size)
        repo = Repo(self.server.root, kind, name)
        if not hmac.compare_digest(self.query["signature"][0].encode(), signature.encode()) or not repo.exists():
            raise HubError(403, "This upload was not asked for.")
        if self.unread != size:
            raise HubError(400, f"{size} bytes were announced, {self.unread} are sent.")
        digest = hashlib.sha256()
        with replacing(repo.blob(sha256)) as scratch:
            with open(scratch, "wb") as file:

                def write(chunk: bytes) -> None:
                    self.unread -= len(chunk)
                    digest.update(chunk)
                    file.write(chunk)

                self.copy(self.rfile.read1, write, size)
            if digest.hexdigest() != sha256:
                raise HubError(400, f"SHA-256 is {digest.hexdigest()}, {sha256} was announced.")
        self.send_json({})

    def verify_upload(self, kind: str, name: str, sha256: str) -> None:
        entry = self.writable(kind, name).lfs_entry(sha256)
        if entry.size != self.json()["size"]:
            raise HubError(400, f"{sha256} has {entry.size} bytes.")
        self.send_json({})

    # Reading

    def list_repos(self, kind: str) -> None:
        """The public repositories and the caller's own, by name; `author` and `search` narrow the list."""
        user, found = self.user(), []
        for path in sorted((self.server.root / kind).glob("*/*/repo.json")):
            repo = Repo(self.server.root, kind, "/".join(path.parent.parts[-2:]))
            if repo.settings()["private"] and user != repo.owner:
                continue
            if repo.owner != self.query.get("author", [repo.owner])[0]:
                continue
            if all(word in repo.name for word in self.query.get("search", [])):
                found.append(self.describe(repo, repo.resolve("main")))
        self.send_json(found[: int(self.query.get("limit", [str(len(found))])[0])])

    def get_info(self, kind: str, name: str, revision: str = "main") -> None:
        repo = self.readable(kind, name)
        self.send_json(self.describe(repo, repo.resolve(revision)))

    def describe(self, repo: Repo, commit_id: str) -> dict[str, Any]:
        commit, files, settings = repo.commit(commit_id), repo.files(commit_id), repo.settings()
        card = repo.card(files)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files]
        if "blobs" in self.query:
            for sibling, entry in zip(siblings, files.values(), strict=True):
                sibling.update({"size": entry.size, "blobId": entry.oid, **entry.lfs_info("sha256")})
        about: dict[str, Any] = {
            key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card
        }
        about |= {"private": settings["private"], "gated": settings["gated"], "disabled": False}
        about |= {"lastModified": commit["date"], "cardData": card, "tags": as_list(card.get("tags", []))}
        about |= {"downloads": 0, "likes": 0, "siblings": siblings}
        if "config.json" in files:
            config = json.loads(repo.text(files["config.json"]))
            about["config"] = {key: config[key] for key in ("architectures", "model_type") if key in config}
        return {"id": repo.name, "author": repo.owner, "sha": commit_id, **about}

    def get_tree(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.readable(kind, name)
        commit_id = repo.resolve(revision)
        top = f"{path.strip('/')}/".lstrip("/")
        listed = [entry for entry in listing(repo.files(commit_id)) if entry["path"].startswith(top)]
        if top and not listed:
            raise HubError(404, f"{path} does not exist on {revision}", code="EntryNotFound", commit=commit_id)
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            listed = [entry for entry in listed if "/" not in entry["path"][len(top) :]]
        self.send_json(listed)

    def get_paths(self, kind: str, name: str, revision: str) -> None:
        repo = self.readable(kind, name)
        content = self.body()
        is_json = self.headers.get_content_type() == "application/json"
        wanted = (json.loads(content) if is_json else parse_qs(content.decode()))["paths"]
        listed = listing(repo.files(repo.resolve(revision)))
        self.send_json([entry for entry in listed if entry["path"] in {path.strip("/") for path in wanted}])

    def get_file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self.readable(kind, name)
        user = self.user()
        if repo.settings()["gated"] and user != repo.owner:
            # Nobody asks for access here, so nobody is let in.
            raise HubError(403 if user else 401, f"Access to {name} is restricted.", code="GatedRepo")
        commit_id = repo.resolve(revision)
        entry = repo.files(commit_id).get(path)
        if entry is None:
            raise HubError(404, "Entry not found", code="EntryNotFound", commit=commit_id)
        asked = self.headers.get("Range") if self.command == "GET" else None
        start, stop = byte_range(asked, entry.size)
        headers = {"X-Repo-Commit": commit_id, "ETag": f'"{entry.sha256 if entry.lfs else entry.oid}"'}
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(stop - start)}
        headers |= {"Accept-Ranges": "bytes", "Content-Disposition": "attachment"}
        if entry.lfs:
            headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
        with open(repo.blob(entry.sha256), "rb") as file:
            self.send_head(206 if asked else 200, headers)
            if self.command == "GET":
                file.seek(start)
                self.copy(file.read, self.wfile.write, stop - start)


ROUTES = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/whoami-v2", Handler.get_user),
        ("POST", "/api/validate-yaml", Handler.validate_card),
        ("POST", "/api/repos/create", Handler.create_repo),
        ("DELETE", "/api/repos/delete", Handler.delete_repo),
        ("PUT", f"{API}/settings", Handler.change_settings),
        ("POST", "/api/collections", Handler.create_collection),
        ("GET", f"/api/collections/(?P<slug>{NAME}/{NAME})", Handler.get_collection),
        ("POST", f"/api/collections/(?P<slug>{NAME}/{NAME})/items", Handler.add_to_collection),
        ("GET", f"{API}/refs", Handler.get_refs),
        ("POST", f"{API}/branch{REVISION}", Handler.create_branch),
        ("POST", f"{API}/tag{REVISION}", Handler.create_tag),
        ("DELETE", f"{API}/branch{REVISION}", Handler.delete_branch),
        ("DELETE", f"{API}/tag{REVISION}", Handler.delete_tag),
        ("GET", f"{API}/commits{REVISION}", Handler.get_commits),
        ("GET", "/api/(?P<kind>models|datasets|spaces)", Handler.list_repos),
        ("POST", f"{API}/preupload{REVISION}", Handler.preupload),
        ("POST", f"{API}/commit{REVISION}", Handler.commit),
        ("POST", rf"{WEB}\.git/info/lfs/objects/batch", Handler.start_uploads),
        ("PUT", f"/lfs/{STORED}", Handler.upload),
        ("POST", f"/lfs/{STORED}", Handler.verify_upload),
        ("GET", f"{API}/tree{REVISION}(?:/(?P<path>.*))?", Handler.get_tree),
        ("POST", f"{API}/paths-info{REVISION}", Handler.get_paths),
        ("GET", f"{API}/revision{REVISION}", Handler.get_info),
        ("GET", API, Handler.get_info),
        ("GET", f"{WEB}/resolve{REVISION}/(?P<path>.+)", Handler.get_file),
    )
]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/hub"), help="folder for the repositories")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--users", nargs="+", default=["me"], help="who may own repositories")
    options = parser.parse_args(argv)
    # Kept, so that what was exported stays right when the server starts again.
    kept = options.root / "tokens.json"
    tokens = json.loads(kept.read_text()) if kept.is_file() else {}
    tokens |= {user: f"hf_{secrets.token_hex(16)}" for user in options.users if user not in tokens}
    with replacing(kept) as scratch:
        scratch.touch(mode=0o600)
        scratch.write_text(json.dumps(tokens, indent=1))
    # A shell starts what runs in the background deaf to Ctrl-C, and a test may be started there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with LocalHub(options.root, users=tokens, port=options.port) as hub, contextlib.suppress(KeyboardInterrupt):
        print("In another terminal, ", end="")
        for user in options.users:
            lines = [f"export {name}={value}" for name, value in hub.environment(user).items()]
            print("\n".join([f"to be `{user}` there:", *lines]), flush=True)
        threading.Event().wait()

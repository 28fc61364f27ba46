"""Files of the app's visitors. Each session has a folder with a name that nobody can guess."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..cases.case_files import safe_name, stem_of
from ..files import listed
from ..inference.report import EXAMPLE_ID
from ..model.findings import BadInputError
from ..scans.archives import unpack
from ..scans.raw import is_dicom, is_zip

MAX_FILES = 5000
# Largest ratio of unpacked to uploaded bytes. A zip file usually has a third of the size of its DICOM files.
UNPACKED_PER_UPLOADED = 4
# Seconds after its last use until a session is deleted.
SESSION_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
# A stored image keeps the extension of its name, because readers compare extension and content.
NIFTI_ENDS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Upload:
    """Uploaded image file.

    Attributes:
        path: Path of the stored file, whose name the app has chosen.
        name: File name on the visitor's computer. The app shows the name, and never uses it as a path.
    """

    path: Path
    name: str


@dataclass
class Session:
    """Files and computation of one visitor.

    Attributes:
        folder: Folder of this session, which contains all files of the visitor.
        images: NIfTI files, in the order of their upload.
        size: Total size of the uploaded files, in bytes.
        unpacked: Total size of the files that were unpacked from zip files, in bytes.
        count: Number of uploaded files. The files in a zip file are counted, but not the zip file itself.
        version: Counter that increases whenever files are added or deleted.
        case_id: Name of the case in pictures and reports. The name never contains a file name of a visitor.
        stop: Event that, when set, stops the computation of this session.
        busy: Whether a computation is running.
        unfinished: Whether the page still waits for a result, an error, or the message that the job was stopped.
        ended: Whether the visitor has left. Code that is writing into `folder` at that moment must delete `folder`
            afterwards.
        touched: Time of the last use, in seconds of the clock `time.monotonic`.
        lock: Lock that is held while the files are listed or changed.
    """

    folder: Path
    images: list[Upload] = field(default_factory=list)
    size: int = 0
    unpacked: int = 0
    count: int = 0
    version: int = 0
    case_id: str = "case"
    stop: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    unfinished: bool = False
    ended: bool = False
    touched: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def study(self) -> Path | None:
        """Folder of the DICOM files; `None` if there are none."""
        folder = self.folder / "study"
        return folder if folder.is_dir() else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the session's lock during the `with` block, so that no other event reads or changes the files.

        Raises:
            ValueError: If the visitor has left.
        """
        try:
            with self.lock:
                if self.ended:
                    raise ValueError("The page was closed. Open it again.")
                yield
        finally:
            # Check this after the lock is released. From then on, `end` can take the lock and delete the folder
            # itself.
            if self.ended:
                shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """Stop the computation and delete the files. If another event holds the lock, that event deletes the files."""
        self.ended = True
        self.stop.set()
        if self.lock.acquire(blocking=False):
            try:
                shutil.rmtree(self.folder, ignore_errors=True)
            finally:
                self.lock.release()

    def add(self, uploads: Sequence[tuple[Path, str]], *, max_bytes: int) -> str:
        """Move uploaded files into the session, and unpack zip files.

        Args:
            uploads: Path and visitor's file name of each uploaded file. `add` moves or deletes these files.
            max_bytes: Largest total size of all uploaded files of the session, in bytes.

        Returns:
            A sentence that names the files that were deleted, because they are neither NIfTI, DICOM nor zip files;
            empty if there are none.

        Raises:
            ValueError: If there are too many files or bytes, or a zip file cannot be unpacked. All files in `uploads`
                are then deleted.
        """
        try:
            with self.held():
                return self._add(uploads, max_bytes)
        finally:
            for path, _ in uploads:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all files of the session. The visitor can upload other files afterwards."""
        with self.held():
            self._clear()

    def use_example(self, files: Sequence[Path]) -> None:
        """Replace the uploaded files by copies of `files`, the images of the example case."""
        with self.held():
            self._clear()
            for path in files:
                copy = _new(self.folder / "images", _end(path.name))
                shutil.copyfile(path, copy)
                self.images.append(Upload(copy, path.name))
            self.case_id = EXAMPLE_ID

    def _add(self, uploads: Sequence[tuple[Path, str]], max_bytes: int) -> str:
        self._changed()
        named = [(path, safe_name(PurePosixPath(name.replace("\\", "/")).name)) for path, name in uploads]
        size, unpacked = self.size + sum(path.stat().st_size for path, _ in uploads), self.unpacked
        zips = [(path, name) for path, name in named if is_zip(path)]
        count = self.count + len(uploads) - len(zips)
        if size > max_bytes or count > MAX_FILES:
            raise ValueError(
                f"A case may have {max_bytes // 10**6} MB in {MAX_FILES} files at most. The uploaded "
                "files were deleted."
            )
        # Keep the new files in a separate folder until nothing can fail any more.
        waiting = _new(self.folder)
        waiting.mkdir()
        images, ignored = [], []
        try:
            for path, name in named:
                if (path, name) in zips:
                    folder = _new(waiting / "study")
                    try:
                        unpacked += unpack(
                            path,
                            folder,
                            max_bytes=UNPACKED_PER_UPLOADED * max_bytes - unpacked,
                            max_members=MAX_FILES - count,
                        )
                    except BadInputError as error:
                        raise ValueError(
                            f"{name}: {error.finding.message} The uploaded files were deleted."
                        ) from error
                    count += len(os.listdir(folder))
                elif is_dicom(path):
                    path.rename(_new(waiting / "study"))
                elif stem_of(Path(name), NIFTI_ENDS) is not None:
                    images.append((path.rename(_new(waiting / "images", _end(name))).name, name))
                else:
                    ignored.append(name)
            for folder in waiting.iterdir():
                place = self.folder / folder.name
                place.mkdir(exist_ok=True)
                for path in folder.iterdir():
                    path.rename(place / path.name)
        finally:
            shutil.rmtree(waiting, ignore_errors=True)
        self.images += [Upload(self.folder / "images" / stored, name) for stored, name in images]
        self.size, self.unpacked, self.count = size, unpacked, count
        if not ignored:
            return ""
        return f"Deleted, because they are neither NIfTI, DICOM nor zip files: {listed(ignored, most=5)}."

    def _clear(self) -> None:
        self._changed()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.images, self.size, self.unpacked, self.count, self.case_id = [], 0, 0, 0, "case"

    def _changed(self) -> None:
        """Increase `version`, and stop the computation, because it uses the earlier files."""
        self.version += 1
        self.stop.set()


def _new(folder: Path, end: str = "") -> Path:
    """Path in `folder` for a new file or folder. Its name is random and ends with `end`."""
    folder.mkdir(exist_ok=True)
    return folder / (secrets.token_hex(8) + end)


def _end(name: str) -> str:
    """Extension of the name of a NIfTI file."""
    return next(end for end in NIFTI_ENDS if name.lower().endswith(end))


class Sessions:
    """All sessions of an app, and the uploaded files that were not moved into a session yet."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="lora-moe-hgd-app-"))
        # Folder of the uploaded files, until an event of their session moves them.
        self.incoming = self.root / "incoming"
        self.incoming.mkdir()
        self._sessions: dict[str, Session] = {}
        self._results: dict[str, tuple[Session, Path]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_now_and_then, name="sessions", daemon=True).start()

    def of(self, key: str) -> Session:
        """Return the session of a browser tab. A missing session is created."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = Session(self.root / secrets.token_hex(16))
                session.folder.mkdir(mode=0o700)
                self._sessions[key] = session
            session.touched = time.monotonic()
            return session

    def new_upload(self) -> Path:
        """Path for a file that is being uploaded."""
        return self.incoming / secrets.token_hex(16)

    def uploaded(self, path: str) -> Path:
        """Return the uploaded file at the path that a browser sent.

        Raises:
            ValueError: If no uploaded file has this path, for example because it was already moved into a session.
        """
        place = self.incoming / Path(path).name
        if Path(path) != place or not place.is_file():
            raise ValueError("The uploaded file no longer exists. Upload it again.")
        return place

    def new_result(self, session: Session) -> tuple[str, Path]:
        """Return a token and a folder for the result of a session. Everybody who knows the token can read the folder.

        An earlier result of the session is deleted.
        """
        token = secrets.token_urlsafe(32)
        folder = session.folder / secrets.token_hex(16)
        with self._lock:
            old = [place for owner, place in self._results.values() if owner is session]
            self._results = {name: pair for name, pair in self._results.items() if pair[0] is not session}
            self._results[token] = (session, folder)
        for place in old:
            shutil.rmtree(place, ignore_errors=True)
        return token, folder

    def result(self, token: str) -> Path | None:
        """Folder of the result with this token; `None` if the token is unknown."""
        with self._lock:
            session, folder = self._results.get(token, (None, None))
            if session is not None:
                session.touched = time.monotonic()
            return folder

    def end(self, key: str) -> None:
        """Stop the computation of a session and delete its files."""
        with self._lock:
            session = self._sessions.pop(key, None)
            self._results = {token: pair for token, pair in self._results.items() if pair[0] is not session}
        if session is not None:
            session.end()

    def sweep(self, now: float) -> None:
        """Delete sessions and uploads that nobody has used for an hour.

        Args:
            now: Current time, in seconds of the clock `time.monotonic`.
        """
        with self._lock:
            old = [
                key
                for key, session in self._sessions.items()
                if not session.busy and now - session.touched > SESSION_SECONDS
            ]
        for key in old:
            self.end(key)
        age = now - time.monotonic() + time.time()
        for path in self.incoming.iterdir():
            # An event of a session may move the file at the same moment.
            with suppress(FileNotFoundError):
                if age - path.stat().st_mtime > SESSION_SECONDS:
                    path.unlink()

    def close(self) -> None:
        """End all sessions and delete all files."""
        self._closed.set()
        for key, session in list(self._sessions.items()):
            self.end(key)
            # Wait until no file is being written, because such a file would be left when the process ends.
            with session.lock:
                pass
        shutil.rmtree(self.root, ignore_errors=True)

    def _sweep_now_and_then(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            try:
                self.sweep(time.monotonic())
            except Exception as error:
                # Do not let the error end this thread, because then nothing would be deleted any more.
                print(f"The deletion of old files of the app failed with {type(error).__name__}.", file=sys.stderr)
                traceback.print_tb(error.__traceback__)

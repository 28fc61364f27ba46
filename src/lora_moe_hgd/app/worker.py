"""Separate process that segments the cases of the app.

Unlike a thread, a process can be killed, so a stopped job ends at once. A crash of native code or a lack of memory
ends one job and not the app. The process keeps the network in memory between jobs.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from ..cases.case_files import given_case
from ..files import printable, reason_of
from ..inference.results import CaseSegmenter, ResultOptions
from ..inference.scanned import segment_scan
from ..model import sliding_window

# Seconds between two checks whether the job was stopped.
POLL_SECONDS = 0.3
ALL_FILES = "all_files.zip"


@dataclass(frozen=True)
class Job:
    """A case to segment, and how to segment it.

    Attributes:
        name: Name of the checkpoint in reports. The name must not contain a path of the server.
        checkpoint: Folder of the network or adapter, which was downloaded before the job.
        base: Folder of an adapter's base; `None` for a network.
        device: Device such as `cpu` or `cuda:0`. `None` means a GPU if there is one.
        allow_partial: Accept volumes that show only a part of a brain.
        images: File of each sequence of a skull-stripped case; `None` for raw images.
        raw: Folder of raw images, which are prepared and segmented if `images` is `None`.
        scan: Keyword arguments of `scans.prepare.ScanOptions` for raw images.
        case_id: Name of the case.
        out: Folder for the results.
        scratch: Folder for temporary files, which the caller deletes.
    """

    name: str
    checkpoint: Path
    base: Path | None
    device: str | None
    allow_partial: bool
    images: Mapping[str, Path] | None
    raw: Path | None
    scan: Mapping[str, Any]
    case_id: str
    out: Path
    scratch: Path


@dataclass(frozen=True)
class Step:
    """Current step of a job. `share` is the finished fraction of the step, from 0 to 1; `None` if it is unknown."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class End:
    """End of a job. `problem` says why the job failed, and is empty if it succeeded."""

    problem: str = ""


def segment_job(job: Job, send: Callable[[Step], object]) -> None:
    """Segment a case, and write its result files and a zip file with all result files.

    Raises:
        ValueError: If the case cannot be used.
    """
    send(Step("Loading the checkpoint"))
    segmenter = _segmenter(job.name, job.checkpoint, job.base, job.device, job.allow_partial)
    if job.images is not None:
        send(Step("Reading the images"))
        case = replace(given_case(job.images, segmenter.task), case_id=job.case_id)
        found = segmenter.segment(case, progress=True)
    else:
        assert job.raw is not None
        send(Step("Removing the skull and resampling the images to one grid. This takes a minute or two"))
        # Import it only here, because it needs the extra `scans`.
        from ..scans.prepare import ScanOptions

        def say(text: str) -> None:
            # Tables are for the terminal. The page already lists the series.
            if "\n" not in text:
                send(Step(text))

        found = segment_scan(segmenter, job.raw, ScanOptions(**job.scan), progress=True, say=say)
    send(Step("Writing the files"))
    found.save(job.out, html=True, on_all=found.scan is not None)
    written = sorted(job.out.iterdir())
    with zipfile.ZipFile(job.out / ALL_FILES, "w") as archive:
        for path in written:
            archive.write(path, path.name)


@lru_cache(maxsize=2)
def _segmenter(
    name: str, checkpoint: Path, base: Path | None, device: str | None, allow_partial: bool
) -> CaseSegmenter:
    segmenter = CaseSegmenter(checkpoint, ResultOptions(allow_partial=allow_partial), device=device, base=base)
    segmenter.checkpoint = name
    return segmenter


def work(pipe: Connection) -> None:
    """Main function of the process: do one job after another from the pipe, until the pipe is closed."""
    # Ignore Ctrl-C, which also reaches this process. The server ends the process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def counted(batches: Sequence[int], **options: Any) -> Iterator[int]:
        for number, batch in enumerate(batches):
            pipe.send(Step("Segmenting", number / len(batches)))
            yield batch

    # Replace the progress bar of the terminal, which has no callback.
    vars(sliding_window)["tqdm"] = counted
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        # Put temporary files into the job's own folder, so that none is left behind when this process is killed.
        tempfile.tempdir = str(job.scratch)
        try:
            segment_job(job, pipe.send)
        except (ValueError, OSError) as error:
            pipe.send(End(own_names(reason_of(error), *folders_of(job))))
        except Exception as error:
            # The message may contain data of the case, so it is shown to the visitor of the case and never logged.
            print(f"A job of the app failed with {type(error).__name__}.", file=sys.stderr)
            traceback.print_tb(error.__traceback__)
            reason = own_names(reason_of(error), *folders_of(job))
            pipe.send(End(f"The segmentation failed with an unexpected error ({reason}). The app is still running."))
        else:
            pipe.send(End())


def own_names(message: str, *folders: Path) -> str:
    """Remove the paths of `folders` from a message, because visitors must not see these paths."""
    for folder in sorted(map(str, folders), key=len, reverse=True):
        message = message.replace(f"{folder}/", "").replace(f"{folder}:", "The images:")
        message = message.replace(folder, "a folder of the app")
    return printable(message)


def folders_of(job: Job) -> set[Path]:
    """Folders of the job, whose paths visitors must not see."""
    images = {path.parent for path in (job.images or {}).values()}
    return images | {job.out.parent, job.out, job.scratch} | ({job.raw} if job.raw else set())


class Worker:
    """Controller of the process that segments: start the process, send jobs to it, and kill it.

    The process does one job at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> Connection:
        """Start the process if it is not running, and return the pipe to it."""
        if self._process is None or self._pipe is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(target=work, args=(theirs,), name="segmentation", daemon=True)
            self._process.start()
            theirs.close()
            self._pipe = ours
        return self._pipe

    def run(self, job: Job, stop: threading.Event) -> Iterator[Step | End | None]:
        """Send a job to the process, and yield its steps.

        Args:
            job: Job to do.
            stop: Event that, when set, kills the job.

        Yields:
            Each step of the job, and `None` whenever no step has arrived for `POLL_SECONDS`. The last item is an
            `End`, except if the job was stopped.
        """
        with self._lock:
            job.scratch.mkdir()
            message: Step | End | None = None
            try:
                pipe = self.start()
                pipe.send(job)
                while not isinstance(message, End) and not stop.is_set():
                    # `poll` is also true if the process has died.
                    message = pipe.recv() if pipe.poll(POLL_SECONDS) else None
                    yield message
            except (EOFError, OSError):
                message = None
                yield End(
                    "The computation ended unexpectedly, perhaps because the computer has too little memory. Try "
                    "fewer sequences, or try again."
                )
            finally:
                if not isinstance(message, End):
                    self.kill()
                shutil.rmtree(job.scratch, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process and all processes that it has started."""
        if self._process is not None and self._process.pid is not None:
            try:
                children = psutil.Process(self._process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                children = []
            self._process.kill()
            for child in children:
                # The child may have ended by itself.
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue
            self._process.join()
        self._process = self._pipe = None

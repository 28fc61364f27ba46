"""Web page of the app: its controls and their actions."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..api import example_case
from ..cases.case_files import EXTENSIONS
from ..files import read_json
from ..inference.report import EXAMPLE_ID, EXAMPLE_SOURCE, NOTICE
from ..model.task import Task
from ..scans.prepared import FILE_NAMES
from ..subsets import sequence_shown
from .found import LEFT_OUT, MAX_ROWS, Found, find, scan_options, sequences_chosen
from .results import problem_html, result_html, step_html
from .sessions import Session, Sessions
from .worker import End, Job, Step, Worker, own_names

SKULL = "The images show the whole head: remove the skull and resample the images to one grid before the segmentation"
PARTIAL = "Accept images of only a part of a brain (--allow-partial)"
QUEUE = 16
NO_RESULT = "No result yet."
INTRODUCTION = """# Find the {target} in MRI

Give one or more of {sequences} of one case: NIfTI files, or a DICOM study as a zip file or a folder.
A case may have {most} MB at most.

**{notice}** Your files are used for the segmentation only, and are deleted when you close this page.
"""


@dataclass(frozen=True)
class AppOptions:
    """Options of the app.

    Attributes:
        checkpoint: Checkpoint that is selected when the page opens.
        base: For an adapter: folder or Hub id of its base. `None` means the base that `adapter_config.json` names.
        device: Device such as `cpu` or `cuda:0`. `None` means a GPU if there is one.
        max_upload_mb: Largest total size of the files of a case, in megabytes.
    """

    checkpoint: str
    base: str | None = None
    device: str | None = None
    max_upload_mb: int = 1000

    @property
    def max_bytes(self) -> int:
        """Largest total size of the files of a case, in bytes."""
        return self.max_upload_mb * 10**6


class Offered(NamedTuple):
    """Folder of a checkpoint that visitors can choose. For an adapter, also the folder of its base."""

    folder: Path
    base: Path | None


class Actions:
    """Actions of the page's controls.

    Each public method handles one event of the page, such as a click on a button. The argument `request` identifies
    the session.
    """

    def __init__(
        self, options: AppOptions, task: Task, checkpoints: dict[str, Offered], sessions: Sessions, worker: Worker
    ) -> None:
        self.options, self.task, self.checkpoints = options, task, checkpoints
        self.sessions, self.worker = sessions, worker

    def add(self, files: Any, request: gr.Request) -> tuple[Any, ...]:
        """Add uploaded files. `files` lists the path of each file on the server and the visitor's file name."""
        session = self._session(request)
        given = files if isinstance(files, list) else [files] if files else []
        try:
            uploads = [
                (self.sessions.uploaded(str(file["path"])), str(file.get("orig_name") or "file")) for file in given
            ]
            remark = session.add(uploads, max_bytes=self.options.max_bytes)
        except (ValueError, OSError) as error:
            problem = own_names(str(error), self.sessions.root, session.folder)
            return (None, *self._listing(session, remark=f"**{_plain(problem)}**"))
        return (None, *self._listing(session, remark=_plain(remark)))

    def example(self, request: gr.Request) -> tuple[Any, ...]:
        """Replace the files of the session by the example case that ships with the package."""
        session = self._session(request)
        files = sorted(example_case().iterdir())
        session.use_example([path for path in files if path.name.endswith(EXTENSIONS) and "-seg." not in path.name])
        return self._listing(session)

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Delete the files of the session."""
        session = self._session(request)
        session.clear()
        return self._listing(session)

    def choose_study(self, study: str | None, request: gr.Request) -> tuple[Any, ...]:
        """List the series of the DICOM study that the visitor chose."""
        return self._listing(self._session(request), study)

    def segment(
        self, request: gr.Request, listed: str, study: str | None, checkpoint: str, images: list[str], *roles: str
    ) -> Iterator[str]:
        """Segment the case. Yield HTML with the progress and finally with the result.

        `listed` is the token (see `_token`) of the list in which the visitor chose the sequences. If the files have
        changed since then, the result is an error message.
        """
        session = self._session(request)
        session.stop.clear()
        session.busy = session.unfinished = True
        started = time.monotonic()
        job: Job | None = None
        try:
            # Release the lock before the job runs, so that other events can stop the job and delete its files.
            with session.held():
                version = session.version
                token, job = self._job(session, listed, study, checkpoint, images, roles)
            step = Step("Starting")
            for message in self.worker.run(job, session.stop):
                if isinstance(message, End):
                    session.unfinished = False
                    yield problem_html(message.problem) if message.problem else self._result(token, job.out)
                    return
                step = message or step
                yield step_html(step, time.monotonic() - started)
            session.unfinished = False
            yield problem_html("Stopped.")
        except (ValueError, OSError) as error:
            session.unfinished = False
            yield problem_html(own_names(str(error), session.folder))
        finally:
            session.busy = False
            session.touched = time.monotonic()
            # Another event may have deleted the files of the session before the job wrote its results.
            if job is not None and session.version != version:
                shutil.rmtree(job.out, ignore_errors=True)
            if session.ended:
                shutil.rmtree(session.folder, ignore_errors=True)

    def stop(self, request: gr.Request) -> Any:
        """Stop the job of the session, and return the message that it was stopped.

        `segment` cannot yield this message, because Gradio cancels `segment` when the visitor presses "Stop".
        """
        session = self._session(request)
        session.stop.set()
        if not session.unfinished:
            # The job has ended. Keep its result on the page.
            return gr.skip()
        session.unfinished = False
        return problem_html("Stopped.")

    def end(self, request: gr.Request) -> None:
        """End the session, because its browser tab was closed."""
        self.sessions.end(str(request.session_hash))

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.of(str(request.session_hash))

    def _job(
        self,
        session: Session,
        listed: str,
        study: str | None,
        checkpoint: str,
        images: list[str],
        roles: tuple[str, ...],
    ) -> tuple[str, Job]:
        if checkpoint not in self.checkpoints:
            raise ValueError(f"This app does not offer the checkpoint '{checkpoint}'.")
        found = find(session, self.task, study)
        if found.problem or not found.rows:
            raise ValueError(found.problem or "There are no images yet. Upload images, or use the example case.")
        if listed != _token(session, study):
            raise ValueError(
                "The images have changed in the meantime. Check that the right sequence is selected for each image, "
                "and segment again."
            )
        chosen = sequences_chosen(found.rows, roles[: len(found.rows)], self.task)
        paths: dict[str, Path] | None = None
        raw, scan = session.study, scan_options(found, chosen)
        scan["study"] = study if found.studies else None
        if not found.is_study:
            raw, scan = session.folder / secrets.token_hex(8), {"case_id": session.case_id}
            raw.mkdir()
            paths = {}
            for name, row in chosen.items():
                upload = session.images[int(row.key)]
                # With this file name, every command recognises the sequence, and messages name it.
                start = FILE_NAMES.get(name, name).partition(".")[0]
                paths[name] = raw / (start + "".join(upload.path.suffixes))
                paths[name].hardlink_to(upload.path)
        token, out = self.sessions.new_result(session)
        offered = self.checkpoints[checkpoint]
        return token, Job(
            name=checkpoint,
            checkpoint=offered.folder,
            base=offered.base,
            device=self.options.device,
            allow_partial=PARTIAL in images,
            images=None if SKULL in images else paths,
            raw=raw,
            scan=scan,
            case_id=session.case_id,
            out=out,
            scratch=session.folder / secrets.token_hex(8),
        )

    def _result(self, token: str, folder: Path) -> str:
        report = read_json(folder / "report.json")
        return result_html(report, [path.name for path in folder.iterdir()], f"results/{token}", self.task)

    def _listing(self, session: Session, study: str | None = None, *, remark: str = "") -> tuple[Any, ...]:
        """New values of the controls: status, token of the list, choice of the study, result, and rows of the list.

        The result on the page is cleared, because it may be the result of earlier files.
        """
        with session.held():
            found, token = find(session, self.task, study), _token(session, study)
        problem = f"**{_plain(found.problem)}**" if found.problem else ""
        source = f"{EXAMPLE_ID} is from {EXAMPLE_SOURCE}." if session.case_id == EXAMPLE_ID else ""
        status = "\n\n".join(filter(None, [remark, problem, source, found.status])) or "No images yet."
        studies = [(label, number) for number, label in found.studies]
        choice = gr.update(choices=studies, value=study, visible=bool(studies))
        return status, token, choice, NO_RESULT, *self._rows(found)

    def _rows(self, found: Found) -> list[Any]:
        shown = [gr.update(label=row.label, info=row.why, value=row.role, visible=True) for row in found.rows]
        # Make a separate update for each row, because Gradio modifies the updates.
        return shown + [gr.update(value=LEFT_OUT, visible=False) for _ in range(MAX_ROWS - len(shown))]


def _token(session: Session, study: str | None) -> str:
    """Token that identifies the list of files on the page.

    The token changes when the files change, or when the visitor chooses another study.
    """
    return f"{session.version} {study or ''}"


def _plain(text: str) -> str:
    """Escape the special characters of Markdown, because file names often contain stars and underscores."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()<>#+-!|~" else sign for sign in text)


def build(actions: Actions) -> gr.Blocks:
    """Build the page."""
    options, task = actions.options, actions.task
    with gr.Blocks(title="lora-moe-hgd", analytics_enabled=False) as page:
        sequences = ", ".join(map(sequence_shown, task.modalities))
        gr.Markdown(
            INTRODUCTION.format(target=task.target, sequences=sequences, most=options.max_upload_mb, notice=NOTICE)
        )
        gr.Markdown("## 1. Images")
        drop = gr.File(
            label="NIfTI files, or a zip file with DICOM files",
            file_count="multiple",
            height=170,
        )
        with gr.Row():
            folder = gr.UploadButton("Choose a folder", file_count="directory")
            example = gr.Button("Use the example case")
            clear = gr.Button("Delete the files")
        status = gr.Markdown("No images yet.")
        study = gr.Dropdown(label="Study", choices=[], visible=False, interactive=True)
        choices = [(sequence_shown(name), name) for name in task.modalities] + [(LEFT_OUT, LEFT_OUT)]
        rows = [gr.Dropdown(choices=choices, value=LEFT_OUT, visible=False, interactive=True) for _ in range(MAX_ROWS)]
        gr.Markdown("## 2. Segment")
        checkpoints = list(actions.checkpoints)
        checkpoint = gr.Dropdown(label="Checkpoint", choices=checkpoints, value=checkpoints[0])
        images = gr.CheckboxGroup(label="Unusual images", choices=[SKULL, PARTIAL])
        with gr.Row():
            start = gr.Button("Segment", variant="primary")
            stop = gr.Button("Stop")
        gr.Markdown("## 3. Result")
        result = gr.HTML(NO_RESULT, min_height=120)
        listed = gr.Textbox("", label="list", visible=False)

        listing = [status, listed, study, result, *rows]
        # Switch off the checks of Gradio, which accept only files that Gradio has stored. `Actions.add` checks the
        # files itself.
        taking: dict[str, Any] = {"preprocess": False, "concurrency_id": "files", "concurrency_limit": 2}
        drop.upload(actions.add, drop, [drop, *listing], api_name="add", **taking)
        folder.upload(actions.add, folder, [folder, *listing], api_visibility="private", **taking)
        example.click(actions.example, None, listing, api_name="example")
        clear.click(actions.clear, None, listing, api_name="clear")
        study.input(actions.choose_study, study, listing, api_name="study")
        running = start.click(
            actions.segment,
            [listed, study, checkpoint, images, *rows],
            result,
            api_name="segment",
            concurrency_limit=1,
        )
        stop.click(None, cancels=[running])
        stop.click(actions.stop, None, result, api_name="stop", concurrency_limit=None)
        page.unload(actions.end)
    page.queue(max_size=QUEUE, api_open=False)
    return page

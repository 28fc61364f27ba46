"""Server of the app: receive uploads, send results, and serve the page, which Gradio builds.

By default, only this computer can reach the server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

# Set these variables before the import of Gradio, which reads them when it is imported or started.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from gradio.blocks import Block
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..files import install_command
from ..loading import checkpoint_folder, checkpoint_task, find_base, is_adapter, usable_device
from ..pretrained import shipped_names
from .page import Actions, AppOptions, Offered, build
from .results import CSS, checkpoint_name
from .sessions import Sessions
from .worker import Worker

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# With this policy, the browser refuses to load anything from other hosts, whatever a library requests.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
if "SPACE_ID" in os.environ:
    # The Hub shows a Space in a frame of its own page.
    POLICY += " https://huggingface.co"
# With this policy, a result page may run its own scripts but cannot load anything else.
RESULT_POLICY = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; "
RESULT_POLICY += "style-src 'unsafe-inline'; img-src data: blob:; connect-src data: blob:; worker-src blob: data:"
MARGIN_BYTES = 10**6
# Routes that the page of Gradio needs. Other routes of Gradio serve files by path or fetch addresses for a client, so
# they are closed.
GRADIO_ROUTES = ("info", "startup-events", "app_id", "queue/", "heartbeat/", "cancel", "reset", "upload")


def create_app(options: AppOptions, *, only_this_computer: bool = True) -> FastAPI:
    """Build the app.

    Args:
        options: Options of the app.
        only_this_computer: Refuse requests whose header `Host` does not name this computer. Without this check, any
            web page in the visitor's browser could reach the app through a host name that points to this computer.

    Raises:
        ValueError: If the checkpoint, the device or the version of Gradio cannot be used.
    """
    # If an input of a client looks like a file, Gradio would copy the file at this path or fetch this address. Replace
    # the method that does so.
    if not hasattr(Block, "async_move_resource_to_block_cache"):
        raise ValueError(
            f"With Gradio {gr.__version__}, the app cannot prevent visitors from reading files of this computer. "
            f"Install the supported version: {install_command('app')}"
        )
    Block.async_move_resource_to_block_cache = _untouched  # type: ignore[assignment, method-assign]
    folder = checkpoint_folder(options.checkpoint)
    base = find_base(folder, options.base) if is_adapter(folder) else None
    task = checkpoint_task(folder, base=base)
    usable_device(options.device)
    shipped = [name for name in shipped_names() if checkpoint_task(checkpoint_folder(name)) == task]
    # Visitors must not see paths of this computer. Of a checkpoint's folder, they see only the name.
    checkpoints = {checkpoint_name(options.checkpoint): Offered(folder, base)}
    checkpoints |= {name: Offered(checkpoint_folder(name), None) for name in shipped if name not in checkpoints}
    sessions, worker = Sessions(), Worker()
    # Gradio stores no file of a case. Its other files are deleted together with the sessions.
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.root / "gradio")
    actions = Actions(options, task, checkpoints, sessions, worker)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            worker.kill()
            sessions.close()

    app = FastAPI(title="lora-moe-hgd", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.state.sessions, app.state.worker = sessions, worker

    uploading: set[str] = set()

    @app.post("/gradio_api/upload")
    async def upload(request: Request, upload_id: str = "") -> Response:
        """Store uploads. Gradio's own route for uploads would use the visitor's file names as paths."""
        uploading.add(upload_id)
        try:
            return await store(request)
        finally:
            uploading.discard(upload_id)

    async def store(request: Request) -> Response:
        if shutil.disk_usage(sessions.root).free < 2 * options.max_bytes:
            return PlainTextResponse("The disk of the server is full. Try again later.", 507)
        paths = []
        async with request.form(max_files=1000, max_fields=10) as form:
            for file in form.getlist("files"):
                if isinstance(file, str):
                    raise HTTPException(400, "Each field `files` of an upload must contain a file, not text.")
                paths.append(path := sessions.new_upload())
                with path.open("xb") as target:
                    await run_in_threadpool(shutil.copyfileobj, file.file, target, 1024**2)
        return JSONResponse([str(path) for path in paths])

    @app.get("/gradio_api/upload_progress")
    async def upload_progress(upload_id: str) -> Response:
        """Send a message to the page when an upload has ended. Gradio's script on the page waits for this message."""

        async def events() -> AsyncIterator[str]:
            # The upload may begin after this request, or may have ended before it.
            for _ in range(10):
                if upload_id not in uploading:
                    await asyncio.sleep(0.2)
            while upload_id in uploading:
                await asyncio.sleep(0.2)
            yield 'data: {"msg": "done"}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/results/{token}/{name}")
    async def result(token: str, name: str) -> Response:
        folder = sessions.result(token)
        # Accept only names of files in the folder, so that no path leads out of the folder.
        if folder is None or not folder.is_dir() or name not in os.listdir(folder):
            raise HTTPException(404, "There is no such result. The result may have been deleted.")
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": RESULT_POLICY}
        inline = name.endswith((".html", ".png"))
        return FileResponse(
            folder / name,
            headers=headers,
            filename=name,
            content_disposition_type="inline" if inline else "attachment",
        )

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # Gradio's own grey is too pale to read for these texts.
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    gr.mount_gradio_app(
        app,
        build(actions),
        path="/",
        allowed_paths=[],
        show_error=False,
        max_file_size=options.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        # Otherwise, the browser stores a history of the visitor's runs.
        run_history=False,
        footer_links=[],
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )
    app.add_middleware(Guard, max_bytes=options.max_bytes)
    if only_this_computer:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    return app


async def _untouched(block: Block, url_or_file_path: str | Path | None) -> str | None:
    """Return the path or address that a client sent, unchanged. Gradio's own method would open or fetch it.

    `Actions.add` later refuses every path that is not the path of an uploaded file.
    """
    return None if url_or_file_path is None else str(url_or_file_path)


class Guard:
    """Refuse requests that are too large or come from other web pages, and send the Content-Security-Policy."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix("/gradio_api/")
        if path != scope["path"] and not path.startswith(GRADIO_ROUTES):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return
        problem: tuple[str, int] | None = None
        if b"transfer-encoding" in headers:
            # With this header, servers ignore the Content-Length, so it limits nothing.
            problem = "The request must state its Content-Length, and have no Transfer-Encoding.", 411
        elif scope["method"] not in ("GET", "HEAD"):
            length = headers.get(b"content-length", b"")
            if _is_foreign(headers):
                problem = "Requests from other web pages are refused.", 403
            elif not length.isdigit():
                problem = "The request must state its Content-Length.", 411
            elif int(length) > self.max_bytes + MARGIN_BYTES:
                problem = self._too_large()
        if problem is not None:
            await PlainTextResponse(*problem)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes + MARGIN_BYTES:
                text, status = self._too_large()
                raise HTTPException(status, text)
            return message

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                more = {b"referrer-policy": b"no-referrer", b"x-content-type-options": b"nosniff"}
                more |= {b"content-security-policy": POLICY.encode()}
                message["headers"] = [*message["headers"], *(pair for pair in more.items() if pair[0] not in names)]
            await send(message)

        await self.app(scope, counted, with_policy)

    def _too_large(self) -> tuple[str, int]:
        return f"A case may have {self.max_bytes // 10**6} MB at most.", 413


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request comes from another web page, according to the headers of the browser."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        # Prefer this header: web pages cannot change it, but a server in front of the app may change `Host`.
        return site not in (b"same-origin", b"none")
    # Without encryption, browsers send `Sec-Fetch-Site` only to this computer, so compare `Origin` with `Host`.
    origin = headers.get(b"origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get(b"host", b"").lower()


def serve(options: AppOptions, *, host: str, port: int) -> None:
    """Serve the app until the process is stopped.

    Raises:
        ValueError: If the checkpoint or the device cannot be used.
    """
    app = create_app(options, only_this_computer=host in LOOPBACK)
    print(f"Open http://{f'[{host}]' if ':' in host else host}:{port} in a browser. Ctrl-C stops the app.", flush=True)
    if host not in LOOPBACK:
        print("warning: Other computers can reach the app, without encryption and without a login.", flush=True)
    # An open page keeps a connection. After three seconds, the server stops all the same.
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=3)

"""The app on a port of this computer."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio")
import uvicorn
from gradio_client import Client

from lora_moe_hgd.app.page import AppOptions
from lora_moe_hgd.app.server import create_app
from lora_moe_hgd.app.sessions import Sessions
from lora_moe_hgd.app.worker import Worker

MAX_MB = 3


class Server:
    """An app on a port of this computer, in a thread."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint.name
        self.app = create_app(AppOptions(str(checkpoint), max_upload_mb=MAX_MB))
        self.sessions: Sessions = self.app.state.sessions
        self.worker: Worker = self.app.state.worker
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=1)
        self.running = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.running.run, kwargs={"sockets": [listening]})
        self.thread.start()

    def visitor(self) -> Client:
        return Client(self.url, verbose=False, download_files=False, analytics_enabled=False)

    def close(self) -> None:
        self.running.should_exit = True
        self.thread.join(60)

"""Processes that can be killed, forked from one that has imported torch already: importing it takes seconds each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("lora_moe_hgd.training.engine", "lora_moe_hgd.inference.command", "accelerate.commands.launch"),
        # What these import only when they need it, which most do.
        *("nilearn.datasets", "matplotlib.pyplot"),
    ]
)


class Fork:
    """A process with a process group, an environment and an output of its own.

    Args:
        target: What it runs, a function of an importable module.
        words: Arguments of `target`.
        environment: Environment variables beside those of this process.
    """

    def __init__(
        self, target: Callable[..., None], *words: object, environment: Mapping[str, str] | None = None
    ) -> None:
        descriptor, name = tempfile.mkstemp(prefix="fork-", suffix=".log")
        os.close(descriptor)
        self._shown = Path(name)
        self._process = CONTEXT.Process(target=_run, args=(name, dict(environment or {}), target, words))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 600) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it printed on either stream."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self.kill()
        shown = self._shown.read_text(errors="replace")
        self._shown.unlink(missing_ok=True)
        assert code is not None, f"No end within {seconds} seconds.\n{shown}"
        return code, shown

    def kill(self) -> None:
        """Kill the process and those that it has started, without warning."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It has ended, or has no group yet.
            self._process.kill()
        self._process.join()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def fork_ranks(target: Callable[..., None], *words: object, environments: Sequence[Mapping[str, str]]) -> list[Fork]:
    """Start processes that find each other as those of `torchrun` do; the environments add to what that needs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = str(len(environments))
    meeting = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [
        Fork(
            target,
            *words,
            environment={
                **meeting,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                **environment,
                "MASTER_PORT": str(port),
            },
        )
        for rank, environment in enumerate(environments)
    ]


def accelerate_launch(words: Sequence[str]) -> None:
    """Run `accelerate launch WORDS`."""
    from accelerate.commands.launch import main

    sys.argv = ["accelerate-launch", *words]
    main()


def _run(output: str, environment: dict[str, str], target: Callable[..., None], words: tuple[object, ...]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        target(*words)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None

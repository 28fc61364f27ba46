"""Sharing of work among several processes that a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState

# Timeout of waiting processes. Another process may need hours for its share of a cohort or for preprocessing.
PATIENCE = timedelta(days=7)


def refuse_lone_process() -> None:
    """Raise if several processes were requested but only one was started.

    Raises:
        ValueError: If several processes were requested but only one was started. The launcher does not report this
            mistake.
    """
    # `accelerate launch --cpu --num_processes 2` sets the address for several processes, but starts only one.
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "Several processes were requested, but `accelerate launch` started only one. With --cpu, it always starts "
            "only one. For several processes on the CPU, use `accelerate launch --config_file "
            "configs/accelerate/cpu_two_processes.yaml`."
        )


def started_processes() -> PartialState:
    """Return Accelerate's state: how many processes share the work, and which of them is the current process.

    Without a launcher, the current process is the only one.

    Raises:
        ValueError: If several processes were requested but only one was started.
    """
    refuse_lone_process()
    # On a machine without a GPU, processes that were launched for GPUs cannot communicate unless `cpu=True`.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def device_of_process(state: PartialState, name: str | None) -> str | None:
    """Return the device for this process: `name`, or the launcher's choice if there are several processes.

    Raises:
        ValueError: If a device is requested, but there are several processes.
    """
    if state.num_processes == 1:
        return name
    if name is not None:
        raise ValueError("`accelerate launch` gives each process its own device. Leave out --device.")
    return str(state.device)


@contextmanager
def main_process_first(state: PartialState) -> Iterator[None]:
    """Run the block first in the main process, then in the other processes.

    The main process may need hours for the block, and the other processes wait. Accelerate's method of the same name
    waits in the default process group, which times out after ten minutes (NCCL) or half an hour (Gloo). This function
    waits in a separate process group with a longer timeout. If a process dies, the other processes stop waiting at
    once.

    Raises:
        SystemExit: In every process except the main process, if the block fails in the main process. Only the main
            process reports the error.
    """
    if state.num_processes == 1:
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    main_failed = [False]
    if not state.is_main_process:
        torch.distributed.broadcast_object_list(main_failed, src=0, group=group)
        if main_failed[0]:
            raise SystemExit(2)
    try:
        yield
    except Exception:
        if state.is_main_process:
            torch.distributed.broadcast_object_list([True], src=0, group=group)
        raise
    if state.is_main_process:
        torch.distributed.broadcast_object_list(main_failed, src=0, group=group)
    # Wait until all processes are done, before any of them waits in the default group with its short timeout.
    torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)


def is_fast_in_bf16(device: str | None = None) -> bool:
    """Whether a device computes faster in bfloat16 than in float32. `None` means a GPU if there is one.

    CPUs without bfloat16 instructions emulate these instructions. With emulation, a training step takes forty times as
    long (EPYC with AVX2).
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and torch.cpu._is_avx512_bf16_supported()

"""The processes that a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState

# How long a process waits for the others where one may work for hours, on its share of a cohort or on preparing cases.
PATIENCE = timedelta(days=7)


def refuse_lone_process() -> None:
    """Raise if several processes were requested but only one was started.

    Raises:
        ValueError: If that is so. The launcher itself does not report it.
    """
    # `accelerate launch --cpu --num_processes 2` sets a meeting place for its processes, but starts one.
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "`accelerate launch` was asked for several processes but started one, as it does with --cpu. For several "
            "processes on the CPU use `accelerate launch --config_file configs/accelerate/cpu_two_processes.yaml`."
        )


def started_processes() -> PartialState:
    """Return the processes that share the work: this one alone without a launcher.

    Raises:
        ValueError: If several processes were requested but only one was started.
    """
    refuse_lone_process()
    # Without `cpu=True` and without a GPU, processes that were started for GPUs do not find each other.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def device_of_process(state: PartialState, name: str | None) -> str | None:
    """The device that a command was asked for, or the one that the launcher gave this process; else `None`.

    Raises:
        ValueError: If one device is asked for and several processes would have to share it.
    """
    if state.num_processes == 1:
        return name
    if name is not None:
        raise ValueError("--device is for one process. `accelerate launch` gives each process its own: leave it out.")
    return str(state.device)


@contextmanager
def main_process_first(state: PartialState) -> Iterator[None]:
    """Run the block in the main process, and then in the others, which wait for hours if need be.

    Accelerate's method of this name waits in the default process group, which gives up after ten minutes (NCCL) or
    half an hour (Gloo). Here a process group of its own has the patience; if a process dies, the waiting ends at once.

    Raises:
        SystemExit: In the other processes, if the block fails in the main process, which alone reports the error.
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
    # The others may need minutes too, before any of them waits in the default process group.
    torch.distributed.barrier(group)
    torch.distributed.destroy_process_group(group)


def is_fast_in_bf16() -> bool:
    """Whether this machine computes in bfloat16 faster than in float32.

    Processors without its instructions emulate it: a training step then takes forty times as long (EPYC with AVX2).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()

"""The processes that a launcher has started."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState

# How long a process that is done waits for the others: the shares of a cohort take as long as they take.
PATIENCE = timedelta(days=7)


def refuse_lone_process() -> None:
    """Tell a launcher's mistake that it does not tell itself.

    Raises:
        ValueError: If it was asked for several processes and has started one.
    """
    # `accelerate launch --cpu --num_processes 2` names a meeting place for its processes, and starts one.
    if "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "`accelerate launch` was asked for several processes and started one, as it does with --cpu. Several "
            "processes on the CPU need `accelerate launch --config_file configs/accelerate/cpu_two_processes.yaml`."
        )


def started_processes() -> PartialState:
    """The processes that share the work, this one alone without a launcher.

    Raises:
        ValueError: If the launcher was asked for several processes and has started one.
    """
    refuse_lone_process()
    # Without a GPU Accelerate must be told, or processes started for a GPU do not find each other.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)

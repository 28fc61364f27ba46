"""Train as `train.py` does, under FSDP2 on processes without a GPU; Accelerate itself offers it for GPUs only.

Run by torchrun in `test_distributed`; `test_resume` imports it.
"""

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from lora_moe_hgd_cli import run

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "EncoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def shard_on_cpu() -> None:
    """Make Accelerate shard over the processes that torchrun started."""
    os.environ.update(SETTINGS)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    shard_on_cpu()
    run("train", sys.argv[1:])

"""Peak memory of a training step, by size of network and crop, precision and gradient checkpointing, as a table.

`python benchmarks/memory.py` measures each in a process of its own: on a GPU what torch allocated, on the CPU what the
process held beyond its imports. Batch of one with four sequences, AdamW, two steps. `--sizes` also takes the peers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import torch
from peers import make_network

VARIANTS = {
    "float32": (False, False),
    "float32, checkpointing": (False, True),
    "bf16": (True, False),
    "bf16, checkpointing": (True, True),
}


def held_gb() -> float:
    """Most memory so far, in 10^9 bytes; on the CPU as Linux tells it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    # Not `resource.getrusage`, where a child begins with the peak of its parent.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def measure(size: str, edge: int, *, bf16: bool, checkpointing: bool) -> float:
    """Memory in 10^9 bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = held_gb()
    network = make_network(size, edge).to(device)
    if checkpointing:
        network.activation_checkpointing_enable()
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    volume = torch.randn(1, 4, edge, edge, edge, device=device).contiguous(memory_format=torch.channels_last_3d)
    labels = torch.zeros(1, 3, edge, edge, edge, device=device)
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = network(pixel_values=volume, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return held_gb() - before


def measure_apart(size: str, edge: int, variant: str) -> float | None:
    """The same in a process of its own; `None` if it ended there."""
    words = [sys.executable, __file__, "--one", json.dumps([size, edge, variant])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,base")
    parser.add_argument("--edges", default="96,128")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        size, edge, variant = json.loads(args.one)
        bf16, checkpointing = VARIANTS[variant]
        print(measure(size, edge, bf16=bf16, checkpointing=checkpointing))
        return
    print("| network | crop | precision | peak GB | ratio |\n|---|---|---|---|---|")
    for size, edge in itertools.product(args.sizes.split(","), map(int, args.edges.split(","))):
        first = None
        for variant in VARIANTS:
            gb = measure_apart(size, edge, variant)
            if gb is None:
                print(f"| {size} | {edge}^3 | {variant} | no room | |", flush=True)
                continue
            first = first or gb
            print(f"| {size} | {edge}^3 | {variant} | {gb:.1f} | {gb / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()

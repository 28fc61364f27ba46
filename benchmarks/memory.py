"""Measure the peak memory of a training step, by size of network and crop, precision and gradient checkpointing.

`python benchmarks/memory.py` measures each setting in a separate process. On a GPU, the result is the memory that
torch allocated. On the CPU, the result is the memory of the process without its imports. The training has a batch of
one with four sequences, AdamW, and two steps. `--sizes` also accepts the names of MONAI's networks in `peers.py`.

`--cases 240x240x155x1,544x544x400x0.5` instead segments and saves a synthetic case of two sequences for each entry. An
entry gives the number of voxels along each axis, and the voxel size in millimetres.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from peers import make_network

import lora_moe_hgd

VARIANTS = {
    "float32": (False, False),
    "float32, checkpointing": (False, True),
    "bf16": (True, False),
    "bf16, checkpointing": (True, True),
}


def held_gb() -> float:
    """Peak memory of this process so far, in 10^9 bytes; on the CPU from `/proc/self/status`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    # Do not use `resource.getrusage`, which reports for a child process at least the peak of its parent.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def measure(size: str, edge: int, *, bf16: bool, checkpointing: bool) -> float:
    """Measure the memory of two training steps, in 10^9 bytes."""
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
    """Run `measure` in a separate process; `None` if the process failed, for example without enough memory."""
    words = [sys.executable, __file__, "--one", json.dumps([size, edge, variant])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def measure_case(words: str) -> float:
    """Measure the memory of `segment` and `save` for one case, in 10^9 bytes, on the CPU, without imports."""
    *shape, spacing = map(float, words.split("x"))
    shape = tuple(map(int, shape))
    with tempfile.TemporaryDirectory() as folder:
        # Write the case in a separate process, so that its memory does not count.
        making = multiprocessing.get_context("spawn").Process(target=make_case, args=(Path(folder), shape, spacing))
        making.start()
        making.join()
        before = held_gb()
        lora_moe_hgd.segment(folder, device="cpu").save(Path(folder) / "out")
        return held_gb() - before


def make_case(folder: Path, shape: tuple[int, ...], spacing: float) -> None:
    """Write T1c and FLAIR with noise in an ellipsoid of 140 x 170 x 130 mm and a bright ball in it."""
    x, y, z = np.ogrid[tuple(slice(-edge * spacing / 2, edge * spacing / 2, edge * 1j) for edge in shape)]
    brain = (x / 70) ** 2 + (y / 85) ** 2 + (z / 65) ** 2 < 1
    ball = (x - 25) ** 2 + y**2 + z**2 < 500
    for name in ("T1c", "FLAIR"):
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        array = np.where(brain, 400 + 60 * noise + 300 * ball, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1.0])), folder / f"{name}.nii.gz")


def measured_case_apart(words: str) -> str:
    """Run `measure_case` in a separate process, and return the result as a cell of the table."""
    done = subprocess.run([sys.executable, __file__, "--one-case", words], capture_output=True, text=True, check=False)
    return f"{float(done.stdout.splitlines()[-1]):.2f}" if done.returncode == 0 else "no room"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,base")
    parser.add_argument("--edges", default="96,128")
    parser.add_argument("--cases", help="shapes and voxel sizes of cases, such as 240x240x155x1")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--one-case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_case:
        print(measure_case(args.one_case))
        return
    if args.cases:
        print("| case | peak GB |\n|---|---|")
        for words in args.cases.split(","):
            print(f"| {words} mm | {measured_case_apart(words)} |", flush=True)
        return
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

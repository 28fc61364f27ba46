"""Measure speed and memory on a GPU, and print tables: `python benchmarks/gpu.py`, about five minutes.

One run measures four things: forward and training step of a crop, also of MONAI's networks; a complete case at 1 and 2
mm with one to four sequences; training on synthetic cases, with the share of time spent waiting for data; and the ten
operations that take longest. `--device cpu --edge 64 --case-shape 64 64 48` tries the script on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peers import make_network
from speed import MASKS, crop_jobs, in_turns, made_up_case, print_times
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lora_moe_hgd.training.metrics_log import read_metrics
from lora_moe_hgd_cli import run

CONFIG = Path(__file__).parents[1] / "configs/pretrain_phantom.yaml"
NETWORKS = ["tiny", "SegResNet-16", "DynUNet", "SwinUNETR-24"]


def crops(device: str, edge: int, rounds: int) -> None:
    """Print times of a forward pass and of a training step on one crop, in float32 and bf16."""
    for bf16 in (False, True):
        print(f"\n{'bf16' if bf16 else 'float32'}, batch of one, {edge}^3\n")
        jobs = crop_jobs(NETWORKS, edge, bf16=bf16, compiled=False, device=device)
        print_times(in_turns(jobs, rounds, device))


def whole_cases(device: str, shape: tuple[int, int, int], rounds: int) -> None:
    """Print seconds and memory of `segment_volume` for a case, which is segmented in windows."""
    network = make_network("tiny", 64).to(device).eval()
    kinds = {"float32": (network, False), "bf16": (network, True)}
    if device != "cpu":
        # `segment_volume` calls the network on windows of one size, so one compilation is enough.
        compiled = make_network("tiny", 64).to(device).eval()
        compiled.forward = torch.compile(compiled.forward)
        kinds["bf16, compiled"] = (compiled, True)
    fine = made_up_case(shape)
    print("\n| case | sequences | precision | minimum s | median s | peak GB |\n|---|---|---|---|---|---|")
    for spacing, (kind, (model, bf16)), count in itertools.product((1, 2), kinds.items(), MASKS):
        volume = fine[..., ::spacing, ::spacing, ::spacing].contiguous().to(device)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        (seconds,) = in_turns({"": case_job(model, volume, MASKS[count].to(device), bf16)}, rounds, device).values()
        peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if device != "cpu" else ""
        numbers = f"{min(seconds):.3g} | {statistics.median(seconds):.3g} | {peak}"
        print(f"| {spacing} mm | {count} | {kind} | {numbers} |", flush=True)


def case_job(model: nn.Module, volume: Tensor, mask: Tensor, bf16: bool) -> Callable[[], None]:
    """Return a function that segments one case."""

    def job() -> None:
        with torch.no_grad(), torch.autocast(volume.device.type, torch.bfloat16, enabled=bf16):
            model.segment_volume(volume, mask)

    return job


def training(sizes: list[str], edge: int, phantoms: int) -> None:
    """Print the crops per second of `train.py`, and the share of time in which training waits for data.

    The synthetic cases are coarse, so that making them takes little time. The crops have the usual size.
    """
    print("\n| network | crops a second | share of waiting |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            out = Path(folder) / size
            words = ["--size", size, "--epochs", "2"]
            words += ["--data.phantoms", str(phantoms), "--data.val_phantoms", "1", "--sample.spacing_mm", "4"]
            words += ["--sample.crop_size", f"[{edge}, {edge}, {edge}]", "--sample.crops_per_case", "8"]
            words += ["--sample.batch_size", "4", "--validation.every", "2", "--validation.subsets", "[all]"]
            run("train", ["--config", str(CONFIG), *words, "--cache-dir", f"{folder}/cache", "--output-dir", str(out)])
            # Leave out the first epoch, in which kernels are tuned and memory is allocated.
            rows = [row for row in read_metrics(out) if "time/samples_per_second" in row]
            rows = rows[len(rows) // 2 :]
            speed, share = (
                statistics.median(row[f"time/{name}"] for row in rows)
                for name in ("samples_per_second", "data_wait_share")
            )
            print(f"| {size} | {speed:.1f} | {share:.2f} |", flush=True)


def longest_operations(device: str, edge: int) -> None:
    """Print the ten operations that take longest in a training step of `tiny` in bf16."""
    jobs = crop_jobs(["tiny"], edge, bf16=True, compiled=False, device=device)
    job = jobs["tiny, 4 sequences, forward and backward"]
    job()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as profiled:
        job()
    by = "self_cuda_time_total" if device != "cpu" else "self_cpu_time_total"
    print(f"\n```\n{profiled.key_averages().table(sort_by=by, row_limit=10, max_name_column_width=60)}```", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--edge", type=int, default=96, help="edge of a crop in voxels")
    parser.add_argument("--case-shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="tiny,base", help="networks whose training is timed")
    parser.add_argument("--phantoms", type=int, default=16, help="synthetic cases for the training")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}", flush=True)
    crops(args.device, args.edge, args.rounds)
    whole_cases(args.device, tuple(args.case_shape), args.rounds)
    longest_operations(args.device, args.edge)
    training(args.sizes.split(","), args.edge, args.phantoms)


if __name__ == "__main__":
    main()

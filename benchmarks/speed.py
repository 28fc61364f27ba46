"""Compare `tiny` with MONAI's networks in time and memory. Ratios are relative to SegResNet-16 in the same run.

`python benchmarks/speed.py` times a forward pass, and a forward with a backward pass, on a crop. `--whole-case` times
a complete case of 240 x 240 x 155 voxels. The networks take turns in each round, so that other work on the machine
slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from memory import measure_apart
from monai.inferers import sliding_window_inference
from peers import PEERS, make_network, num_parameters
from torch import Tensor
from torch.nn import functional

YARDSTICK = "SegResNet-16"
MASKS = {count: torch.tensor([[index < count for index in range(4)]]) for count in (4, 3, 2, 1)}


def in_turns(jobs: dict[str, Callable[[], None]], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Run all jobs in turn, and return the seconds of each job in each round. An extra first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if device != "cpu":
                # A GPU may still work when the call returns.
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def crop_jobs(
    names: list[str], edge: int, *, bf16: bool, compiled: bool, device: str = "cpu"
) -> dict[str, Callable[[], None]]:
    """For each network: a forward pass with one and with four sequences, and a training step with four."""
    volume = torch.randn(1, 4, edge, edge, edge, device=device).contiguous(memory_format=torch.channels_last_3d)
    labels = (torch.rand(1, 3, edge, edge, edge, device=device) > 0.5).float()
    kind = torch.device(device).type

    def forward(network: torch.nn.Module, mask: Tensor) -> Callable[[], None]:
        def job() -> None:
            network.eval()
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=bf16):
                network(pixel_values=volume, modality_mask=mask.to(device))

        return job

    def step(network: torch.nn.Module) -> Callable[[], None]:
        def job() -> None:
            network.train().zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                loss = network(pixel_values=volume, modality_mask=MASKS[4].to(device), labels=labels).loss
            loss.backward()

        return job

    networks = {name: make_network(name, edge).to(device) for name in names}
    if compiled:
        ours = [name for name in names if name not in PEERS]
        networks |= {f"{name} compiled": torch.compile(networks[name]) for name in ours}
    jobs = {}
    for name, network in networks.items():
        # MONAI's networks always read four channels, so fewer sequences need the same time.
        for count in (4, 1) if name not in PEERS else (4,):
            jobs[f"{name}, {count} sequence{'s' if count > 1 else ''}, forward"] = forward(network, MASKS[count])
        jobs[f"{name}, 4 sequences, forward and backward"] = step(network)
    return jobs


def print_times(seconds: dict[str, list[float]]) -> None:
    """Print the seconds of each job, and their ratio to those of `YARDSTICK`.

    Only jobs of the same kind are compared. The kind is the last part of a job's name, such as `forward`. If
    `YARDSTICK` has several jobs of a kind, the first one counts.
    """
    print("| what | minimum s | median s | ratio of minima |\n|---|---|---|---|")
    for name, values in seconds.items():
        kind = name.rsplit(", ", 1)[1]
        least = min(next(times for job, times in seconds.items() if job.startswith(YARDSTICK) and job.endswith(kind)))
        numbers = f"{min(values):.3g} | {statistics.median(values):.3g} | {min(values) / least:.2f}"
        print(f"| {name} | {numbers} |", flush=True)


def made_up_case(shape: tuple[int, int, int] = (240, 240, 155)) -> Tensor:
    """Case with noise in an ellipsoid as large as a brain, `(1, 4, D, H, W)`."""
    axes = [torch.linspace(-1, 1, edge) * edge for edge in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    brain = (z / 140) ** 2 + (y / 170) ** 2 + (x / 140) ** 2 < 1
    return torch.where(brain, torch.randn(1, 4, *shape), 0.0)


def case_jobs(size: str) -> dict[str, Callable[[], None]]:
    """Segment a complete case at 1 mm and at 1.5 mm, the spacing of `tiny`. `YARDSTICK` takes all windows."""
    volume = made_up_case()
    yardstick, ours = make_network(YARDSTICK, 64).eval(), make_network(size, 64).eval()

    def all_windows(volume: Tensor) -> None:
        with torch.no_grad():
            sliding_window_inference(
                volume, (64, 64, 64), 2, lambda crops: yardstick(pixel_values=crops).logits, 0.5, "gaussian"
            )

    jobs: dict[str, Callable[[], None]] = {}
    for millimetres in (1.0, 1.5):
        # Nearest, so that the voxels outside the brain stay zero.
        resampled = functional.interpolate(volume, scale_factor=1 / millimetres)
        where = f"at {millimetres:g} mm"
        jobs[f"{YARDSTICK} {where}, 4 sequences, whole case"] = partial(all_windows, resampled)
        for count, mask in MASKS.items():
            name = f"{size} {where}, {count} sequence{'s' if count > 1 else ''}, whole case"
            jobs[name] = partial(ours.segment_volume, resampled, mask)
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(["tiny", *PEERS]))
    parser.add_argument("--edge", type=int, default=96, help="edge of the crop in voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compiled", action="store_true", help="also time compiled networks; torch.compile takes minutes"
    )
    parser.add_argument(
        "--whole-case", action="store_true", help="time a complete case instead; a round takes minutes"
    )
    args = parser.parse_args()
    names = args.networks.split(",")
    if args.whole_case:
        print_times(in_turns(case_jobs(names[0]), args.rounds))
        return
    for bf16 in (False, True):
        print(f"\n{'bf16' if bf16 else 'float32'}, batch of one, {args.edge}^3, {torch.get_num_threads()} threads\n")
        print_times(in_turns(crop_jobs(names, args.edge, bf16=bf16, compiled=args.compiled), args.rounds))
    print("\n| network | million parameters | training memory, GB | ratio |\n|---|---|---|---|")
    least = measure_apart(YARDSTICK, args.edge, "float32") or float("nan")
    for name in names:
        gb = measure_apart(name, args.edge, "float32") or float("nan")
        print(f"| {name} | {num_parameters(make_network(name, args.edge)):.1f} | {gb:.2f} | {gb / least:.2f} |")


if __name__ == "__main__":
    main()

"""Compare the exported network with eager PyTorch in time, and with its eight-bit version in time and Dice.

`python benchmarks/exported.py --folder FOLDER` reads the output of `lora-moe-hgd export --format onnx` in FOLDER. The
runtimes take turns in each round, so that other work on the machine slows all of them alike. OpenVINO takes part if it
is installed. `int8` is the network quantised after training by onnxruntime (QDQ, weights per channel, calibrated on
phantoms). With `--cases DATA --names A,B` both networks also segment labelled cases.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.export import run as program
from lora_moe_hgd.masks import dice
from lora_moe_hgd.phantoms.phantom import make_phantom
from lora_moe_hgd.phantoms.style import NARROW

MASKS = {count: np.array([[index < count for index in range(4)]]) for count in (4, 1)}
SUBSETS = (("t1", "t1c", "t2", "flair"), ("t1c", "flair"))
PHANTOMS = 4
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def eager(checkpoint: str, memory_format: torch.memory_format) -> Run:
    """Network in PyTorch without a graph, which computes only the present sequences."""
    network, _ = lmh.load_checkpoint(checkpoint)

    def run(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(volume).contiguous(memory_format=memory_format)
        with torch.no_grad():
            return network(pixel_values=values, modality_mask=torch.from_numpy(mask)).logits.numpy()

    return run


def session_of(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load a network into onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def by_onnxruntime(path: Path, threads: int) -> Run:
    """Network as a graph in onnxruntime."""
    session = session_of(path, threads)
    return lambda volume, mask: session.run(None, {"pixel_values": volume, "modality_mask": mask})[0]


def by_openvino(path: Path, threads: int) -> Run | None:
    """Network as a graph in OpenVINO in float32; `None` if OpenVINO is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    # Without the precision hint, OpenVINO computes in bf16 if the processor supports it.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda volume, mask: compiled([volume, mask])[0]


class PhantomCrops(CalibrationDataReader):
    """Crops from the middle of phantoms, each with all sequences, and with one or two sequences."""

    def __init__(self, checkpoint: str, edge: int = 64) -> None:
        _, processor = lmh.load_checkpoint(checkpoint)
        crops = []
        for seed in range(PHANTOMS):
            volumes = make_phantom(500 + seed, spacing_mm=2.0, style=NARROW).volumes
            arrays = {name: volume.numpy() for name, volume in volumes.items()}
            values = processor(arrays, spacing_mm=2.0, allow_skull=True)["pixel_values"].numpy()
            # The processor pads to multiples of the token stride, so a crop of a smaller phantom is the complete
            # phantom.
            edges = [min(edge, size) for size in values.shape[2:]]
            middle = tuple(
                slice((size - own) // 2, (size + own) // 2) for size, own in zip(values.shape[2:], edges, strict=True)
            )
            few = np.array([[index in (1, seed % 4) for index in range(4)]])
            crops += [{"pixel_values": values[:, :, *middle], "modality_mask": mask} for mask in (MASKS[4], few)]
        self.crops = iter(crops)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.crops, None)


def quantise(source: Path, target: Path, checkpoint: str) -> None:
    """Write the network quantised to eight bits."""
    logging.getLogger().setLevel(logging.ERROR)
    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        PhantomCrops(checkpoint),
        per_channel=True,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )


def print_times(runs: dict[str, Run], edge: int, rounds: int) -> None:
    """Print wall time, processor time, and the largest difference of a logit from eager PyTorch."""
    volume = np.random.default_rng(0).normal(size=(1, 4, edge, edge, edge)).astype(np.float32)
    print("| runtime | sequences | minimum s | median s | processor s | ratio | logits differ by |")
    print("|---|---|---|---|---|---|---|")
    for count, mask in MASKS.items():
        logits = {name: run(volume, mask) for name, run in runs.items()}
        wall: dict[str, list[float]] = {name: [] for name in runs}
        processor: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                began = time.perf_counter(), time.process_time()
                run(volume, mask)
                wall[name].append(time.perf_counter() - began[0])
                processor[name].append(time.process_time() - began[1])
        for name in runs:
            cells = [min(wall[name]), statistics.median(wall[name]), min(processor[name])]
            shown = " | ".join(f"{value:.2f}" for value in cells)
            ratio = min(processor[name]) / min(processor["eager"])
            apart = np.abs(logits[name] - logits["eager"]).max()
            print(f"| {name} | {count} | {shown} | {ratio:.2f} | {apart:.0e} |", flush=True)


def print_scores(sessions: dict[str, onnxruntime.InferenceSession], settings: dict, cases: list[Path]) -> None:
    """Print the Dice with the experts' segmentation as means over the cases."""
    print("| network | sequences | WT | TC | ET |\n|---|---|---|---|---|")
    for subset in SUBSETS:
        scores: dict[str, list[list[float]]] = {name: [] for name in sessions}
        for folder in cases:
            case = find_case(folder)
            truth = read_case(case, labels=True).checked().regions
            images = {name: program.read(case.images[name]) for name in subset}
            for name, session in sessions.items():
                labels = np.asarray(program.segment(images, session, settings).dataobj)
                wt, tc, et = settings["labels"].values()
                found = [np.isin(labels, part) for part in ((wt, tc, et), (tc, et), (et,))]
                scores[name].append([dice(one, other) for one, other in zip(found, truth, strict=True)])
        for name, rows in scores.items():
            means = " | ".join(f"{mean:.3f}" for mean in np.mean(rows, axis=0))
            print(f"| {name} | {'+'.join(subset)} | {means} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder from `lora-moe-hgd export --format onnx`")
    parser.add_argument("--edge", type=int, default=96, help="edge of the crop in voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=Path, help="folder of labelled cases to segment as well")
    parser.add_argument("--names", help="cases to segment, separated by commas (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = json.loads((args.folder / "preprocessing.json").read_text())
    source = args.folder / "network.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "int8.onnx"
        quantise(source, small, settings["checkpoint"])
        print(f"\n{args.edge}^3, batch of one, {args.threads} threads")
        print(f"network.onnx {source.stat().st_size / 1e6:.1f} MB, int8 {small.stat().st_size / 1e6:.1f} MB\n")
        runs: dict[str, Run | None] = {
            "eager": eager(settings["checkpoint"], torch.contiguous_format),
            "eager, channels last": eager(settings["checkpoint"], torch.channels_last_3d),
            "onnxruntime": by_onnxruntime(source, args.threads),
            "OpenVINO": by_openvino(source, args.threads),
            "onnxruntime int8": by_onnxruntime(small, args.threads),
        }
        print_times({name: run for name, run in runs.items() if run is not None}, args.edge, args.rounds)
        if args.cases:
            names = args.names.split(",") if args.names else sorted(path.name for path in args.cases.iterdir())
            sessions = {name: session_of(path, args.threads) for name, path in (("float32", source), ("int8", small))}
            print()
            print_scores(sessions, settings, [args.cases / name for name in names])


if __name__ == "__main__":
    main()

"""Weights from minutes of one large GPU: phantoms are made, and networks trained on them, side by side.

Several processes make phantoms on the GPU and put them into a folder. Trainers read that folder as it grows, keep the
phantoms on the GPU as bytes, and cut, turn and change their crops there. A trainer may mix in real cases. What a
trainer leaves behind, its averaged weights in half precision, is below 16 MB.

    python lab/gpu_run.py pack OUT.npz --data ROOT --split ROOT/split.csv --no-tumour FOLDER   # before, on any machine
    python lab/gpu_run.py make STORE --first-seed 900000
    python lab/gpu_run.py train STORE --base tiny --out OUT --seconds 240 [--real OUT.npz --folds 1,2]
    python lab/gpu_run.py score OUT --real OUT.npz
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_moe_hgd import LoraMoeHgdConfig, LoraMoeHgdForSegmentation
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.image_processing_lora_moe_hgd import robust_z_score
from lora_moe_hgd.model.sliding_window import sliding_window_logits
from lora_moe_hgd.phantoms import anatomy as anatomies
from lora_moe_hgd.phantoms.contrast import paint
from lora_moe_hgd.phantoms.noise import chance
from lora_moe_hgd.phantoms.style import NARROW, WIDE
from lora_moe_hgd.phantoms.tumour import displace, random_tumour
from lora_moe_hgd.training.data.transforms import random_crop, random_flip, random_intensity
from lora_moe_hgd.training.schedule import draw_subset, learning_rate_factor

# Steps of a z-score that is kept in a byte; 10 is where the image processor clips.
BYTES_PER_Z = 12.7
MODALITIES = ("t1", "t1c", "t2", "flair")
SUBSETS = [[bool(code >> bit & 1) for bit in range(4)] for code in range(1, 16)]


def to_bytes(pixel_values: Tensor, regions: Tensor) -> Tensor:
    """`(M + 1, D, H, W)` int8: the sequences, zero outside the brain alone, and how many regions a voxel lies in."""
    values = (pixel_values * BYTES_PER_Z).round().clamp(-127, 127).to(torch.int8)
    values[(pixel_values != 0) & (values == 0)] = 1
    return torch.cat([values, regions.sum(dim=0, keepdim=True).to(torch.int8)])


def from_bytes(case: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences `(M, D, H, W)` float32 and nested regions `(3, D, H, W)` uint8."""
    count = case[-1]
    return case[:-1].float() / BYTES_PER_Z, torch.stack([count >= 1, count >= 2, count >= 3]).byte()


# --- Phantoms --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def phantom(seed: int, spacing_mm: float, device: str) -> Tensor:
    """A phantom as the image processor would prepare it, drawn on `device` itself, which is much faster."""
    with torch.device(device):
        generator = torch.Generator(device).manual_seed(seed)
        style = NARROW if chance(WIDE.narrow_share, generator) else WIDE
        anatomy = anatomies.random_anatomy(spacing_mm=spacing_mm, generator=generator, style=style)
        tumour = random_tumour(anatomy, generator=generator, style=style)
        volumes = paint(displace(anatomy, tumour), tumour, generator=generator, style=style)
        regions = tumour.regions & (volumes["t1"] != 0)
        inside = torch.nonzero(volumes["t1"])
        low, high = inside.amin(dim=0).tolist(), (inside.amax(dim=0) + 1).tolist()
        box = tuple(slice(start, end) for start, end in zip(low, high, strict=True))
        values = torch.stack([robust_z_score(volumes[name][box], clip=10.0) for name in MODALITIES])
        return to_bytes(values, regions[(slice(None), *box)])


def make(args: argparse.Namespace) -> None:
    """Make phantoms until `STORE/stop` appears."""
    torch.set_num_threads(1)
    args.store.mkdir(parents=True, exist_ok=True)
    if args.template:
        # The machine may lack nilearn, which has the built-in brain.
        arrays = np.load(args.template)
        tissues, ventricles = (
            torch.from_numpy(arrays[name]).float().to(args.device) for name in ("tissues", "ventricles")
        )
        brain = (tissues, ventricles, arrays["affine"])
        anatomies.template = lambda spacing_mm, label_map=None: brain
    for number in range(args.number):
        if (args.store / "stop").exists():
            break
        seed = args.first_seed + number * args.stride
        try:
            case = phantom(seed, args.spacing_mm, args.device).cpu().numpy()
        except Exception as error:
            print("phantom", seed, repr(error), flush=True)
            continue
        scratch = args.store / f".{seed}.npy"
        np.save(scratch, case)
        scratch.rename(args.store / f"phantom_{seed}.npy")


# --- Training --------------------------------------------------------------------------------------------------------


class Store:
    """Phantoms on the GPU, read from a folder by a thread while it fills."""

    def __init__(self, folder: Path, device: str, most: int) -> None:
        self.cases: list[Tensor] = []
        self.folder, self.device, self.most = folder, device, most
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        seen: set[Path] = set()
        while len(self.cases) < self.most:
            new = [path for path in sorted(self.folder.glob("phantom_*.npy")) if path not in seen]
            for path in new[: self.most - len(self.cases)]:
                seen.add(path)
                self.cases.append(torch.from_numpy(np.load(path)).to(self.device))
            time.sleep(0.5)


class Crops:
    """Batches of crops, made on a stream of its own while the network trains on the batch before."""

    def __init__(self, store: Store, real: list[Tensor], args: argparse.Namespace) -> None:
        self.store, self.real, self.args = store, real, args
        self.ready: queue.Queue = queue.Queue(maxsize=3)
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        device = self.args.device
        cuda = device.startswith("cuda")
        stream = torch.cuda.Stream() if cuda else None
        context = torch.cuda.stream(stream) if cuda else torch.no_grad()
        chooser = torch.Generator().manual_seed(self.args.seed)
        with torch.no_grad(), torch.device(device), context:
            generator = torch.Generator(device).manual_seed(self.args.seed)
            while True:
                batch = self._batch(generator, chooser)
                done = torch.cuda.Event() if cuda else None
                if done:
                    done.record()
                self.ready.put((batch, done))

    def _batch(self, generator: torch.Generator, chooser: torch.Generator) -> list[Tensor]:
        size = (self.args.edge,) * 3
        pixels, labels = [], []
        # As many volumes in each batch: for each number of them the convolutions are tuned anew.
        with torch.device("cpu"):
            masks = torch.zeros(0, 4)
            while masks.sum() != round(2.5 * self.args.batch_size):
                complete = torch.ones(4, dtype=torch.bool)
                masks = torch.stack([draw_subset(complete, 1.0, chooser) for _ in range(self.args.batch_size)])
        masks = masks.to(self.args.device)
        while len(pixels) < self.args.batch_size:
            cases = self.real if self.real and chance(self.args.real_share, chooser) else self.store.cases
            if not cases:
                time.sleep(0.2)
                continue
            number = int(torch.randint(len(cases), (), generator=chooser, device="cpu"))
            values, regions = from_bytes(cases[number])
            values, regions = random_crop(values, regions, size, generator)
            values, regions = random_flip(values, regions, generator)
            values = random_intensity(values, generator)
            kept = masks[len(pixels)]
            pixels.append(torch.where(kept[:, None, None, None], values, 0.0))
            labels.append(regions)
        return [torch.stack(pixels), masks, torch.stack(labels)]

    def next(self) -> list[Tensor]:
        batch, done = self.ready.get()
        if done:
            stream = torch.cuda.current_stream()
            stream.wait_event(done)
            for tensor in batch:
                tensor.record_stream(stream)
        return batch


def widened(base: Path, channels: int, noise: float = 0.05) -> LoraMoeHgdForSegmentation:
    """The network in `base` with `channels` at full resolution, which computes the same.

    Each channel is doubled, and what reads it is halved. A little noise makes the twins learn different things
    (Net2Net, https://arxiv.org/abs/1511.05641).
    """
    config = LoraMoeHgdConfig.from_pretrained(base)
    old = load_file(base / "model.safetensors")
    old = {name: value.float() for name, value in old.items()}
    before = config.full_resolution_channels
    if channels != before:
        config.full_resolution_channels = channels
        # Each group of a norm keeps its own channels.
        group = before // math.gcd(before, 4)
        times = channels // before
        index = torch.cat([torch.arange(start, start + group).repeat(times) for start in range(0, before, group)])
        for name in (
            "encoder.stem.full_resolution.weight",
            "encoder.stem.full_resolution.bias",
            "encoder.stem.full_resolution_norm.weight",
            "encoder.stem.full_resolution_norm.bias",
            "encoder.stem.availability.weight",
            "encoder.stem.availability.bias",
            "decoder.refine1.reduce.weight",
            "decoder.refine1.reduce.bias",
        ):
            old[name] = old[name][index]
        mix = old["decoder.refine1.mix.weight"]
        both = torch.cat([index, before + index])
        old["decoder.refine1.mix.weight"] = mix[:, both] / times
        generator = torch.Generator().manual_seed(0)
        for name in ("encoder.stem.full_resolution.weight", "decoder.refine1.reduce.weight"):
            value = old[name]
            old[name] = value + noise * value.std() * torch.randn(value.shape, generator=generator)
        value = old["decoder.refine1.mix.weight"]
        old["decoder.refine1.mix.weight"] = value + noise * value.std() * torch.randn(value.shape, generator=generator)
    config.dtype = torch.float32
    network = LoraMoeHgdForSegmentation(config)
    network.load_state_dict(old)
    return network.float()


def read_real(path: Path, folds: str) -> dict[str, np.ndarray]:
    """Cases of the folds, by name; `all` of role `fit`."""
    packed = np.load(path)
    wanted = folds.split(",")
    return {name: packed[name] for name in packed.files if name.split(":")[0] in wanted}


def optimizer_of(network: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    embeddings = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    decayed = [value for name, value in network.named_parameters() if value.ndim >= 2 and name not in embeddings]
    free = [value for name, value in network.named_parameters() if value.ndim < 2 or name in embeddings]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, fused=args.device.startswith("cuda"))


def train(args: argparse.Namespace) -> None:
    """Train for so many seconds from the first batch on, and save the averaged weights."""
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = bool(args.benchmark)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = widened(args.base, args.channels).to(args.device)
    nn.Module.to(network, memory_format=torch.channels_last_3d)
    real = (
        [torch.from_numpy(case).to(args.device) for case in read_real(args.real, args.folds).values()]
        if args.real
        else []
    )
    crops = Crops(Store(args.store, args.device, args.most), real, args)
    optimizer = optimizer_of(network, args)
    average = copy.deepcopy(network).eval()
    network.train()
    bf16 = args.device.startswith("cuda")
    batch = crops.next()
    start, step, waited, losses, skipped = time.perf_counter(), 0, 0.0, [], 0
    while (progress := (time.perf_counter() - start) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate_factor(progress, args.warmup)
        pixel_values, mask, labels = batch
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=bf16):
            output = network(
                pixel_values=pixel_values.contiguous(memory_format=torch.channels_last_3d),
                modality_mask=mask,
                labels=labels,
            )
        output.loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if math.isfinite(norm.item()):
            optimizer.step()
            step += 1
            decay = min(args.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        else:
            skipped += 1
        optimizer.zero_grad()
        losses.append(output.loss.item())
        if step % args.log_every == 0:
            since = time.perf_counter() - start
            print(
                f"{args.out.name} step {step} {since:.0f} s, {step * args.batch_size / since:.1f} crops/s, waited "
                f"{waited / since:.2f}, loss {np.mean(losses[-50:]):.4f}, phantoms {len(crops.store.cases)}, "
                f"skipped {skipped}",
                flush=True,
            )
        since = time.perf_counter()
        batch = crops.next()
        waited += time.perf_counter() - since
    save(average, args.out)
    print(f"{args.out.name} done: {step} steps of {args.batch_size}, loss {np.mean(losses[-100:]):.4f}", flush=True)


def save(network: LoraMoeHgdForSegmentation, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    network.config.to_json_file(folder / "config.json")
    state = {name: value.detach().cpu().bfloat16().contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


# --- Scores ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def score(args: argparse.Namespace) -> None:
    """Dice of all subsets on the packed cases, on their own grid, and false volume where there is no tumour."""
    network = widened(args.checkpoint, args.channels, 0.0).to(args.device).eval()
    nn.Module.to(network, memory_format=torch.channels_last_3d)
    rows = {}
    for name, case in read_real(args.real, args.folds).items():
        values, truth = from_bytes(torch.from_numpy(case).to(args.device))
        truth = truth.bool().cpu()
        for subset in SUBSETS:
            mask = torch.tensor([subset], device=args.device)
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.device.startswith("cuda")):
                logits = sliding_window_logits(network, values[None], mask, window=(args.edge,) * 3, batch_size=8)[0]
            found = (logits.sigmoid().cummin(dim=0).values > 0.5).cpu()
            word = "".join(str(int(bit)) for bit in subset)
            rows[f"{name}/{word}"] = (
                [dice(a, b) for a, b in zip(found.numpy(), truth.numpy(), strict=True)]
                if truth.any()
                else found.sum(dim=(1, 2, 3)).tolist()
            )
    args.out.write_text(json.dumps(rows))
    table = np.array([value for key, value in rows.items() if not key.startswith("ms")])
    full = np.array([value for key, value in rows.items() if key.endswith("1111") and not key.startswith("ms")])
    print(args.out.name, "15 subsets", table.mean(0).round(3), table.mean().round(4), "four", full.mean(0).round(3))
    print({key: value[0] for key, value in rows.items() if key.startswith("ms") and key[-4:] in ("1111", "0100")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("make")
    one.set_defaults(run=make)
    one.add_argument("store", type=Path)
    one.add_argument("--first-seed", type=int, required=True)
    one.add_argument("--stride", type=int, default=1)
    one.add_argument("--number", type=int, default=1_000_000)
    one.add_argument("--template", type=Path)
    two = commands.add_parser("train")
    two.set_defaults(run=train)
    two.add_argument("store", type=Path)
    two.add_argument("--base", type=Path, required=True)
    two.add_argument("--out", type=Path, required=True)
    two.add_argument("--seconds", type=float, required=True)
    two.add_argument("--real-share", type=float, default=0.5)
    two.add_argument("--lr", type=float, default=6e-4)
    two.add_argument("--warmup", type=float, default=0.03)
    two.add_argument("--batch-size", type=int, default=8)
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--ema-decay", type=float, default=0.995)
    two.add_argument("--log-every", type=int, default=50)
    two.add_argument("--benchmark", type=int, default=1)
    two.add_argument("--most", type=int, default=4000, help="phantoms that are kept on the GPU")
    three = commands.add_parser("score")
    three.set_defaults(run=score)
    three.add_argument("checkpoint", type=Path)
    three.add_argument("--out", type=Path, required=True)
    for command in (one, two, three):
        command.add_argument("--device", default="cuda")
        command.add_argument("--spacing-mm", type=float, default=1.5)
    for command in (two, three):
        command.add_argument("--real", type=Path)
        command.add_argument("--folds", default="1,2,3,4,5")
        command.add_argument("--channels", type=int, default=16)
        command.add_argument("--edge", type=int, default=80)
    args = parser.parse_args()
    args.run(args)
    sys.stdout.flush()
    # Threads that still make crops would abort the interpreter.
    os._exit(0)


if __name__ == "__main__":
    main()

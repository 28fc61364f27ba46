"""Whether a network can do without brain extraction: `python lab/heads_network.py COMMAND ...`.

`train-cases LABELS OUT` writes phantoms with a head, two for each label map, as case folders for `train.py`.
`test-phantoms LABELS OUT` makes one phantom with a head for each label map, and
`test-cases HEADS OUT CASE ...` puts the head of a real scan around the brain of each case, in turns those in the
folders below HEADS; both write all that scoring needs.
`score TESTS OUT KINDS CHECKPOINT ...` scores checkpoints on `stripped,head,extracted`, or on some of these;
`table OUT CHECKPOINT ...` prints the scores so far.

Everything lies on voxels of 1.5 mm, those of `tiny`. Air is set to zero, so a case is the head inside its skin. Needs
`tests` and `lab` on the path.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from phantom_heads import DRAWN, SPACING_MM, STYLE, anatomy_of, painted_head
from scan_road import load, with_head
from scipy import ndimage
from torch import nn

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.files import replacing
from lora_moe_hgd.masks import bounds, dice, largest_part
from lora_moe_hgd.model.case_rules import SettledCase
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES
from lora_moe_hgd.model.geometry import canonical_view, resample, resampled_shape
from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor, resample_brain
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.model.sliding_window import sliding_window_logits
from lora_moe_hgd.phantoms.anatomy import Anatomy
from lora_moe_hgd.phantoms.brain_maps import label_map_files
from lora_moe_hgd.phantoms.noise import uniform
from lora_moe_hgd.phantoms.phantom import Phantom, write_phantom_case
from lora_moe_hgd.phantoms.style import WIDE
from lora_moe_hgd.scans.brain_extraction import extract_brain
from lora_moe_hgd.scans.brains import agreed_brain
from lora_moe_hgd.subsets import parse_subset

Arrays = dict[str, np.ndarray]
# By kind of input, by subset: Dice of WT, TC and ET, and WT outside the brain in mL.
Scores = dict[str, dict[str, list[float]]]

SUBSETS = ("all", "t1c+flair", "t1c", "flair")
TRAIN_SEED, TEST_SEED = 7000, 7500
# The field of view ends this far below the brain.
NECK_MM = (10.0, 70.0)
# Air is darker than this share of bright tissue, as for `dark_rim`.
AIR = 0.2
# Share that windows have in common: half of the usual one, to save time, for all weights alike.
OVERLAP = 0.25
# Room for a head around the grid of a case, in voxels.
ROOM = 16
AFFINE = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])


def without_air(arrays: Arrays) -> np.ndarray:
    """Mask of a head: what is not dark in some sequence, closed and filled."""
    tissue = np.logical_or.reduce(
        [array > AIR * np.percentile(array[array > 0][::7], 90) for array in arrays.values()]
    )
    closed = ndimage.binary_closing(np.pad(largest_part(tissue), 4), iterations=3)
    return ndimage.binary_fill_holes(closed)[4:-4, 4:-4, 4:-4]


def heads_of(path: Path, seeds: Iterator[int], *, wide: bool) -> Iterator[tuple[Arrays, np.ndarray, np.ndarray]]:
    """Sequences, regions and brain of phantoms with the head of a label map, cropped to the head.

    Args:
        path: Label map.
        seeds: One for each phantom.
        wide: Whether phantoms with an odd seed have tumours and contrasts of the wide style.
    """
    generator = torch.Generator().manual_seed(0)
    whole, tissues = anatomy_of(path, generator)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        below = round(uniform(*NECK_MM, generator) / SPACING_MM)
        lowest = max(0, int(np.flatnonzero(whole.brain.numpy().any(axis=(0, 1)))[0]) - below)
        sides, front, height = bounds(((whole.tissues.sum(0) + tissues.sum(0)) > 0).numpy(), 0)
        box = sides, front, slice(max(lowest, height.start), height.stop)
        parts = whole.tissues[:, *box], whole.ventricles[box], whole.scar[box]
        head = Anatomy(*(part.contiguous() for part in parts), SPACING_MM, AFFINE)
        odd = seed % 2 == 1
        style = WIDE if wide and odd else STYLE
        drawn = DRAWN if odd and not wide else 1
        volumes, regions, brain, _ = painted_head(
            head, tissues[:, *box].contiguous(), generator, style=style, drawn=drawn
        )
        arrays = {name: volume.array for name, volume in volumes.items()}
        inside = without_air(arrays)
        yield {name: array * inside for name, array in arrays.items()}, regions, brain


def train_cases(labels: Path, out: Path) -> None:
    """Write two phantoms for each label map; one of them is of the wide style."""
    for number, path in enumerate(label_map_files(labels)):
        seeds = [TRAIN_SEED + 2 * number + odd for odd in (0, 1)]
        missing = (seed for seed in seeds if not (out / f"head_{seed}").exists())
        for seed, (arrays, regions, _) in zip(seeds, heads_of(path, missing, wide=True), strict=False):
            volumes = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
            write_phantom_case(Phantom(volumes, torch.from_numpy(regions), AFFINE), out / f"head_{seed}")
            print(seed, path.name, arrays["t1"].shape, regions.sum(axis=(1, 2, 3)), time.process_time(), flush=True)


def coarse_case(path: Path) -> tuple[Arrays, np.ndarray]:
    """Sequences and regions of a stripped case at `SPACING_MM`, with room around."""
    files = find_case(path)
    volumes = {name: load(file) for name, file in files.images.items()}
    labels = load(files.labelled())
    regions = LABEL_SCHEMES["brats2023"].decode(np.rint(canonical_view(labels.array, labels.affine)).astype(np.uint8))
    shape = resampled_shape(regions.shape[1:], (1.0,) * 3, (SPACING_MM,) * 3)
    arrays = {}
    for name, volume in volumes.items():
        canonical = canonical_view(np.maximum(volume.array, 0), volume.affine).copy()
        arrays[name] = np.pad(resample_brain(torch.from_numpy(canonical), shape).numpy(), ROOM)
    coarse = resample(torch.from_numpy(regions.copy()).float(), shape).numpy() >= 0.5
    return arrays, np.pad(coarse, ((0, 0), *((ROOM, ROOM),) * 3))


def save_test(path: Path, stripped: Arrays, head: Arrays, regions: np.ndarray, brain: np.ndarray) -> None:
    """Write a case without and with its head, and the brain that extraction finds in the head."""
    masks = {name: extract_brain(Volume(array, AFFINE), name) for name, array in head.items()}
    found, findings = agreed_brain(masks, "t1c")
    box = bounds(np.logical_or.reduce([array != 0 for array in head.values()]), 0)
    kept: dict[str, np.ndarray] = {"regions": regions[:, *box], "brain": brain[box], "found": found[box]}
    for kind, arrays in (("stripped", stripped), ("head", head)):
        for name, array in arrays.items():
            unit = np.median(array[brain])
            kept[f"{kind}-{name}"] = (array[box] / unit).astype(np.float16)
    with replacing(path) as scratch, open(scratch, "wb") as file:
        np.savez(file, **kept)
    lost = (regions[0] & ~found).sum() / max(regions[0].sum(), 1)
    print(path.stem, kept["brain"].shape, f"brain, Dice {dice(found, brain):.3f}, WT lost {lost:.4f}", flush=True)
    print([str(finding) for finding in findings], time.process_time(), flush=True)


def test_phantoms(labels: Path, out: Path) -> None:
    """Write one phantom for each label map."""
    for number, path in enumerate(label_map_files(labels)):
        seed = TEST_SEED + number
        target = out / f"phantom-{seed}.npz"
        if target.exists():
            continue
        for head, regions, brain in heads_of(path, iter([seed]), wide=False):
            stripped = {name: array * brain for name, array in head.items()}
            save_test(target, stripped, head, regions, brain)


def test_cases(heads: Path, out: Path, cases: list[Path]) -> None:
    """Write each case with the head of a scan, one in turns."""
    folders = sorted(folder for folder in heads.iterdir() if folder.is_dir())
    for number, path in enumerate(cases):
        target = out / f"case-{path.name.removeprefix('BraTS-SSA-').removesuffix('-000')}.npz"
        if target.exists():
            continue
        stripped, regions = coarse_case(path)
        brain = np.logical_or.reduce([array != 0 for array in stripped.values()])
        volumes = {name: Volume(array, AFFINE) for name, array in stripped.items()}
        head = {name: volume.array for name, volume in with_head(volumes, folders[number % len(folders)]).items()}
        inside = without_air(head) | brain
        head = {name: np.maximum(array, 0) * inside for name, array in head.items()}
        save_test(target, stripped, head, regions, brain)


@torch.inference_mode()
def regions_of(
    network: nn.Module, processor: LoraMoeHgdImageProcessor, arrays: Arrays
) -> Iterator[tuple[str, np.ndarray]]:
    """Regions from each subset, with small parts left out as for users."""
    inputs = processor(SettledCase(arrays, AFFINE, MODALITIES[0]))
    for subset in SUBSETS:
        mask = torch.tensor([parse_subset(subset)])
        with torch.autocast("cpu", torch.bfloat16):
            logits = sliding_window_logits(network, inputs["pixel_values"], mask, overlap=OVERLAP)
        yield subset, processor.post_process_regions(logits.float(), inputs["geometry"])[0][0]


def score(tests: Path, out: Path, kinds: list[str], checkpoints: list[str]) -> None:
    """Dice of each test case: stripped, with its head, and with the head after brain extraction.

    Scores of cases that were scored before are kept.
    """
    for path in sorted(tests.glob("*.npz")):
        test = np.load(path)
        truth, brain, found = test["regions"], test["brain"], test["found"]
        for checkpoint in checkpoints:
            target = scores_of(out, checkpoint) / f"{path.stem}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            values: Scores = json.loads(target.read_text()) if target.exists() else {}
            for kind in (kind for kind in kinds if kind not in values):
                source = "stripped" if kind == "stripped" else "head"
                inside = found if kind == "extracted" else np.ones_like(found)
                arrays = {name: test[f"{source}-{name}"].astype(np.float32) * inside for name in MODALITIES}
                network, processor = load_checkpoint(checkpoint)
                network.to(memory_format=torch.channels_last_3d)
                values[kind] = {}
                for subset, regions in regions_of(network, processor, arrays):
                    dices = [dice(*pair) for pair in zip(regions, truth, strict=True)]
                    outside = (regions[0] & ~brain).sum() * SPACING_MM**3 / 1000
                    values[kind][subset] = [*dices, float(outside)]
                with replacing(target) as scratch:
                    scratch.write_text(json.dumps(values))
                words = {subset: np.round(value, 2).tolist() for subset, value in values[kind].items()}
                print(path.stem, checkpoint, kind, words, f"{time.process_time():.0f} s", flush=True)


def scores_of(out: Path, checkpoint: str) -> Path:
    return out / checkpoint.strip("/").replace("/", "-")


def table(out: Path, checkpoints: list[str]) -> None:
    """Means over the cases that all checkpoints have: WT, TC, ET, and WT outside the brain in mL."""
    for group in ("case", "phantom"):
        names = [{path.name for path in scores_of(out, one).glob(f"{group}-*.json")} for one in checkpoints]
        common = sorted(set.intersection(*names))
        print(f"\n{group}: {', '.join(common)}\n\n| input | weights | mean | {' | '.join(SUBSETS)} | outside |")
        print("|---" * (4 + len(SUBSETS)) + "|")
        for kind in ("stripped", "head", "extracted"):
            for one in checkpoints:
                files = [json.loads((scores_of(out, one) / name).read_text()).get(kind) for name in common]
                if not all(files):
                    continue
                array = np.array([[file[subset] for subset in SUBSETS] for file in files])
                means = array.mean(axis=0)
                cells = [f"{array[..., :3].mean():.3f}"]
                cells += [f"{row[:3].mean():.3f} ({', '.join(f'{cell:.3f}' for cell in row[:3])})" for row in means]
                cells.append(f"{array[..., 3].mean():.1f}")
                print(f"| {kind} | {one} | {' | '.join(cells)} |")


def main(argv: list[str]) -> None:
    """Run one command."""
    command, *words = argv
    if command == "train-cases":
        train_cases(Path(words[0]), Path(words[1]))
    elif command == "test-phantoms":
        test_phantoms(Path(words[0]), Path(words[1]))
    elif command == "test-cases":
        test_cases(Path(words[0]), Path(words[1]), [Path(word) for word in words[2:]])
    elif command == "score":
        score(Path(words[0]), Path(words[1]), words[2].split(","), words[3:])
    elif command == "table":
        table(Path(words[0]), words[1:])
    else:
        raise ValueError(f"Unknown command {command}.")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What properties of the phantoms are worth on real cases, and whether a random search finds better ones: tables.

`python lab/phantom_changes.py --data ROOT --base CHECKPOINT` trains a checkpoint further on phantoms: as they
are, and with one property, or some together, changed at a time (with `--label-maps`, also with these brains beside the
built-in one). Each is trained with two seeds and scored on the cases in ROOT, which nothing is trained on: Dice, the
mean over regions, cases and subsets, on the network's own grid.

With `--search 12` it draws factors of the phantoms' levels, textures, sizes and noise instead, and trains on each
draw; then the mean of the best third, a step of the cross-entropy method, and the factors set by hand, all
of them 1, are trained on with two new seeds each, and scored on the cases of `--held-out`, which chose nothing.
Runs that are done are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from trials import score_cases

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.files import replacing
from lora_moe_hgd.model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.subsets import parse_subset
from lora_moe_hgd.training.config import read_config
from lora_moe_hgd.training.engine import train

ROOT = Path(__file__).parents[1]
SUBSETS = "all,t1c+flair,t1+t2,flair,t1c"
CROPS = 12
NECROSIS, OEDEMA, RIM = range(3)

# Fields of a `PhantomStyle` and their values.
Change = dict[str, Any]


def scaled(
    table: Mapping[str, Any], factor: float, names: Sequence[str] = MODALITIES, region: int | None = None
) -> dict[str, Any]:
    """A table by sequence, the values of some sequences, or of one region of theirs, times `factor`."""

    def times(values: Any) -> Any:
        array = np.array(values, dtype=float)
        array[... if region is None else region] *= factor
        return array.tolist()

    return {name: times(values) if name in names else values for name, values in table.items()}


WATER = ("t2", "flair")
CHANGES: dict[str, Change] = {
    "as they are": {},
    "borders of the oedema sharp, its level lower": {
        "border_mm": (1.0, 1.0),
        "fading": (0.1, 0.6),
        "lesion": scaled(scaled(NARROW.lesion, 0.67, ("t2",), OEDEMA), 0.7, ("flair",), OEDEMA),
    },
    "narrower ranges, no tumours low in the brain": {
        "low_share": 0.0,
        "border_mm": (1.2, 2.8),
        "fading": (0.2, 0.8),
        "vessels": (1.5, 6.0),
        "spots": (0.8, 4.0),
        "spots_share": 0.75,
        "lesion": {
            **NARROW.lesion,
            "t1": ((-3.1, -1.55, -0.4), (-1.5, -0.70, 0.0), (-1.6, -1.0, 0.1)),
            "t1c": ((-5.2, -1.3, 0.2), (-2.4, -1.8, -0.5), (2.8, 3.6, 4.8)),
        },
    },
    "brains as large as real ones": {"scale": (0.83, 1.03)},
    "outlines smooth": {"raggedness": 0.22, "spread_in_grey": (0.4, 0.4), "outline_mm": (2.5, 2.5)},
    "fainter vessels, fewer and fainter spots": {"vessels": (1.0, 4.0), "spots": (0.5, 2.5), "spots_share": 0.5},
    "hardly any bias field": {"bias": (0.0, 0.02)},
    "rims bright up to the border of their label": {"generosity": (0.0, 0.0)},
    "no signal 5 to 9 below the brain in all sequences": {"floor": dict.fromkeys(MODALITIES, (5.0, 9.0))},
    "no vessels, plexus and bright hull on T1c, no spots": {"vessels": (0.0, 0.0), "spots": (0.0, 0.0)},
    "no bone, no patches, no failed stripping, no surface coil": {
        "bone": dict.fromkeys(MODALITIES, (0.0, 0.0)),
        "patches": dict.fromkeys(MODALITIES, (0.0, 0.0)),
        "stripping_fails_share": 0.0,
        "coil_share": 0.0,
    },
    "no misregistration, thick slices, ringing, bias, gamma": {
        "misregistration_mm": 0.0,
        "thick_slices_share": 0.0,
        "ringing_share": 0.0,
        "bias": (0.0, 0.0),
        "gamma": (1.0, 1.0),
    },
    "no mass effect": {"mass_effect_mm": (0.0, 0.0)},
    "tumours of half the size": {
        "whole_tumour_ml": (NARROW.whole_tumour_ml[0] / 2, NARROW.whole_tumour_ml[1]),
    },
}
LABEL_MAPS = "and brains of the label maps"

# Standard deviation of the logarithm of each factor.
SPREADS = {
    "oedema, T2 and FLAIR": 0.25,
    "oedema, T1 and T1c": 0.4,
    "necrosis": 0.3,
    "rim, T1c": 0.25,
    "rim, T2 and FLAIR": 0.25,
    "texture": 0.4,
    "fluid": 0.25,
    "noise": 0.5,
    "grain": 0.5,
    "vessels and spots": 0.5,
    "patches at the hull": 0.4,
    "surface coil": 0.4,
    "size": 0.3,
    "share of the core": 0.3,
}
Factors = dict[str, float]


def with_factors(factors: Factors) -> Change:
    """The narrow style's tables times the factors."""
    lesion = NARROW.lesion
    for names, region, part in (
        (WATER, OEDEMA, "oedema, T2 and FLAIR"),
        (("t1", "t1c"), OEDEMA, "oedema, T1 and T1c"),
        (MODALITIES, NECROSIS, "necrosis"),
        (("t1c",), RIM, "rim, T1c"),
        (WATER, RIM, "rim, T2 and FLAIR"),
    ):
        lesion = scaled(lesion, factors[part], names, region)
    bright = factors["vessels and spots"]
    return {
        "lesion": lesion,
        "texture": scaled(NARROW.texture, factors["texture"]),
        "healthy": scaled(NARROW.healthy, factors["fluid"], region=0),
        "thermal": scaled(NARROW.thermal, factors["noise"]),
        "grain": scaled(NARROW.grain, factors["grain"]),
        "vessels": tuple(bright * value for value in NARROW.vessels),
        "spots": tuple(bright * value for value in NARROW.spots),
        "patches": scaled(NARROW.patches, factors["patches at the hull"]),
        "coil": tuple(factors["surface coil"] * value for value in NARROW.coil),
        "whole_tumour_ml": (factors["size"] * NARROW.whole_tumour_ml[0], NARROW.whole_tumour_ml[1]),
        "core_share": (factors["share of the core"] * NARROW.core_share[0], NARROW.core_share[1]),
    }


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def score(checkpoint: str | Path, data: Path, args: argparse.Namespace) -> list[float]:
    """Dice of each region on the real cases in `data`."""
    subsets = [parse_subset(name) for name in args.score_subsets.split(",")]
    return score_cases(
        load_checkpoint(checkpoint), find_cases(data), subsets, cache_dir=args.cache_dir, bf16=args.bf16
    )


def run_once(
    folder: Path, change: Change, seed: int, data: Path, args: argparse.Namespace, label_maps: str | None
) -> list[float]:
    """Train on phantoms under this change, and score; phantoms go away afterwards."""
    kept = folder / "scores.json"
    if not kept.is_file():
        cache = folder / "cache"
        # A run that was stopped left some.
        shutil.rmtree(folder, ignore_errors=True)
        words = [
            *("--config", str(ROOT / "configs/continue_phantom.yaml"), "--base", args.base, "--tracker", "none"),
            *("--phantoms", str(math.ceil(args.steps * 2 / CROPS)), "--val-phantoms", "1", "--epochs", "1"),
            *("--every", "1", "--subsets", "[all]", "--crops-per-case", str(CROPS), "--lr", str(args.lr)),
            *("--seed", str(10_000 * seed), "--num-workers", "0", "--cache-dir", str(cache)),
            *args.options,
            *("--output-dir", str(folder / "run"), *(("--label-maps", label_maps) if label_maps else ())),
        ]
        train(read_config(words), style=dataclasses.replace(NARROW, **change))
        shutil.rmtree(cache)
        values = score(folder / "run/last", data, args)
        with replacing(kept) as scratch:
            scratch.write_text(json.dumps(values))
    values = json.loads(kept.read_text())
    print(folder.name, f"{np.mean(values):.4f}", values, flush=True)
    return values


def to_markdown(rows: dict[str, list[list[float]]]) -> str:
    """One row a variant: means over the seeds, the mean of each, and what it differs from the first trained by."""
    heads = " | ".join(region.upper() for region in REGIONS)
    lines = [f"| phantoms | {heads} | mean | by seed | difference, by seed |", "|---" * 7 + "|"]
    by_seed = {name: np.mean(values, axis=1) for name, values in rows.items()}
    reference = next(values for values in by_seed.values() if len(values) > 1)
    for name, values in rows.items():
        cells = " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0))
        means = ", ".join(f"{value:.3f}" for value in by_seed[name])
        apart = ", ".join(f"{value:+.3f}" for value in by_seed[name] - reference) if len(values) > 1 else ""
        lines.append(f"| {name} | {cells} | {np.mean(values):.3f} | {means} | {apart} |")
    return "\n".join(lines)


def changes(names: Sequence[str], args: argparse.Namespace) -> None:
    rows: dict[str, list[list[float]]] = {"(not trained on)": [score(args.base, args.data, args)]}
    for seed in (1, 2):
        for name in names:
            change, label_maps = ({}, args.label_maps) if name == LABEL_MAPS else (CHANGES[name], None)
            folder = args.out / f"{slug(name)}-{seed}"
            rows.setdefault(name, []).append(run_once(folder, change, seed, args.data, args, label_maps))
    print(to_markdown(rows))


def search(args: argparse.Namespace) -> None:
    rows: dict[str, list[list[float]]] = {"(not trained on)": [score(args.base, args.held_out, args)]}
    draws: list[tuple[float, Factors]] = []
    for number in range(args.search):
        generator = random.Random(number)
        factors = {name: math.exp(generator.gauss(0, spread)) for name, spread in SPREADS.items()}
        folder = args.out / f"draw-{number}"
        draws.append(
            (float(np.mean(run_once(folder, with_factors(factors), 11, args.data, args, args.label_maps))), factors)
        )
    draws.sort(key=lambda draw: -draw[0])
    best = [factors for _, factors in draws[: max(1, args.search // 3)]]
    found = {name: math.exp(np.mean([math.log(factors[name]) for factors in best])) for name in SPREADS}
    for name, factors in (("by hand", dict.fromkeys(SPREADS, 1.0)), ("mean of the best third", found)):
        for seed in (12, 13):
            folder = args.out / f"{slug(name)}-{seed}"
            rows.setdefault(name, []).append(
                run_once(folder, with_factors(factors), seed, args.held_out, args, args.label_maps)
            )
    print("| factor | mean of the best third | best draw | worst draw |\n|---|---|---|---|")
    for name in SPREADS:
        print(f"| {name} | {found[name]:.2f} | {draws[0][1][name]:.2f} | {draws[-1][1][name]:.2f} |")
    print(f"\nDraws: {', '.join(f'{value:.3f}' for value, _ in draws)}\n\n{to_markdown(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases, to score on")
    parser.add_argument("--base", default="tiny", help="what is trained on")
    parser.add_argument("--label-maps", help="folder of label maps of brains: one more row, or those of the search")
    parser.add_argument(
        "--changes", help="only these rows, separated by semicolons; the first is what others differ from"
    )
    parser.add_argument("--held-out", type=Path, help="with --search: folder of the cases to score at the end")
    parser.add_argument("--search", type=int, default=0, help="number of draws; the table of changes when left out")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", default="1.0e-3")
    parser.add_argument("--bf16", action="store_true", help="score in bfloat16")
    parser.add_argument("--score-subsets", default=SUBSETS, help="subsets of the sequences to score")
    parser.add_argument("--cache-dir", default="~/.cache/lora-moe-hgd", help="of the real cases")
    parser.add_argument("--out", type=Path, default=Path("runs/phantom_changes"), help="folder for the runs")
    args, args.options = parser.parse_known_args()
    if args.search and args.held_out is None:
        parser.error("--search needs --held-out: what chose the factors cannot judge them")
    if args.search and args.changes:
        parser.error("--changes names rows of the other table; leave it out with --search")
    there = [*CHANGES, *([LABEL_MAPS] if args.label_maps else [])]
    names = args.changes.split(";") if args.changes else there
    if unknown := set(names) - set(there):
        parser.error(f"--changes must name some of {'; '.join(there)}; got {min(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    # Which rows are asked for changes none of them.
    settings = {name: str(value) for name, value in vars(args).items() if name != "changes"}
    about = args.out / "settings.json"
    if about.is_file() and json.loads(about.read_text()) != settings:
        raise ValueError(f"--out must be a new folder or one of the same options, got {args.out}: {about.read_text()}")
    about.write_text(json.dumps(settings))
    if args.search:
        search(args)
    else:
        changes(names, args)


if __name__ == "__main__":
    main()

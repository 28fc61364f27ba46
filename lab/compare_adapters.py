"""What cases of one's own are worth: adapters of several kinds, fitted to few and to more cases, as a table.

`python lab/compare_adapters.py --data ROOT` deals the cases in ROOT into folds. For each fold, each variant is
fitted to the first of the other cases and scored on those of the fold; Dice is the mean over subsets, on the network's
own grid. With `--held-out FOLDER` it is fitted to cases drawn from ROOT, `--draws` times, and scored on those there.
Adapters are scored at part of their strength, too: anywhere on the line from base to adapter.
Runs that are done are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from trials import Scored, score_cases

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.adapters.presets import TARGET_MODULES
from lora_moe_hgd.adapters.switching import blend
from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.files import replacing
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS
from lora_moe_hgd.subsets import EVERY_SUBSET, parse_subset, subset_name
from lora_moe_hgd_cli import run

ROOT = Path(__file__).parents[1]
# The convolutions of stem and decoder, too; PEFT cannot merge those of a single voxel.
STEM = r".*\.stem\.(downsample\.\d|blocks\.\d\.\d\.conv|patch_projection)"
DECODER = r".*decoder\.(refine\d\.mix|block\d\.conv)"
CONVOLUTIONS = f"{TARGET_MODULES}|{STEM}|{DECODER}"

VARIANTS: dict[str, list[str]] = {
    "lora": ["--adapter", "lora", "--lora", "{r: 16}"],
    "lora, DoRA": ["--adapter", "lora", "--lora", "{r: 16, use_dora: true}"],
    "lora, and convolutions": ["--adapter", "lora", "--lora", f"{{r: 16, target_modules: '{CONVOLUTIONS}'}}"],
    "lora+decoder": ["--adapter", "lora+decoder", "--lora", "{r: 8}"],
    "all weights": ["--adapter", "none", "--lora", "null"],
    "from scratch": ["--adapter", "none", "--lora", "null", "--base", "null", "--size", "tiny"],
}
EPOCHS = 10

Split = tuple[list[CaseFiles], list[CaseFiles]]


def splits_of(args: argparse.Namespace) -> list[Split]:
    """Cases to score, and those to fit to in their order, for each fold or draw."""
    cases = find_cases(args.data)
    if args.held_out is None:
        return folds_of(cases, args.folds)
    held_out = find_cases(args.held_out)
    if common := {case.folder.resolve() for case in cases} & {case.folder.resolve() for case in held_out}:
        raise ValueError(f"--held-out must hold none of the cases in --data, got {min(common).name}.")
    return [(held_out, random.Random(draw).sample(cases, len(cases))) for draw in range(args.draws)]


def folds_of(cases: list[CaseFiles], number: int) -> list[Split]:
    """Held-out and other cases of each fold; the others begin with those after the fold, in the order of names."""
    places = np.array_split(np.arange(len(cases)), number)
    return [
        ([cases[index] for index in place], [cases[(place[-1] + 1 + index) % len(cases)] for index in range(rest)])
        for place, rest in ((place, len(cases) - len(place)) for place in places)
    ]


def fit(cases: list[CaseFiles], words: list[str], folder: Path, args: argparse.Namespace, *, seed: int) -> None:
    """Train on exactly these cases, for `--steps` steps."""
    data = folder / "data"
    # A run that was stopped may have left those of another.
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    for case in cases:
        (data / case.case_id).symlink_to(case.folder.resolve())
    crops = math.ceil(args.steps * args.batch_size / (EPOCHS * len(cases)))
    run(
        "train",
        [
            *("--config", str(ROOT / "configs/lora_finetune.yaml"), "--base", args.base, "--tracker", "none"),
            *("--data", str(data), "--val-on-train", "true", "--subsets", "[all]", "--every", str(EPOCHS)),
            *("--epochs", str(EPOCHS), "--crops-per-case", str(crops), "--batch-size", str(args.batch_size)),
            *("--output-dir", str(folder / "run"), "--cache-dir", args.cache_dir, "--seed", str(seed)),
            *(*args.options, *words),
        ],
    )


def scores(scored: Scored, cases: list[CaseFiles], args: argparse.Namespace) -> list[float]:
    return score_cases(scored, cases, args.scored, cache_dir=args.cache_dir, bf16=args.bf16)


def to_markdown(rows: dict[tuple[str, int, float], list[list[float]]]) -> str:
    """One row a variant, number of cases and scale: means over the folds or draws, and the mean of each."""
    heads = " | ".join(region.upper() for region in REGIONS)
    lines = [f"| trained | cases | scale | {heads} | mean | by fold or draw |", "|---" * 8 + "|"]
    for (name, number, scale), values in rows.items():
        cells = " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0))
        by_fold = ", ".join(f"{np.mean(value):.3f}" for value in values)
        lines.append(f"| {name} | {number} | {scale:g} | {cells} | {np.mean(values):.3f} | {by_fold} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
    parser.add_argument("--base", default="tiny", help="what is fitted")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="which, separated by semicolons")
    parser.add_argument("--cases", default="1,3,6", help="numbers of cases to fit to")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--held-out", type=Path, help="folder of the cases to score, instead of folds")
    parser.add_argument("--draws", type=int, default=3, help="with --held-out: how often cases are drawn")
    parser.add_argument("--scales", default="0.5,0.75,1", help="of adapters, from the base, 0, to the adapter, 1")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="score in bfloat16")
    parser.add_argument("--cache-dir", default="~/.cache/lora-moe-hgd")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_adapters"), help="folder for the runs")
    parser.add_argument("--score-subsets", help="only these, such as all,t1c+flair; every subset when left out")
    args, args.options = parser.parse_known_args()
    named = args.score_subsets.split(",") if args.score_subsets else map(subset_name, EVERY_SUBSET)
    args.scored = [parse_subset(name) for name in named]
    splits, kind = splits_of(args), "fold" if args.held_out is None else "draw"
    rows: dict[tuple[str, int, float], list[list[float]]] = {}

    def add(key: tuple[str, int, float], values: list[float]) -> None:
        rows.setdefault(key, []).append(values)
        print(*key, values, flush=True)

    for held_out, _ in splits if args.held_out is None else splits[:1]:
        add(("nothing", 0, 0.0), scores(load_checkpoint(args.base), held_out, args))
    for name in args.variants.split(";"):
        for number in map(int, args.cases.split(",")):
            for fold, (held_out, others) in enumerate(splits):
                folder = args.out / f"{list(VARIANTS).index(name)}-{number}-{kind}-{fold}"
                kept = folder / "scores.json"
                if not kept.is_file():
                    fit(others[:number], VARIANTS[name], folder, args, seed=fold)
                    # What is trained from scratch is not on the way from the base.
                    scales = ["1"] if name == "from scratch" else args.scales.split(",")
                    found: dict[str, Any] = {
                        scale: scores(blend(args.base, folder / "run/last", scale=float(scale)), held_out, args)
                        for scale in scales
                    }
                    with replacing(kept) as scratch:
                        scratch.write_text(json.dumps(found))
                for scale, values in json.loads(kept.read_text()).items():
                    add((name, number, float(scale)), values)
    print("\n" + to_markdown(rows))


if __name__ == "__main__":
    main()

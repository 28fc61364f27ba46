"""`lora-moe-hgd adapters`: what adapters there are, one as a whole network, and which is better on some cases."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors import safe_open

from ..arguments import add_allowances, add_base, add_device, add_in_path, add_out_path, add_quiet
from ..evaluation import evaluate
from ..evaluation.compare import write_comparison
from ..files import new_folder
from ..loading import adapter_base, checkpoint_folder
from .card import validation_score
from .presets import preset_of
from .switching import merge_adapter

COLUMNS = ("adapter", "base", "preset", "rank", "trained parameters", "MB", "validation")


def main(argv: Sequence[str]) -> None:
    """List, merge or compare."""
    parser = argparse.ArgumentParser(description="List, merge and compare adapters.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="a table of the adapters in and below folders")
    listing.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="an adapter, a run, or many of them")
    merging = commands.add_parser("merge", help="write an adapter as a whole network")
    merging.add_argument("--checkpoint", required=True, help="folder or Hub id of the adapter")
    add_out_path(merging, help="new folder for the network and its processor")
    add_base(merging)
    merging.add_argument("--scale", type=float, default=1.0, help="how far from the base, 0, to the adapter, 1")
    comparing = commands.add_parser("compare", help="evaluate a base and adapters, and test their differences")
    add_in_path(comparing, help="folder of labelled cases", required=True)
    add_out_path(comparing, help="folder for the evaluations and the comparison")
    comparing.add_argument("--cases", help="only these, by name, separated by commas")
    comparing.add_argument("--subsets", help="only these, such as all,t1c+flair; every subset when left out")
    add_allowances(comparing)
    add_device(comparing)
    add_quiet(comparing)
    comparing.add_argument("base", metavar="BASE", help="checkpoint that the others are compared with")
    comparing.add_argument(
        "adapters", nargs="+", metavar="ADAPTER", help="folder or Hub id of an adapter or checkpoint"
    )
    args = parser.parse_args(argv)
    if args.command == "list":
        print(list_adapters(args.folders))
    elif args.command == "merge":
        with new_folder(args.out_path) as scratch:
            network, processor = merge_adapter(args.checkpoint, scale=args.scale, base=args.base)
            network.save_pretrained(scratch)
            processor.save_pretrained(scratch)
        print(f"The network is in {args.out_path}.")
    else:
        options = [word for name in ("cases", "subsets", "device") if (word := _option(name, vars(args)[name]))]
        options += [f"--allow-{name}" for name in ("skull", "partial") if vars(args)[f"allow_{name}"]]
        comparison, failed = compare_adapters(
            [args.base, *args.adapters],
            data=args.in_path,
            out=args.out_path,
            options=options,
            quiet=args.quiet,
        )
        if not args.quiet:
            print(comparison)
        if failed:
            raise SystemExit(1)


def list_adapters(folders: Sequence[Path]) -> str:
    """A Markdown table of the adapters in and below `folders`.

    Raises:
        ValueError: If there is none in or below one of them.
    """
    rows = []
    for folder in folders:
        # Folders that are still being written are hidden.
        found = [
            path.parent
            for path in sorted(folder.rglob("adapter_config.json"))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        if not found:
            raise ValueError(f"{folder} must hold adapters, but there is no adapter_config.json in or below it.")
        rows += [_row(path) for path in found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def compare_adapters(
    names: Sequence[str], *, data: Path, out: Path, options: Sequence[str], quiet: bool = False
) -> tuple[str, int]:
    """Evaluate each checkpoint in a folder of its own below `out`, and compare the others with the first.

    Args:
        names: Checkpoints; an evaluation that is there already goes on.
        data: Labelled cases.
        out: Also gets what `write_comparison` writes.
        options: Further ones of `lora-moe-hgd evaluate`.
        quiet: Print warnings and errors only.

    Returns:
        The comparison, and how often a case could not be scored.

    Raises:
        ValueError: If a checkpoint or the data cannot be used; checkpoints are looked for first.
    """
    for name in names:
        checkpoint_folder(name)
    folders = [out / f"{number}-{_short(name)}" for number, name in enumerate(names)]
    options = [*options, *(["--quiet"] if quiet else [])]
    failed = 0
    for name, folder in zip(names, folders, strict=True):
        if not quiet:
            print(f"\n{name}\n")
        failed += evaluate.score(["--checkpoint", name, "--in-path", str(data), "--out-path", str(folder), *options])
    return f"\n{write_comparison(folders, out)}", failed


def _row(folder: Path) -> list[str]:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} must hold adapter_model.safetensors beside its adapter_config.json, got none.")
    with safe_open(weights, framework="pt") as tensors:
        trained = sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    config = LoraConfig.from_pretrained(str(folder))
    ranks = sorted({config.r, *config.rank_pattern.values()})
    megabytes = f"{weights.stat().st_size / 1e6:.1f}"
    base = Path(adapter_base(folder))
    called = base.name if base.is_absolute() else str(base)
    rank = " to ".join(str(rank) for rank in dict.fromkeys((ranks[0], ranks[-1])))
    return [str(folder), called, preset_of(config), rank, str(trained), megabytes, validation_score(folder)]


def _option(name: str, value: str | None) -> str:
    return "" if value is None else f"--{name}={value}"


def _short(name: str) -> str:
    """Short name of a checkpoint: `site_a` for `runs/site_a/best/adapter`."""
    parts = [part for part in Path(name.partition("@")[0]).parts if part not in ("/", "best", "last", "adapter")]
    return parts[-1] if parts else "checkpoint"

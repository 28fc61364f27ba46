"""`lora-moe-hgd adapters`: list adapters, merge an adapter into its base, compare adapters on labelled cases."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors import safe_open

from ..arguments import CommandParser, add_allowances, add_base, add_device, add_in_path, add_out_path, add_quiet
from ..evaluation import command as evaluation
from ..evaluation.compare import write_comparison
from ..files import new_folder
from ..loading import adapter_base, checkpoint_folder
from .card import validation_score
from .presets import preset_of
from .switching import merge_adapter

COLUMNS = ("adapter", "base", "preset", "rank", "trained parameters", "MB", "validation")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="List, merge and compare adapters.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print a table of the adapters in folders and their subfolders")
    listing.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="folder that contains adapters, such as the folder of a run or of several runs",
    )
    merging = commands.add_parser("merge", help="merge an adapter into its base and write a complete network")
    merging.add_argument("--checkpoint", required=True, help="folder or Hub id of the adapter")
    add_out_path(merging, help="new folder for the network and its processor")
    add_base(merging)
    merging.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="strength of the adapter, from 0 (the base alone) to 1 (the full adapter, default)",
    )
    comparing = commands.add_parser(
        "compare", help="evaluate a base and adapters, and test the differences for significance"
    )
    add_in_path(comparing, help="folder of labelled cases", required=True)
    add_out_path(comparing, help="folder for the evaluations and the comparison")
    comparing.add_argument("--cases", help="names of the cases to score, separated by commas (default: all)")
    comparing.add_argument("--subsets", help=evaluation.SUBSETS_HELP)
    add_allowances(comparing)
    add_device(comparing)
    add_quiet(comparing)
    comparing.add_argument(
        "base",
        metavar="BASE",
        help="shipped name, folder or Hub id of the checkpoint with which the others are compared",
    )
    comparing.add_argument(
        "adapters", nargs="+", metavar="ADAPTER", help="shipped name, folder or Hub id of a network or an adapter"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """List, merge or compare adapters."""
    args = build_parser().parse_args(argv)
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
    """Make a Markdown table of the adapters in `folders` and their subfolders.

    Raises:
        ValueError: If one of the folders contains no adapter, and its subfolders contain none either.
    """
    rows = []
    for folder in folders:
        # Skip hidden folders: they are still being written.
        found = [
            path.parent
            for path in sorted(folder.rglob("adapter_config.json"))
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        if not found:
            raise ValueError(f"There is no adapter (adapter_config.json) in or below {folder}. Give another folder.")
        rows += [_row(path) for path in found]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def compare_adapters(
    names: Sequence[str], *, data: Path, out: Path, options: Sequence[str], quiet: bool = False
) -> tuple[str, int]:
    """Evaluate all checkpoints, and compare all later checkpoints with the first.

    Each evaluation has its own folder below `out`. If an evaluation was stopped, a new call continues it.

    Args:
        names: Shipped name, folder or Hub id of each checkpoint.
        data: Folder of labelled cases.
        out: Folder for the evaluations and the output of `write_comparison`.
        options: Further options of `lora-moe-hgd evaluate`.
        quiet: Print only warnings and errors.

    Returns:
        Text of the comparison, and the number of cases that could not be scored, added up over the checkpoints.

    Raises:
        ValueError: If a checkpoint or the data cannot be used. A missing checkpoint raises the error before the first
            evaluation.
    """
    for name in names:
        checkpoint_folder(name)
    folders = [out / f"{number}-{_short(name)}" for number, name in enumerate(names)]
    options = [*options, *(["--quiet"] if quiet else [])]
    failed = 0
    for name, folder in zip(names, folders, strict=True):
        if not quiet:
            print(f"\n{name}\n")
        failed += evaluation.score(["--checkpoint", name, "--in-path", str(data), "--out-path", str(folder), *options])
    return f"\n{write_comparison(folders, out)}", failed


def _row(folder: Path) -> list[str]:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(
            f"The adapter in {folder} has no weights (adapter_model.safetensors). Complete or remove this folder."
        )
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
    """Short name of a checkpoint, such as `site_a` for `runs/site_a/best/adapter`.

    The short name is the last part of the path that is not `best`, `last` or `adapter`.
    """
    parts = [part for part in Path(name.partition("@")[0]).parts if part not in ("/", "best", "last", "adapter")]
    return parts[-1] if parts else "checkpoint"

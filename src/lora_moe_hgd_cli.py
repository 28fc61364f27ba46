"""The console script `lora-moe-hgd`, and what the launchers in the repository's root call.

Not in the package: importing that makes the network known to transformers, which takes seconds that `--help` can do
without.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from importlib.metadata import version

# Each subcommand is the `main` of a module, imported only when asked for.
COMMANDS = {
    "segment": ("lora_moe_hgd.inference.command", "segment cases that may lack sequences"),
    "check": ("lora_moe_hgd.cases.check", "look through a cohort for what is wrong or odd"),
    "convert": ("lora_moe_hgd.cases.convert", "write cases in another family of names and label scheme"),
    "train": ("lora_moe_hgd.training.engine", "train on labelled cases or on phantoms"),
    "evaluate": ("lora_moe_hgd.evaluation.evaluate", "score a checkpoint over subsets of the sequences"),
    "push": ("lora_moe_hgd.hub.push", "put a network or an adapter on the Hub"),
    "pull": ("lora_moe_hgd.hub.pull", "fetch one from the Hub and check its files"),
    "plot": ("lora_moe_hgd.training.plot", "draw the curves and the router's load of a run"),
    "adapters": ("lora_moe_hgd.adapters.commands", "list, merge and compare adapters"),
    "phantom": ("lora_moe_hgd.phantoms.phantom", "write made-up cases with ground truth"),
    "info": ("lora_moe_hgd.info", "tell what is installed: versions, checkpoints, labels, device"),
}
# What most people want.
EXAMPLES = {
    "lora-moe-hgd segment --in-path CASE --out-path OUT": "segment a folder with some of T1, T1c, T2, FLAIR",
    "lora-moe-hgd check --in-path DATA": "see what is wrong with your cases before anything else",
    "lora-moe-hgd evaluate --in-path DATA --out-path OUT": "score a checkpoint on labelled cases, over all subsets",
}


def run(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand with the given or the process's arguments.

    Bad input and refused files end in one line on standard error and exit code 2.
    """
    from transformers.utils.logging import disable_progress_bar

    # A bar for every file that is loaded would hide the ones that tell of long work.
    disable_progress_bar()
    # A file name that the terminal cannot show must not end a command. Standard error is set up so by Python itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    module = importlib.import_module(COMMANDS[command][0])
    try:
        module.main(sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """Entry point of the console script."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"lora-moe-hgd {version('lora-moe-hgd')}")
        return
    if not words or words[0] not in COMMANDS:
        asked_for_help = bool(words) and words[0] in ("-h", "--help")
        if words and not asked_for_help:
            print(f"error: There is no command '{words[0]}'.\n", file=sys.stderr)
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        raise SystemExit(0 if asked_for_help else 2)
    # argparse takes the name in its help from here.
    sys.argv[0] = f"lora-moe-hgd {words[0]}"
    run(words[0], words[1:])


def _usage() -> str:
    lines = [f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    examples = [line for command, purpose in EXAMPLES.items() for line in (f"  {command}", f"      {purpose}")]
    more = "lora-moe-hgd COMMAND --help explains a command. lora-moe-hgd --version prints the version."
    return "\n".join(["usage: lora-moe-hgd COMMAND ...", "", *examples, "", "commands:", *lines, "", more])

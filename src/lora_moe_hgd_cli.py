"""The console script `lora-moe-hgd`.

The launchers in the root of the repository, such as `infer.py`, also use this module.

This module is outside the package, because importing the package registers the network with transformers, which takes
seconds. `lora-moe-hgd --help` does not import the package.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

# Each subcommand is the `main` of a module, whose `build_parser` defines its options. The module is imported only when
# its command is run.
COMMANDS = {
    "segment": ("lora_moe_hgd.inference.command", "segment cases that may lack sequences"),
    "prepare": ("lora_moe_hgd.scans.command", "make a case from DICOM files, or from images with the skull"),
    "check": ("lora_moe_hgd.cases.check", "check a cohort for errors and warnings"),
    "convert": ("lora_moe_hgd.cases.convert", "convert cases to other file names or another label scheme"),
    "train": ("lora_moe_hgd.training.engine", "train on labelled cases or on phantoms"),
    "evaluate": ("lora_moe_hgd.evaluation.command", "score a checkpoint over subsets of the sequences"),
    "push": ("lora_moe_hgd.hub.push", "upload a network or an adapter to the Hub"),
    "pull": ("lora_moe_hgd.hub.pull", "download a network or an adapter and verify it"),
    "plot": ("lora_moe_hgd.training.plot", "draw the training curves and expert load of a run"),
    "app": ("lora_moe_hgd.app.command", "segment cases on a page in the browser"),
    "export": ("lora_moe_hgd.export.command", "write a network that runs without this package"),
    "adapters": ("lora_moe_hgd.adapters.commands", "list, merge and compare adapters"),
    "phantom": ("lora_moe_hgd.phantoms.command", "write synthetic cases with ground truth"),
    "info": ("lora_moe_hgd.info", "show what is installed: versions, checkpoints, label schemes, device"),
    "completion": ("lora_moe_hgd.completion", "print a script that completes commands in your shell"),
}
# The most frequent uses.
EXAMPLES = {
    "lora-moe-hgd segment --in-path CASE --out-path OUT": "segment a folder with some of T1, T1c, T2, FLAIR",
    "lora-moe-hgd check --in-path DATA": "find errors in your cases before you use them",
    "lora-moe-hgd evaluate --in-path DATA --out-path OUT": "score a checkpoint on labelled cases, over all subsets",
}
# The most frequent uses of `segment`. `--help` shows them, and so does the command without arguments.
SEGMENT_USES = """most frequent uses:
  %(prog)s --in-path CASE --out-path OUT
      segment the folder CASE with some of T1, T1c, T2 and FLAIR, and write the results to OUT
  %(prog)s --in-path CASE --out-path OUT --sequences t1c,flair --html
      use only two sequences of the case, and also write a page with all slices
  %(prog)s --in-path COHORT --out-path OUT
      segment every case below the folder COHORT
  %(prog)s --t1c T1C.nii.gz --flair FLAIR.nii.gz --out-path OUT
      segment these files
"""


def run(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand with the arguments `argv`, or with the arguments of the command line if `argv` is `None`.

    Invalid input leads to a one-line message on standard error and exit code 2. `segment` without arguments also shows
    its most frequent uses.
    """
    words = sys.argv[1:] if argv is None else argv
    if command == "segment" and not words:
        _refuse_no_arguments()
    _set_up_pytorch()
    from transformers.utils.logging import disable_progress_bar

    # Transformers would show a progress bar for every loaded file, which hides the bars of the commands.
    disable_progress_bar()
    # A file name that the terminal cannot show must not stop a command. For standard error this is Python's default.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    module = importlib.import_module(COMMANDS[command][0])
    try:
        module.main(words)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        raise SystemExit(130) from None


def _set_up_pytorch() -> None:
    """Set environment variables that make PyTorch faster on a CPU, before PyTorch is imported.

    By default, waiting threads of OpenMP run a busy loop. Here, they give their core to other programs, unless the
    user has set another policy. Two programs on the same cores then take a third of the time (lab/busy_cores.py).
    Large tensors get huge pages of memory, if Linux offers them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main() -> None:
    """Entry point of the console script."""
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"lora-moe-hgd {version('lora-moe-hgd')}")
        return
    if not words or words[0] not in COMMANDS:
        asked_for_help = bool(words) and words[0] in ("-h", "--help")
        if words and not asked_for_help:
            close = difflib.get_close_matches(words[0], COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            print(f"error: There is no command '{words[0]}'.{hint}\n", file=sys.stderr)
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        raise SystemExit(0 if asked_for_help else 2)
    # `argparse` shows this name in its help.
    sys.argv[0] = f"lora-moe-hgd {words[0]}"
    run(words[0], words[1:])


def _refuse_no_arguments() -> NoReturn:
    """Print the most frequent uses of `segment` and exit. The package is not imported, because that takes seconds."""
    program = Path(sys.argv[0]).name
    print(f"error: Name a case and a folder for the results.\n\n{SEGMENT_USES}" % {"prog": program}, file=sys.stderr)
    print(f"{program} --help lists all options.", file=sys.stderr)
    raise SystemExit(2)


def _usage() -> str:
    lines = [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    examples = [line for command, purpose in EXAMPLES.items() for line in (f"  {command}", f"      {purpose}")]
    more = "lora-moe-hgd COMMAND --help explains a command. lora-moe-hgd --version prints the version."
    return "\n".join(["usage: lora-moe-hgd COMMAND ...", "", *examples, "", "commands:", *lines, "", more])

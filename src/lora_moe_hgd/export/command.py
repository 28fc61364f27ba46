"""`lora-moe-hgd export`: write a checkpoint as a file that runs without this package."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import CommandParser, add_checkpoint, add_out_path, add_quiet
from ..files import new_folder
from ..loading import checkpoint_folder, load_checkpoint, weights_digest
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.sliding_window import BACKGROUND_LOGIT, OVERLAP, WINDOW
from .graph import check_graph, save_onnx, save_torch

SAVE = {"torch": ("network.pt2", save_torch), "onnx": ("network.onnx", save_onnx)}
RUN = Path(__file__).with_name("run.py")
# Words at the end of a file name by which `run.py` recognises a sequence.
FILE_NAMES = {
    "t1": ["t1", "t1n", "t1w"],
    "t1c": ["t1c", "t1ce", "t1gd"],
    "t2": ["t2", "t2w"],
    "flair": ["flair", "t2f"],
}
# Earlier words of a file name that make the last word unclear, as in `ce-gadolinium_T1w`, `flair_to_t1` and
# `ax_t2_flair`.
UNCLEAR_WORDS = [
    *("ce", "gd", "gad", "gado", "gadolinium", "contrast", "post", "pre", "km", "to", "reg"),
    *("sub", "t1", "t1n", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "t2f"),
]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Write a network that runs without this package. The export takes a minute, and compares the "
        "logits of the written network with those of the checkpoint for every subset of the sequences. Research use, "
        "not a medical device."
    )
    add_checkpoint(parser)
    add_out_path(parser, help="new folder for the network and the settings of the preprocessing")
    parser.add_argument(
        "--format",
        choices=SAVE,
        required=True,
        help="torch: network.pt2 for torch.export.load; onnx: network.onnx for onnxruntime, and the program run.py, "
        "which segments a case with network.onnx",
    )
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Export a checkpoint. An adapter is merged into its base before the export."""
    args = build_parser().parse_args(argv)
    difference = export(args.checkpoint, args.out_path, form=args.format)
    if not args.quiet:
        print(
            f"The network is in {args.out_path}. Its logits differ from those of the checkpoint by at most "
            f"{difference:.1e}."
        )


def export(checkpoint: str | Path, folder: Path, *, form: str) -> float:
    """Write a checkpoint's network, `preprocessing.json` and, for ONNX, `run.py` into a new folder.

    Args:
        checkpoint: Network or adapter: shipped name, folder or Hub id. An adapter is merged into its base.
        folder: New folder, which is created only after the written network has been checked.
        form: Format of the network, `torch` or `onnx`.

    Returns:
        Largest absolute difference between the logits of the written network and those of the checkpoint.

    Raises:
        ValueError: If the checkpoint cannot be used, if a package for the export is missing, or if the written network
            gives other logits than the checkpoint.
        OSError: If the folder exists or cannot be written.
    """
    network, processor = load_checkpoint(checkpoint)
    if form == "onnx":
        _check_labels(processor)
    name, save = SAVE[form]
    with new_folder(folder) as scratch:
        difference = check_graph(save(network, scratch / name), network)
        settings = {
            "checkpoint": str(checkpoint),
            "weights_digest": weights_digest(checkpoint_folder(checkpoint)),
            "package": f"lora-moe-hgd {version('lora-moe-hgd')}",
            **preprocessing(processor),
        }
        (scratch / "preprocessing.json").write_text(json.dumps(settings, indent=2) + "\n")
        if form == "onnx":
            shutil.copy(RUN, scratch / RUN.name)
    return difference


def preprocessing(processor: LoraMoeHgdImageProcessor) -> dict[str, Any]:
    """Settings that `run.py` needs to convert a case to network input, and logits to a label map."""
    task, scheme = processor.segmentation_task, processor.scheme()
    return {
        "modalities": processor.modalities,
        "file_names": {name: list(words) or FILE_NAMES[name] for name, words in task.sequences.items()},
        "unclear_words": UNCLEAR_WORDS,
        "target_spacing_mm": processor.target_spacing_mm,
        "intensity_clip": processor.intensity_clip,
        "window": list(WINDOW),
        "overlap": OVERLAP,
        "background_logit": BACKGROUND_LOGIT,
        "least_part": processor.least_part,
        "labels": dict(zip(task.regions, scheme.written.values(), strict=True)),
        "around": task.around,
    }


def _check_labels(processor: LoraMoeHgdImageProcessor) -> None:
    """Check that the label scheme has only one label per region, because `run.py` can write no other labels.

    Raises:
        ValueError: If two regions overlap, neither is inside the other, and the overlap has a label of its own.
    """
    scheme = processor.scheme()
    labels = scheme.encode(scheme.decode(np.array(sorted(scheme.labels))))
    if overlaps := sorted({*labels.tolist()} - {0, *scheme.written.values()}):
        raise ValueError(
            f"Label {overlaps[0]} of the scheme {scheme.name} is the overlap of two regions, of which neither is "
            "inside the other. `run.py` cannot write this label. Export with --format torch."
        )

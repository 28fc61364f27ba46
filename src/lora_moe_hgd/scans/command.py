"""`lora-moe-hgd prepare`: make a case from raw images, and write the folder of the case."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..arguments import SEQUENCES_HELP, CommandParser, add_in_path, add_out_path, add_quiet
from ..cases.case_files import PREPARED, refuse_other_case
from ..model.configuration_lora_moe_hgd import MODALITIES
from ..sequence_names import parse_sequences
from .options import add_scan_options
from .prepared import check_output
from .raw import require_extra


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Register raw images of a head (DICOM, NIfTI or NRRD) to each other, resample them to one grid, "
        "and remove the skull. The output is the folder of a case. Every other command can read this folder."
    )
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="RAW OUT", help="the same as --in-path RAW --out-path OUT"
    )
    add_in_path(
        parser,
        help="folder, zip file or DICOMDIR with DICOM files, or the folder of a case with NIfTI or NRRD files that "
        "still show the skull",
    )
    add_out_path(parser, required=False, help="folder for the case")
    parser.add_argument("--sequences", metavar="NAMES", help=SEQUENCES_HELP)
    parser.add_argument(
        "--reference",
        choices=MODALITIES,
        help="sequence whose grid the case gets (default: the first of t1c, t1, flair and t2 that has about the "
        "smallest voxels of the case)",
    )
    add_scan_options(parser)
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Prepare one study."""
    args = build_parser().parse_args(argv)
    places = [*args.places]
    source = args.in_path or (places.pop(0) if places else None)
    target = args.out_path or (places.pop(0) if places else None)
    if source is None or target is None or places:
        raise ValueError("Give the raw images and the folder for the case: lora-moe-hgd prepare RAW OUT.")
    if target.resolve() == source.resolve():
        raise ValueError(f"--out-path is the folder of the raw images: {source}. Choose another folder for the case.")
    check_output(target)
    require_extra()
    # Imported only here, because these modules need the packages of the extra `scans`.
    from .choice import parse_series
    from .finished import inputs_fingerprint, is_finished
    from .prepare import ScanOptions, prepare
    from .steps import steps_in

    options = ScanOptions(
        study=args.study,
        series=parse_series(args.series),
        sequences=None if args.sequences is None else parse_sequences(args.sequences, MODALITIES),
        reference=args.reference,
        brain_extraction=args.brain_extraction,
        brain_mask=args.brain_mask,
        case_id=args.case_id,
    )
    say = (lambda line: None) if args.quiet else partial(print, flush=True)
    following = f"Next: {shlex.join(['lora-moe-hgd', 'segment', '--in-path', str(target)])} --out-path RESULTS"
    made_from = inputs_fingerprint(source, target, options)
    if is_finished(target, made_from):
        say(
            f"{target} already contains this case, made from the same files with the same options. Nothing was done. "
            f"To prepare the case again, delete {target / PREPARED}."
        )
        say(following)
        return
    with steps_in(target) as steps, tempfile.TemporaryDirectory(prefix="lora-moe-hgd-") as scratch:
        prepared = prepare(
            source,
            options,
            Path(scratch),
            steps=steps,
            check_name=partial(refuse_other_case, target / PREPARED),
            say=say,
        )
        for finding in prepared.findings:
            print(f"warning: {finding}", file=sys.stderr)
        replace(prepared, report={**prepared.report, "made_from": made_from}).save(target)
    names = ", ".join(prepared.images)
    say(f"The case is in {target}. All its sequences ({names}) have the grid of {prepared.reference}.")
    say(following)

"""`lora-moe-hgd app`: serve a web page that segments cases."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from ..arguments import CommandParser, add_checkpoint, add_device
from ..files import install_command

# Default of `--max-upload-mb`. A study of a head has 50 to 500 MB.
MAX_UPLOAD_MB = 1000


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(
        description="Serve a web page that segments cases: upload files, check the recognised sequence of each file, "
        "look at the result, and download it. No data leave this computer. Research use only. This is not a medical "
        "device."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this computer)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add_checkpoint(parser)
    add_device(parser)
    parser.add_argument(
        "--max-upload-mb",
        type=int,
        default=MAX_UPLOAD_MB,
        metavar="MB",
        help=f"largest total size of the files of a case, in megabytes (default: {MAX_UPLOAD_MB})",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Serve the page until the process is stopped."""
    args = build_parser().parse_args(argv)
    if args.max_upload_mb < 1:
        raise ValueError(f"--max-upload-mb must be at least 1, got {args.max_upload_mb}.")
    require_extra()
    # Import it only here, because it needs the extra and takes seconds.
    from .server import AppOptions, serve

    serve(
        AppOptions(args.checkpoint, base=args.base, device=args.device, max_upload_mb=args.max_upload_mb),
        host=args.host,
        port=args.port,
    )


def require_extra() -> None:
    """Check that the pip extra `app` is installed.

    Raises:
        ValueError: If the extra is missing. The error message names the command that installs it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"The app needs the package gradio. Install it: {install_command('app')}")

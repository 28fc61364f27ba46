"""Download a network or adapter from the Hub and verify its checksums."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from ..arguments import CommandParser, add_out_path
from ..files import new_folder
from ..loading import hub_errors
from .checksums import CARD, SUMS, check_sums, read_sums


def pull(repo: str, out: Path, *, revision: str | None = None) -> str:
    """Download a repository to the new folder `out`, and return the downloaded commit.

    If the download fails or a checksum does not match, `out` is not created.

    Raises:
        ValueError: If `out` exists, if the download fails, if the repository has no checksums, or if a checksum does
            not match.
    """
    if out.exists():
        raise ValueError(f"--out-path must be a new folder, but {out} exists already.")
    with hub_errors(repo):
        commit = str(HfApi().model_info(repo, revision=revision).sha)
        try:
            sums = read_sums(Path(hf_hub_download(repo, SUMS, revision=commit)))
        except EntryNotFoundError as error:
            raise ValueError(
                f"{repo} has no {SUMS}, so its files cannot be verified. To download the files without verification, "
                f"run `hf download {repo}`."
            ) from error
        # Download only files with a checksum. Other files cannot be verified.
        found = Path(snapshot_download(repo, revision=commit, allow_patterns=[*sums, SUMS, CARD]))
    check_sums(found, sums)
    with new_folder(out) as scratch:
        for name in [*sums, SUMS, *([CARD] if (found / CARD).is_file() else [])]:
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, target)
    return commit


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Download a network or an adapter from the Hub and verify its checksums.")
    parser.add_argument("repo", help="name of the repository, such as me/brats-tiny")
    add_out_path(parser, help="new folder for the downloaded files")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Pull a repository."""
    args = build_parser().parse_args(argv)
    commit = pull(args.repo, args.out_path, revision=args.revision)
    print(f"Commit {commit} of {args.repo} is in {args.out_path}. All checksums are correct.")

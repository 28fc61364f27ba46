"""Fetch what `push` put on the Hub, and see that it is whole."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from ..arguments import add_out_path
from ..files import new_folder
from .checksums import CARD, SUMS, check_sums, read_sums


def pull(repo: str, out: Path, *, revision: str | None = None) -> str:
    """Bring a repository to the folder `out`, which appears whole or not at all; return the commit.

    Raises:
        ValueError: If `out` is there already, or the repository has no checksums or does not agree with them.
    """
    if out.exists():
        raise ValueError(f"--out-path must be a new folder, and {out} is there already.")
    commit = str(HfApi().model_info(repo, revision=revision).sha)
    try:
        sums = read_sums(Path(hf_hub_download(repo, SUMS, revision=commit)))
    except EntryNotFoundError as error:
        raise ValueError(
            f"{repo} has no {SUMS}, so that it cannot be checked; `hf download {repo}` fetches it unchecked."
        ) from error
    # Nothing but what was summed up is fetched: a repository may hold more than anybody vouches for.
    found = Path(snapshot_download(repo, revision=commit, allow_patterns=[*sums, SUMS, CARD]))
    check_sums(found, sums)
    with new_folder(out) as scratch:
        for name in [*sums, SUMS, *([CARD] if (found / CARD).is_file() else [])]:
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, target)
    return commit


def main(argv: Sequence[str]) -> None:
    """Pull a repository."""
    parser = argparse.ArgumentParser(description="Fetch a network or an adapter from the Hub and check its files.")
    parser.add_argument("repo", help="name of the repository, such as me/brats-tiny")
    add_out_path(parser, help="new folder to put it in")
    parser.add_argument("--revision", help="branch, tag or commit; main if left out")
    args = parser.parse_args(argv)
    commit = pull(args.repo, args.out_path, revision=args.revision)
    print(f"{args.repo} at {commit}: every file has its checksum. It is in {args.out_path}.")

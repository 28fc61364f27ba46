"""Write a folder that can be uploaded as a Hugging Face Space: the files of `spaces/`, and the wheel of this package.

Run `make build` first, then `python scripts/make_space.py --repo me/tumours --out outputs/space`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = "lora-moe-hgd[app,scans]"


def make_space(repo: str, wheel: Path, out: Path) -> None:
    """Write the folder.

    Args:
        repo: Name of the Space, `OWNER/NAME`. It must be public, because it installs the wheel from its own address.
        wheel: Wheel of this package.
        out: Folder that does not exist.
    """
    shutil.copytree(ROOT / "spaces", out, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(wheel, out / wheel.name)
    listed = (out / "requirements.txt").read_text()
    address = f"https://huggingface.co/spaces/{repo}/resolve/main/{wheel.name}"
    (out / "requirements.txt").write_text(listed.replace(REQUIREMENT, f"{REQUIREMENT} @ {address}"))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder and print how to upload it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, help="name of the Space, such as me/tumours")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for its files")
    args = parser.parse_args(argv)
    validate_repo_id(args.repo)
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise SystemExit("There is no wheel in dist. Run `make build` first.")
    make_space(args.repo, wheels[-1], args.out)
    print(f"hf upload {args.repo} {args.out} --repo-type space")


if __name__ == "__main__":
    main()

"""Fetch the pinned version of NiiVue from npm into the package, or pin another version.

`version.json` in the folder of the copy pins the version and the hash of this version in the npm registry (`npm view
@niivue/niivue@0.69.0 dist.integrity`). Without arguments, the script fetches the pinned version again, which must give
the same file. NiiVue's package on npm has no licence file, so the file `LICENSE` is maintained by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAME = "@niivue/niivue"
BUNDLE = "dist/niivue.umd.js"
FOLDER = Path(__file__).resolve().parents[1] / "src/lora_moe_hgd/inference/pages/niivue"


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch NiiVue, check its hash, and write `niivue.umd.js`, `LICENSES-bundled.txt` and `version.json`.

    Raises:
        SystemExit: If the content from npm does not have the pinned hash.
    """
    pinned = json.loads((FOLDER / "version.json").read_text())
    parser = argparse.ArgumentParser(description="Fetch NiiVue from npm into the package.")
    parser.add_argument("--version", default=pinned["version"], help="version to fetch (default: %(default)s)")
    parser.add_argument("--integrity", default=pinned["integrity"], help="hash of this version in the npm registry")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]
        subprocess.run([*words, "--prefix", scratch, f"{NAME}@{args.version}"], check=True)
        lock = json.loads((Path(scratch) / "package-lock.json").read_text())["packages"]
        if (found := lock[f"node_modules/{NAME}"]["integrity"]) != args.integrity:
            raise SystemExit(f"{NAME} {args.version} has the hash {found}, not {args.integrity}.")
        modules = Path(scratch) / "node_modules"
        bundle = (modules / NAME / BUNDLE).read_bytes()
        sha256 = hashlib.sha256(bundle).hexdigest()
        if args.version == pinned["version"] and sha256 != pinned["sha256"]:
            raise SystemExit(f"{BUNDLE} of {NAME} {args.version} has the SHA-256 {sha256}, not {pinned['sha256']}.")
        names = [name for name, entry in lock.items() if name and not entry.get("optional")]
        licences = [_licence(modules, name.removeprefix("node_modules/"), lock[name]) for name in names]
    (FOLDER / "niivue.umd.js").write_bytes(bundle)
    (FOLDER / "LICENSES-bundled.txt").write_text("\n\n".join(filter(None, licences)) + "\n", encoding="utf-8")
    pins = {"version": args.version, "integrity": args.integrity, "sha256": sha256}
    (FOLDER / "version.json").write_text(json.dumps(pins, indent=2) + "\n")


def _licence(modules: Path, name: str, entry: dict[str, str]) -> str | None:
    """Return the licence of a package in the bundle; `None` for NiiVue itself."""
    if name == NAME:
        return None
    (path,) = [path for path in (modules / name).iterdir() if path.stem.lower() == "license"]
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8").strip().splitlines()]
    return f"{name} {entry['version']}, {entry['license']}\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()

"""Move an adapter to a base that was trained further: `python lab/move_adapter.py OLD_BASE NEW_BASE ADAPTER OUT`.

The moved adapter adds to the new base what the adapter added to the old one. Low-rank matrices stay as they are.
Weights that the adapter holds in full become `adapter + (new base - old base)`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from lora_moe_hgd.adapters.saving import record_base

WEIGHTS = "adapter_model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old_base", "new_base", "adapter", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    old, new = (load_file(folder / "model.safetensors") for folder in (args.old_base, args.new_base))
    shutil.copytree(args.adapter, args.out)
    tensors = load_file(args.adapter / WEIGHTS)
    for name, value in tensors.items():
        if ".lora_" not in name:
            own = name.removeprefix("base_model.model.")
            tensors[name] = (value.float() + new[own].float() - old[own].float()).bfloat16()
    save_file(tensors, args.out / WEIGHTS, {"format": "pt"})
    record_base(args.out, args.new_base.name, place=args.out)


if __name__ == "__main__":
    main()

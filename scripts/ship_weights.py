"""Put a trained checkpoint into the package: `python scripts/ship_weights.py runs/pretrain_phantom/best tiny`.

Weights are rounded to bfloat16 to halve the file; `from_pretrained` widens them to float32 again.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

import lora_moe_hgd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("name", help="name it is shipped under")
    args = parser.parse_args()
    network, processor = lora_moe_hgd.load_checkpoint(args.checkpoint)
    folder = Path(lora_moe_hgd.__file__).parent / "pretrained" / args.name
    scratch = folder.with_name(f".{args.name}-new")
    network.to(torch.bfloat16).save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text())
    (scratch / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    processor.save_pretrained(scratch)
    folder.mkdir(exist_ok=True)
    for path in scratch.iterdir():
        path.chmod(0o644)
        path.replace(folder / path.name)
    shutil.rmtree(scratch)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Ship a trained network or adapter with the package: `python scripts/ship_weights.py runs/wide/best tiny`.

Weights are rounded to bfloat16 to halve the file size, and are converted to float32 when loaded. `--scale 0.5` ships
an adapter at half strength. For a network, `--scale 0.5` ships the mean of the currently shipped and the new weights,
so running the same command again moves the shipped weights further towards the new weights.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file

import lora_moe_hgd
from lora_moe_hgd.adapters.saving import record_base
from lora_moe_hgd.adapters.switching import blend
from lora_moe_hgd.loading import adapter_base, checkpoint_folder, is_adapter, load_checkpoint
from lora_moe_hgd.pretrained import shipped_names

PRETRAINED = Path(lora_moe_hgd.__file__).parent / "pretrained"
WEIGHTS = "adapter_model.safetensors"


def ship_network(checkpoint: Path, scratch: Path, *, shipped: Path, scale: float) -> None:
    """Write a network with the weights `shipped + scale (trained - shipped)`.

    Raises:
        ValueError: If `scale` is not 1, but no network of this name is shipped yet.
    """
    if scale != 1 and (not shipped.is_dir() or is_adapter(shipped)):
        raise ValueError(f"--scale must be 1 if no network {shipped.name} is shipped yet, got {scale:g}.")
    network, processor = load_checkpoint(checkpoint) if scale == 1 else blend(shipped, checkpoint, scale=scale)
    network.to(torch.bfloat16).save_pretrained(scratch)
    processor.save_pretrained(scratch)
    changes = {"config.json": {"dtype": "float32"}, "preprocessor_config.json": {}}
    for name, change in changes.items():
        settings = json.loads((scratch / name).read_text()) | change
        # The package already contains the code to which `auto_map` refers.
        settings.pop("auto_map", None)
        (scratch / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for path in scratch.iterdir():
        if path.name not in (*changes, "model.safetensors"):
            path.unlink()


def ship_adapter(checkpoint: Path, scratch: Path, *, scale: float) -> None:
    """Write an adapter for the weights `base + scale (adapted - base)`.

    Low-rank matrices are scaled. All other weights of the adapter are interpolated between base and adapter.

    Raises:
        ValueError: If the adapter's base is not shipped.
    """
    base = checkpoint_folder(adapter_base(checkpoint))
    if base.parent != PRETRAINED or base.name not in shipped_names():
        raise ValueError(f"The base of a shipped adapter must be shipped, got {base}.")
    start = load_checkpoint(base)[0].state_dict()
    tensors = {}
    for name, value in load_file(checkpoint / WEIGHTS).items():
        if ".lora_A." in name:
            tensors[name] = value
        elif ".lora_B." in name:
            tensors[name] = scale * value
        else:
            tensors[name] = torch.lerp(start[name.removeprefix("base_model.model.")], value, scale)
    save_file({name: value.bfloat16() for name, value in tensors.items()}, scratch / WEIGHTS, {"format": "pt"})
    config = PeftConfig.from_pretrained(str(checkpoint))
    config.save_pretrained(str(scratch))
    record_base(scratch, base.name, place=scratch)
    for name in ("config.json", "preprocessor_config.json"):
        settings = checkpoint if (checkpoint / name).is_file() else base
        shutil.copyfile(settings / name, scratch / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of the network or adapter")
    parser.add_argument(
        "name",
        choices=shipped_names(),
        help="name of the shipped checkpoint (add a new name to `shipped_names` and to `package-data` first)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the weight change to ship, from 0 to 1 (default: 1)"
    )
    args = parser.parse_args()
    if not 0 <= args.scale <= 1:
        parser.error(f"--scale must be between 0 and 1, got {args.scale:g}")
    folder = PRETRAINED / args.name
    with tempfile.TemporaryDirectory(dir=PRETRAINED, prefix=".") as whole:
        scratch = Path(whole) / args.name
        scratch.mkdir()
        if is_adapter(args.checkpoint):
            ship_adapter(args.checkpoint, scratch, scale=args.scale)
        else:
            ship_network(args.checkpoint, scratch, shipped=folder, scale=args.scale)
        for path in scratch.iterdir():
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

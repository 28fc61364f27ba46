"""Train: `accelerate launch train.py --config configs/brats2018.yaml`, or plainly with `python`."""

from lora_moe_hgd_cli import run

if __name__ == "__main__":
    run("train")

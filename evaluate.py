"""Score a checkpoint: `accelerate launch evaluate.py --checkpoint tiny --data ROOT --out OUT`, or with `python`."""

from lora_moe_hgd_cli import run

if __name__ == "__main__":
    run("evaluate")

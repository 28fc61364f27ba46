"""Write synthetic cases with ground truth: `python scripts/make_dummy_data.py --root data/brats2018 --n 4`."""

from lora_moe_hgd_cli import run

if __name__ == "__main__":
    run("phantom")

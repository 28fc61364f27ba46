"""Segment a case or a cohort: `python infer.py --checkpoint checkpoints/best.pt --in-path CASE --out-path OUT`."""

from lora_moe_hgd_cli import run

if __name__ == "__main__":
    run("segment")

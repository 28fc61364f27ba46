"""How a forward pass slows down beside other programs, by how long the threads of OpenMP spin while they wait.

`python lab/busy_cores.py` prints seconds of a forward pass of `tiny` on two windows of 64^3: on a quiet machine, and
beside one program that never waits.
"""

from __future__ import annotations

import os
import subprocess
import sys

SETTINGS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}} | {
    f"{count} spins": {"GOMP_SPINCOUNT": str(count)} for count in (300, 1000, 3000, 10000, 30000)
}
FORWARD = """
import statistics, time, torch
from lora_moe_hgd.loading import load_checkpoint
network = load_checkpoint("tiny")[0]
volumes = torch.randn(2, 4, 64, 64, 64).contiguous(memory_format=torch.channels_last_3d)
present = torch.ones(2, 4, dtype=torch.bool)
seconds = []
with torch.no_grad():
    for _ in range(12):
        began = time.perf_counter()
        network(pixel_values=volumes, modality_mask=present)
        seconds.append(time.perf_counter() - began)
print(f"{min(seconds):.2f} | {statistics.median(seconds[1:]):.2f}")
"""


def main() -> None:
    """Print the table."""
    print("| setting | beside | minimum | median |\n|---|---|---|---|")
    for busy in (0, 1):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        for _ in range(2):
            for name, variables in SETTINGS.items():
                found = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", FORWARD],
                    env=os.environ | variables,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                print(f"| {name} | {busy} busy | {found.stdout.strip()} |", flush=True)
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()

"""How a forward pass slows down beside other programs, by how the threads of OpenMP wait for each other.

`python lab/busy_cores.py` prints seconds of a forward pass of `tiny` on two windows of 64^3: alone, beside a program
that never waits, and beside a second run of the same.
"""

from __future__ import annotations

import os
import subprocess
import sys

SETTINGS = {
    "default of libgomp": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
}
BUSY = "while True: pass"
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
    print("| setting | beside | minimum s | median s |\n|---|---|---|---|")
    for beside, code in (("nothing", None), ("a busy program", BUSY), ("a second run", FORWARD * 3)):
        for name, variables in SETTINGS.items():
            options = {"env": os.environ | variables, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            other = None if code is None else subprocess.Popen([sys.executable, "-c", code], **options)
            found = subprocess.run([sys.executable, "-c", FORWARD], **options, text=True, check=True)
            if other is not None:
                other.kill()
            print(f"| {name} | {beside} | {found.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()

"""Seconds of each step from DICOM to a segmentation: `python lab/scan_times.py HEAD OUT`.

HEAD is that of `scan_road.py`, whose study is written into OUT/dicom unless it is there. One command segments it with
all output, in this process, so the start of Python and the imports count. Processor seconds are those of all cores and
of the programs that are started. They hardly depend on what else the computer does, unlike the seconds that pass.
Needs `tests` and `lab` on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


class Clock:
    """Seconds that pass and processor seconds of each step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.steps: dict[str, tuple[float, float]] = {}
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), sum(os.times()[:4])

    def lap(self, name: str) -> None:
        """End a step."""
        now = self._now()
        before = self.steps.get(name, (0.0, 0.0))
        self.steps[name] = (before[0] + now[0] - self._last[0], before[1] + now[1] - self._last[1])
        self.laps[name], self._last = round(self.steps[name][0], 1), now


def main(argv: list[str]) -> None:
    """Print the table."""
    head, out = Path(argv[0]), Path(argv[1])
    if not (out / "dicom").is_dir():
        # In another process, whose time does not count.
        code = "import sys, pathlib, scan_road; scan_road.write_dicom(*map(pathlib.Path, sys.argv[1:]))"
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(head), str(out / "dicom")], check=True)
    shutil.rmtree(out / "result", ignore_errors=True)
    clock = Clock()
    from lora_moe_hgd.inference import results
    from lora_moe_hgd.scans import dicom_seg, prepare  # noqa: F401 - the imports count
    from lora_moe_hgd_cli import run

    clock.lap("start of the program")
    prepare._Clock = lambda: clock
    find_in_box = results.find_in_box

    def timed(*args: object, **more: object) -> object:
        clock.lap(rest)
        found = find_in_box(*args, **more)
        clock.lap("network")
        return found

    results.find_in_box = timed
    rest = "case folder, loading the network, pictures, page and files"
    words = ["--in-path", str(out / "dicom"), "--out-path", str(out / "result"), "--on", "all", "--html", "--quiet"]
    run("segment", words)
    clock.lap(rest)
    import torch

    print(f"\n{torch.get_num_threads()} threads\n")
    print("| step, four sequences | seconds that pass | processor seconds |\n|---|---|---|")
    every = {**clock.steps, "in all": tuple(map(sum, zip(*clock.steps.values(), strict=True)))}
    for name, (passed, used) in every.items():
        print(f"| {name} | {passed:.0f} | {used:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])

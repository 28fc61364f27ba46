"""Measure the time to import the package, and time and memory to load its networks, each in a separate process.

`python benchmarks/loading.py` also shows the time to import only torch and transformers. Memory is the peak that
loading a network and reading every weight once adds, as a multiple of the size of the weights. A minimal network is
loaded first, so that the memory of Python imports does not count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from lora_moe_hgd import LoraMoeHgdConfig, LoraMoeHgdForSegmentation

ROUNDS = 5
IMPORTS = (
    "import torch",
    "import torch; from transformers import PreTrainedModel",
    "import torch; import lora_moe_hgd",
)
MINIMAL = {"hidden_size": 24, "fusion_size": 16, "stem_channels": (4, 4, 4), "refinement_channels": (4, 4, 4)}
LOADING = """
import resource, sys, time
import psutil
from lora_moe_hgd import LoraMoeHgdForSegmentation
LoraMoeHgdForSegmentation.from_pretrained(sys.argv[2])
before = psutil.Process().memory_info().rss
began = time.perf_counter()
network = LoraMoeHgdForSegmentation.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - began
total = sum(float(parameter.sum()) for parameter in network.parameters())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
print(seconds, size / 1e6, (peak - before) / size)
"""


def seconds_of(*words: str) -> float:
    """Run a process, and return its wall time in seconds."""
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    commands = {f"`{code}`": (sys.executable, "-c", code) for code in IMPORTS}
    commands["`lora-moe-hgd --help`"] = (str(Path(sys.executable).with_name("lora-moe-hgd")), "--help")
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, words in commands.items():
            taken[name].append(seconds_of(*words))
    print("| process | minimum s | median s |\n|---|---|---|")
    for name, values in taken.items():
        print(f"| {name} | {min(values):.2f} | {statistics.median(values):.2f} |")
    print("\n| `from_pretrained` of | MB | seconds, median | memory, of the weights |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        LoraMoeHgdForSegmentation(LoraMoeHgdConfig(**MINIMAL)).save_pretrained(Path(scratch) / "minimal")
        for size, config in {"tiny": LoraMoeHgdConfig.tiny(), "base": LoraMoeHgdConfig.base()}.items():
            LoraMoeHgdForSegmentation(config).save_pretrained(Path(scratch) / size)
            words = [sys.executable, "-c", LOADING, str(Path(scratch) / size), str(Path(scratch) / "minimal")]
            runs = [
                [float(value) for value in subprocess.check_output(words, stderr=subprocess.DEVNULL).split()]
                for _ in range(ROUNDS)
            ]
            seconds, megabytes, ratio = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"| {size} | {megabytes:.0f} | {seconds:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

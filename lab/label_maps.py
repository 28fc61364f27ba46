"""Digest of the label map of each case and subset, to compare two versions of the code: run it in both and diff.

`python lab/label_maps.py CHECKPOINT CASE [CASE ...]`: each case is a folder of BraTS 2023 files.
"""

import hashlib
import itertools
import sys
from pathlib import Path

import numpy as np
from transformers import pipeline

import lora_moe_hgd  # noqa: F401  makes the pipeline known

SUFFIXES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}

segmenter = pipeline("brain-tumor-segmentation", model=sys.argv[1], device=-1)
for folder in map(Path, sys.argv[2:]):
    files = {name: str(next(folder.glob(f"*-{suffix}.nii.gz"))) for name, suffix in SUFFIXES.items()}
    for count in range(1, 5):
        for subset in itertools.combinations(files, count):
            found = segmenter({name: files[name] for name in subset})["segmentation"]
            digest = hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()[:16]
            print(folder.name, "+".join(subset), digest, int((found > 0).sum()), flush=True)

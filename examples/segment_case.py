"""Segment a case from two of its sequences: `python examples/segment_case.py CASE_FOLDER OUTPUT_FOLDER`."""

import sys

import lora_moe_hgd as lmh

case, out = sys.argv[1:]
seg = lmh.segment(case, sequences=["t1c", "flair"])
seg.save(out)
for warning in seg.warnings:
    print("warning:", warning)
for region, volume in seg.volumes_ml.items():
    print(f"{region.upper()} {volume:.1f} mL, confidence {seg.confidence[region]:.2f}")
print("label map:", seg.label_map.shape, "labels:", seg.label_scheme)

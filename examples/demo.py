"""Segment a real case from two of its four sequences, and compare with the experts' segmentation."""

import argparse
import math
from pathlib import Path

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.cases.reading import read_case
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.configuration_lora_moe_hgd import REGIONS
from lora_moe_hgd.pictures import save_overlay

USED = ("t1c", "flair")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out-path", type=Path, default=Path("outputs/demo"), help="folder for the results")
    args = parser.parse_args()
    case = find_case(lmh.example_case())
    withheld = [name for name in case.images if name not in USED]
    print(f"Segmenting {case.case_id} from {' and '.join(USED)}, without {' and '.join(withheld)}.")
    print("On two CPU cores this takes less than a minute ...", flush=True)
    found = lmh.segment(case.folder, sequences=USED)
    found.save(args.out_path)
    print("Comparing the result with the experts' segmentation ...", flush=True)
    truth = read_case(case, labels=True).checked().regions
    voxel_ml = math.prod(found.label_map.header.get_zooms()) / 1000
    print("region   Dice   volume   experts' volume")
    for name, region, expected in zip(REGIONS, found.regions, truth, strict=True):
        volumes = f"{found.volumes_ml[name]:6.1f} mL {expected.sum() * voxel_ml:6.1f} mL"
        print(f"{name.upper():<6} {dice(region, expected):6.3f} {volumes}")
    picture = args.out_path / "comparison.png"
    title = f"{case.case_id}, segmented from {' and '.join(USED)}"
    save_overlay(picture, found.images, {"found": found.regions, "experts": truth}, title=title)
    print(f"The picture is {picture}. Label map and report are beside it.")


if __name__ == "__main__":
    main()

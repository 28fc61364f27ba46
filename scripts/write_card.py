"""Write the model cards of the shipped checkpoints and the results table of the README from scores.

`python scripts/write_card.py --scores outputs/fifteen_subsets --training model_cards/training.md`: the folder
`--scores` contains the output folders `tiny` and `glioma` of `lora-moe-hgd evaluate`, which
`benchmarks/fifteen_subsets/row.py` writes. The Markdown file `--training` has one section for each text about training
in the cards. The published Dice of other networks comes from the benchmark.
"""

import argparse
import csv
import json
import re
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lora_moe_hgd import load_checkpoint, pretrained_path
from lora_moe_hgd.adapters.card import TAGS

ROOT = Path(__file__).parents[1]
IN_README = ("t1", "t1c", "t2", "flair", "t1+t2", "t1c+flair", "t1+t1c+t2+flair", "mean")
NAMES = ("tiny", "glioma")
PUBLISHED = ROOT / "benchmarks/fifteen_subsets/published_cases.csv"
RIVALS = {"nnunet1000": "nnU-Net", "segresnet1000": "SegResNet"}
FIT = (
    "00002, 00007, 00010, 00011, 00012, 00014, 00026, 00028, 00037, 00049, 00051, 00057, 00074, 00076, 00080, 00112, "
    "00113, 00116, 00119, 00121"
)
BEGIN, END = "<!-- results, by scripts/write_card.py -->\n", "<!-- end of results -->"
CALIBRATION = "Calibration by number of sequences"
PICTURES = ("heat_map.png", "reliability.png")
REAL = "These test cases of BraTS-Africa, at their native voxel size of 1 mm, influenced no choice"


def section(title: str, text: str, folder: Path) -> dict[str, str]:
    with open(folder / "scores.csv", newline="") as file:
        cases = sorted({row["case_id"] for row in csv.DictReader(file)})
    table, _, _ = (folder / "table.md").read_text().partition(CALIBRATION)
    shown = ", ".join(cases) if len(cases) < 6 else f"{len(cases)} cases"
    return {"title": title, "text": f"{text}: {shown}.", "table": table.strip()}


def write_card(name: str, template: str, data: ModelCardData, scores: Path, **facts: Any) -> None:
    sections = [section("Real cases", REAL, scores / name)]
    _, head, table = (scores / name / "table.md").read_text().partition(CALIBRATION)
    facts |= {"sections": sections, "calibration": (head + table).strip()}
    path = ROOT / "model_cards" / f"{name}.md"
    template_path = str(ROOT / "model_cards" / template)
    card = ModelCard.from_template(data, template_path=template_path, name=name, **facts)
    for picture in PICTURES:
        shutil.copyfile(scores / name / picture, path.parent / "pictures" / f"{name}_{picture}")
    path.write_text(str(card).rstrip() + "\n")
    print(path)


def readme_table(scores: Path) -> str:
    tables = [json.loads((scores / name / "table.json").read_text()) for name in NAMES]
    means = [
        {(row["subset"], row["region"]): row["mean"] for row in table["summary"] if row["metric"] == "dice"}
        for table in tables
    ]
    heads = [f"{name} {region}" for name in NAMES for region in ("WT", "TC", "ET")]
    lines = [f"| sequences | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in IN_README:
        values = [f"{found[name, region]:.3f}" for found in means for region in ("wt", "tc", "et")]
        lines.append(f"| {'mean over the 15 subsets' if name == 'mean' else name} | {' | '.join(values)} |")
    with open(scores / "glioma/scores.csv", newline="") as file:
        cases = {row["case_id"] for row in csv.DictReader(file)}
    with PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] in cases]
    for key, name in RIVALS.items():
        values = [f"{mean(float(row[f'{key}_{region}']) for row in rows):.3f}" for region in ("wt", "tc", "et")]
        lines.append(f"| {IN_README[-2]}, by {name} | | | | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def paragraphs(path: Path) -> dict[str, str]:
    """Read the text below each heading of a Markdown file."""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)[1:]
    return {name.strip(): text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, required=True, help="folder with the evaluations `tiny` and `glioma`")
    parser.add_argument("--training", type=Path, required=True, help="Markdown file with the texts about training")
    args = parser.parse_args()
    network, processor = load_checkpoint("tiny")
    text = paragraphs(args.training)
    about: dict[str, Any] = {"pipeline_tag": "image-segmentation", "tags": TAGS}
    write_card(
        "tiny",
        "base.md.jinja",
        ModelCardData(license="mit", library_name="transformers", **about),
        args.scores,
        training=text["tiny"],
        cost=text["cost of tiny"],
        parameters=f"{network.num_parameters() / 1e6:.1f}",
        spacing=f"{processor.target_spacing_mm[0]:g}",
        fit=FIT,
    )
    adapter = pretrained_path("glioma")
    write_card(
        "glioma",
        "adapter.md.jinja",
        ModelCardData(license="cc-by-4.0", library_name="peft", base_model_relation="adapter", **about),
        args.scores,
        base="tiny",
        training=text["glioma"],
        cost=text["cost of glioma"],
        cross_validation=text["cross-validation"],
        megabytes=f"{sum(path.stat().st_size for path in adapter.iterdir()) / 1e6:.1f}",
        fit=FIT,
    )
    readme = ROOT / "README.md"
    before, after = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + readme_table(args.scores) + END + after.split(END)[1])
    print(readme)


if __name__ == "__main__":
    main()

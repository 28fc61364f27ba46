"""Write the cards of the shipped weights, and the table of results in the README, from their scores.

`python scripts/write_card.py --scores outputs/shipped --network-command A --adapter-command B --adapter-scale S`:
the folder has the outputs of `lora-moe-hgd evaluate` for each checkpoint, `tiny-real`, `tiny-phantom`,
`brats-africa-real` and `brats-africa-phantom`.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lora_moe_hgd import load_checkpoint, pretrained_path
from lora_moe_hgd.adapters.card import TAGS

ROOT = Path(__file__).parents[1]
IN_README = ("t1", "t1c", "t2", "flair", "t1+t2", "t1c+flair", "t1+t1c+t2+flair", "mean")
COLUMNS = {"real": "tiny-real", "fitted": "brats-africa-real", "phantom": "tiny-phantom"}
BEGIN, END = "<!-- results, by scripts/write_card.py -->\n", "<!-- end of results -->"
REAL = "BraTS-Africa, at their native 1 mm, never used for any choice"
PHANTOM = "Made-up cases at 2 mm from seeds that training does not reach"


def section(title: str, text: str, folder: Path) -> dict[str, str]:
    with open(folder / "scores.csv", newline="") as file:
        cases = sorted({row["case_id"] for row in csv.DictReader(file)})
    shown = ", ".join(cases) if len(cases) < 6 else f"{len(cases)} cases"
    return {"title": title, "text": f"{text}: {shown}.", "table": (folder / "table.md").read_text().strip()}


def write_card(name: str, template: str, data: ModelCardData, scores: Path, **facts: Any) -> None:
    sections = [
        section("Real cases", REAL, scores / f"{name}-real"),
        section("Phantoms", PHANTOM, scores / f"{name}-phantom"),
    ]
    path = ROOT / "model_cards" / f"{name}.md"
    template_path = str(ROOT / "model_cards" / template)
    card = ModelCard.from_template(data, template_path=template_path, name=name, sections=sections, **facts)
    path.write_text(str(card).rstrip() + "\n")
    print(path)


def readme_table(scores: Path) -> str:
    means = [
        {(row["subset"], row["region"]): row["mean"] for row in summary if row["metric"] == "dice"}
        for summary in (json.loads((scores / name / "table.json").read_text())["summary"] for name in COLUMNS.values())
    ]
    heads = [f"{where} {region}" for where in COLUMNS for region in ("WT", "TC", "ET")]
    lines = [f"| sequences | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in IN_README:
        values = [f"{found[name, region]:.3f}" for found in means for region in ("wt", "tc", "et")]
        lines.append(f"| {'mean over the 15 subsets' if name == 'mean' else name} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=Path, required=True, help="folder of the evaluations")
    parser.add_argument("--network-command", required=True, help="what the network was trained with")
    parser.add_argument("--adapter-command", required=True, help="what the adapter was fitted with")
    parser.add_argument("--adapter-scale", required=True, help="strength that it is shipped at")
    args = parser.parse_args()
    network, processor = load_checkpoint("tiny")
    about: dict[str, Any] = {"pipeline_tag": "image-segmentation", "tags": TAGS}
    write_card(
        "tiny",
        "base.md.jinja",
        ModelCardData(license="mit", library_name="transformers", **about),
        args.scores,
        command=args.network_command,
        parameters=f"{network.num_parameters() / 1e6:.1f}",
        run=(ROOT / "configs/continue_phantom.yaml").read_text(),
        spacing=f"{processor.target_spacing_mm[0]:g}",
    )
    adapter = pretrained_path("brats-africa")
    write_card(
        "brats-africa",
        "adapter.md.jinja",
        ModelCardData(license="cc-by-4.0", library_name="peft", base_model_relation="adapter", **about),
        args.scores,
        base="tiny",
        command=args.adapter_command,
        megabytes=f"{sum(path.stat().st_size for path in adapter.iterdir()) / 1e6:.1f}",
        scale=args.adapter_scale,
    )
    readme = ROOT / "README.md"
    before, after = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + readme_table(args.scores) + END + after.split(END)[1])
    print(readme)


if __name__ == "__main__":
    main()

"""Write the card of shipped weights, and the table of results in the README, from their scores.

`python scripts/write_card.py tiny --real outputs/real --phantom outputs/phantom`, the two folders being outputs of
`lora-moe-hgd evaluate`.
"""

import argparse
import csv
import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from lora_moe_hgd import load_checkpoint

ROOT = Path(__file__).parents[1]
IN_README = ("t1", "t1c", "t2", "flair", "t1+t2", "t1c+flair", "t1+t1c+t2+flair", "mean")
BEGIN, END = "<!-- results, by scripts/write_card.py -->\n", "<!-- end of results -->"


def section(title: str, text: str, folder: Path) -> dict[str, str]:
    with open(folder / "scores.csv", newline="") as file:
        cases = sorted({row["case_id"] for row in csv.DictReader(file)})
    shown = ", ".join(cases) if len(cases) < 6 else f"{len(cases)} cases"
    return {"title": title, "text": f"{text}: {shown}.", "table": (folder / "table.md").read_text().strip()}


def readme_table(real: Path, phantom: Path) -> str:
    scores = [
        {(row["subset"], row["region"]): row["mean"] for row in summary if row["metric"] == "dice"}
        for summary in (json.loads((folder / "table.json").read_text())["summary"] for folder in (real, phantom))
    ]
    heads = [f"{where} {region}" for where in ("real", "phantom") for region in ("WT", "TC", "ET")]
    lines = [f"| sequences | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for name in IN_README:
        values = [f"{means[name, region]:.3f}" for means in scores for region in ("wt", "tc", "et")]
        lines.append(f"| {'mean over the 15 subsets' if name == 'mean' else name} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the shipped weights")
    parser.add_argument("--real", type=Path, required=True, help="scores on real cases")
    parser.add_argument("--phantom", type=Path, required=True, help="scores on phantoms")
    args = parser.parse_args()
    network, processor = load_checkpoint(args.name)
    data = ModelCardData(
        license="mit",
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["medical", "brain-tumor", "mri", "missing-modality", "mixture-of-experts", "lora"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_cards/base.md.jinja"),
        name=args.name,
        parameters=f"{network.num_parameters() / 1e6:.1f}",
        run=(ROOT / "configs/pretrain_phantom.yaml").read_text(),
        spacing=f"{processor.target_spacing_mm[0]:g}",
        sections=[
            section("Real cases", "BraTS-Africa, at their native 1 mm, never used for any choice", args.real),
            section("Phantoms", "Made-up cases at 1 mm from seeds that training does not reach", args.phantom),
        ],
    )
    path = ROOT / "model_cards" / f"{args.name}.md"
    path.write_text(str(card).rstrip() + "\n")
    readme = ROOT / "README.md"
    before, after = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + readme_table(args.real, args.phantom) + END + after.split(END)[1])
    print(f"{path}, and the results in {readme}")


if __name__ == "__main__":
    main()

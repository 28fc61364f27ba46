"""Write the card of shipped weights from their scores.

`python scripts/write_card.py tiny --real outputs/real --phantom outputs/phantom`, the two folders being outputs of
`lora-moe-hgd evaluate`.
"""

import argparse
import csv
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from lora_moe_hgd import load_checkpoint

ROOT = Path(__file__).parents[1]


def section(title: str, text: str, folder: Path) -> dict[str, str]:
    with open(folder / "scores.csv", newline="") as file:
        cases = sorted({row["case_id"] for row in csv.DictReader(file)})
    shown = ", ".join(cases) if len(cases) < 6 else f"{len(cases)} cases"
    return {"title": title, "text": f"{text}: {shown}.", "table": (folder / "table.md").read_text().strip()}


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
    print(path)


if __name__ == "__main__":
    main()

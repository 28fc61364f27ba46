"""Model cards: what was trained on what, how to use it, and its scores by subset of the sequences.

Metadata as in https://huggingface.co/docs/hub/model-cards, scores as `model-index`, one entry a subset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..model.configuration_lora_moe_hgd import REGIONS
from ..training.adapters import COMPOSABLE_PRESET

TAGS = ["medical", "brain-tumor", "mri", "missing-modality", "mixture-of-experts", "lora"]

NETWORK_USE = """```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{repo}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{repo}", trust_remote_code=True)
inputs = processor({{"t1": None, "t1c": "t1c.nii.gz", "t2": None, "flair": "flair.nii.gz"}})
logits = model.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
(labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
```

or `pipeline(model="{repo}", trust_remote_code=True)({{"t1c": "t1c.nii.gz", "flair": "flair.nii.gz"}})`. Where the
package lora-moe-hgd is installed and imported its own classes are used and nothing of this repository is run:
`lora-moe-hgd segment --checkpoint {repo} --in-path CASE --out-path OUT`."""

ADAPTER_USE = """```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{repo}", trust_remote_code=True).eval()  # the base, with the adapter over it
processor = AutoImageProcessor.from_pretrained("{base}", trust_remote_code=True)
```

or `lora-moe-hgd segment --checkpoint {repo} --in-path CASE --out-path OUT`. {combines}"""

CARD = """# {repo}

Segments whole tumour (WT), tumour core (TC) and enhancing tumour (ET) of a glioma from any non-empty subset of T1,
T1c, T2 and FLAIR. {what} **Research use, not a medical device.**

{use}

Images must be skull-stripped and co-registered, as in BraTS; absent sequences are left out.

## Training data

{training_data}

## Scores

{scores}

## Limits

Scores hold for data like those named above; check yours. Without T1c the enhancing part is a guess, and without T2
and FLAIR so is oedema.
"""


def read_scores(evaluation: Path) -> dict[str, Any]:
    """What `lora-moe-hgd evaluate --out evaluation` left there.

    Raises:
        ValueError: If the folder holds no evaluation.
    """
    path = evaluation / "table.json"
    if not path.is_file():
        raise ValueError(
            f"{evaluation} holds no evaluation: there is no table.json, which `lora-moe-hgd evaluate` writes."
        )
    scores: dict[str, Any] = json.loads(path.read_text())
    if "about" not in scores:
        raise ValueError(f"{path} does not tell which weights it is of (`about`); run `lora-moe-hgd evaluate` again.")
    return scores


def model_index(scores: Mapping[str, Any]) -> list[EvalResult]:
    """The mean Dice of each subset and region, and of all subsets together, as the Hub's metadata."""
    about = scores["about"]
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Brain-tumour segmentation with missing sequences",
            dataset_type=about["data"],
            dataset_name=f"{about['data']} ({about['cases']} cases)",
            dataset_config="mean over subsets" if row["subset"] == "mean" else row["subset"],
            metric_type="dice",
            metric_name=f"Dice {'mean' if row['region'] == 'mean' else row['region'].upper()}",
            metric_value=round(row["mean"], 4),
        )
        for row in scores["summary"]
        if row["metric"] == "dice" and row["region"] in (*REGIONS, "mean") and row["mean"] is not None
    ]


def make_card(
    repo: str,
    *,
    license: str,
    training_data: str,
    evaluation: Path | None,
    adapter: tuple[str, str] | None = None,
) -> ModelCard:
    """The card of a network, or of an adapter when `adapter` gives its base and its preset."""
    data = ModelCardData(
        license=license,
        library_name="transformers" if adapter is None else "peft",
        pipeline_tag="image-segmentation",
        tags=TAGS,
    )
    if adapter is None:
        what, use = "", NETWORK_USE.format(repo=repo)
    else:
        base, preset = adapter
        data.base_model, data["base_model_relation"] = base, "adapter"
        what = f"An adapter ({preset}) over [{base}](https://huggingface.co/{base})."
        combines = "It can be combined with others." if preset == COMPOSABLE_PRESET else ""
        use = ADAPTER_USE.format(repo=repo, base=base, combines=combines)
    text = CARD.format(
        repo=repo, what=what, use=use, training_data=training_data.strip(), scores=_scores_text(evaluation)
    )
    return add_scores(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"), repo, evaluation)


def add_scores(card: ModelCard, name: str, evaluation: Path | None) -> ModelCard:
    """The card with the scores of an evaluation in its metadata, in place of any that are there."""
    if evaluation is None:
        return card
    data = ModelCardData(
        **{key: value for key, value in card.data.to_dict().items() if key != "model-index"},
        model_name=name.rsplit("/", 1)[-1],
        eval_results=model_index(read_scores(evaluation)),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{card.text}")


def _scores_text(evaluation: Path | None) -> str:
    if evaluation is None:
        return "These weights were not evaluated."
    about = read_scores(evaluation)["about"]
    # Evaluations of earlier versions do not say: none was.
    mirrored = ", the mean over each case and its mirror image" if about.get("mirror") else ""
    empty, lesions = about["convention"], about["lesion_rules"]
    return (
        f"On {about['cases']} cases of {about['data']}, each on its own grid, by `lora-moe-hgd evaluate`{mirrored} "
        f"(conventions of `{empty}` for empty regions, lesions by the rules of `{lesions}`).\n\n"
        f"![Dice by subset and region](evaluation/heat_map.png)\n\n{(evaluation / 'table.md').read_text().strip()}"
    )

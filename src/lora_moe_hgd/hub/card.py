"""Model cards: training, usage, and scores by subset of the sequences.

The metadata follow https://huggingface.co/docs/hub/model-cards. The field `model-index` contains the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..adapters.card import CARD, about_release, about_task, adapter_card, tags_of
from ..evaluation.score_files import read_table
from ..files import counted
from ..model.task import BRAIN_TUMOUR, Task, shown

# Pictures of an evaluation, and their captions in the gallery of the card.
PICTURES = {
    "heat_map.png": "Dice by region and subset of the sequences",
    "by_count.png": "Dice by number of sequences, with 95 % intervals",
    "reliability.png": "Share of voxels in the true region, by predicted probability",
}

NETWORK_USE = """```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{repo}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{repo}", trust_remote_code=True)
inputs = processor({{{all_inputs}}})
logits = model.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
(labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
```

or `pipeline(model="{repo}", trust_remote_code=True)({{{present_inputs}}})`. If you
import the package lora-moe-hgd, transformers uses the classes of the package instead of the code in this
repository. The command of the package is `lora-moe-hgd segment --checkpoint {repo} --in-path CASE --out-path OUT`."""


def _use(repo: str, task: Task) -> str:
    """Instructions for use of a network. The example code uses files of two sequences."""
    files = {name: f'"{name}.nii.gz"' for name in task.modalities}
    given = ["t1c", "flair"] if task.is_brain_tumour else list(files)[-2:]
    return NETWORK_USE.format(
        repo=repo,
        all_inputs=", ".join(f'"{name}": {file if name in given else None}' for name, file in files.items()),
        present_inputs=", ".join(f'"{name}": {files[name]}' for name in given),
    )


def read_scores(evaluation: Path) -> dict[str, Any]:
    """Read the scores in an output folder of `lora-moe-hgd evaluate`.

    Raises:
        ValueError: If the folder contains no evaluation.
    """
    path = evaluation / "table.json"
    if not path.is_file():
        raise ValueError(
            f"{evaluation} contains no table.json. Give the --out-path folder of a `lora-moe-hgd evaluate` run."
        )
    return read_table(path)


def model_index(scores: Mapping[str, Any], task: Task = BRAIN_TUMOUR) -> list[EvalResult]:
    """Convert the mean Dice of each region, for each subset and over all subsets, to entries of `model-index`."""
    about = scores["about"]
    kind = "Brain-tumour segmentation" if task.is_brain_tumour else f"Segmentation of {task.name}"
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"{kind} with missing sequences",
            dataset_type=about["data"],
            dataset_name=f"{about['data']} ({about['cases']} cases)",
            dataset_config="mean over subsets" if row["subset"] == "mean" else row["subset"],
            metric_type="dice",
            metric_name=f"Dice {shown(row['region'])}",
            metric_value=round(row["mean"], 4),
        )
        for row in scores["summary"]
        if row["metric"] == "dice" and row["region"] in (*task.regions, "mean") and row["mean"] is not None
    ]


def make_card(
    repo: str,
    *,
    license: str,
    training_data: str,
    evaluation: Path | None,
    cost: str | None = None,
    adapter: tuple[str, str] | None = None,
    task: Task = BRAIN_TUMOUR,
) -> ModelCard:
    """Make the card of a network or of an adapter.

    For an adapter, `adapter` contains the name of its base and the name of its preset. For a network, it is `None`.
    """
    scores = _scores_text(evaluation)
    if adapter is not None:
        base, preset = adapter
        card = adapter_card(
            repo,
            base=base,
            preset=preset,
            training_data=training_data,
            scores=scores,
            license=license,
            cost=cost,
            task=task,
        )
        return add_scores(card, repo, evaluation, task)
    data = ModelCardData(
        license=license, library_name="transformers", pipeline_tag="image-segmentation", tags=tags_of(task)
    )
    text = CARD.format(
        name=repo,
        what="",
        use=_use(repo, task),
        training_data=training_data.strip(),
        scores=scores,
        **about_release(license, cost),
        **about_task(task),
    )
    return add_scores(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"), repo, evaluation, task)


def add_scores(card: ModelCard, name: str, evaluation: Path | None, task: Task = BRAIN_TUMOUR) -> ModelCard:
    """Return the card with metadata that list the scores and pictures of `evaluation`, and no earlier ones."""
    if evaluation is None:
        return card
    data = ModelCardData(
        **{key: value for key, value in card.data.to_dict().items() if key not in ("model-index", "widget")},
        # The Hub shows these pictures in `<Gallery />`.
        widget=[{"text": text, "output": {"url": f"evaluation/{name}"}} for name, text in PICTURES.items()],
        model_name=name.rsplit("/", 1)[-1],
        eval_results=model_index(read_scores(evaluation), task),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{card.text}")


def _scores_text(evaluation: Path | None) -> str:
    if evaluation is None:
        return "These weights were not evaluated."
    about = read_scores(evaluation)["about"]
    # Evaluations of earlier versions have no entry for bf16.
    options = "".join(f" --{name}" for name in ("mirror", "bf16") if about.get(name))
    empty, lesions = about["convention"], about["lesion_rules"]
    return (
        f"Scores of `lora-moe-hgd evaluate{options} --convention {empty} --lesion-rules {lesions}` on "
        f"{counted(about['cases'], 'case')} of {about['data']}. Each case is scored on its own voxel grid.\n\n"
        f"<Gallery />\n\n{(evaluation / 'table.md').read_text().strip()}"
    )

"""Model card of an adapter, for the folder of its run and for the Hub.

`CARD` is the template of this card, and of the cards of complete networks.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..model.task import BRAIN_TUMOUR, Task, shown
from ..pretrained import shipped_names
from .presets import COMPOSABLE_PRESET

TAGS = ["medical", "brain-tumor", "mri", "missing-modality", "mixture-of-experts", "lora"]
TUMOUR_TAG = "brain-tumor"
# Key of the validation score in the metadata of a card.
SCORE = "validation_score"

TRAINED = {
    COMPOSABLE_PRESET: "It consists of LoRA matrices for attention and experts. Such adapters can be combined with "
    "each other.",
    "lora+decoder": "It consists of LoRA matrices for attention and experts, and of new weights for stem, routers "
    "and decoder.",
}

FROM_THE_HUB = """```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()  # the base with the adapter
processor = AutoImageProcessor.from_pretrained("{base}", trust_remote_code=True)
```

or `lora-moe-hgd segment --checkpoint {name} --in-path CASE --out-path OUT`."""

FROM_THIS_MACHINE = """```python
from lora_moe_hgd import load_checkpoint

model, processor = load_checkpoint("this folder, or its Hub id")  # the adapter is merged into its base
```"""

CARD = """# {name}

{segments} {what}**Research use, not a medical device.**

{use}

Images must be skull-stripped and co-registered{as_where}. If a sequence is missing, leave it out of the input.

## Intended use

{intended}

## Out of scope

Diagnosis, treatment, and any other decision about a patient. {out_of_scope}

## Training data

{training_data}
{cost}
## Scores

{scores}

## Limits

The scores are valid only for data like those named above. Evaluate on your own data.{limits}
{licence}"""

COST = """
## Cost of training

{cost}
"""

LICENCE = """
## Licence and citation

The licence is {license}. Cite the training data named above and lora-moe-hgd.
"""

TUMOUR = {
    "segments": "Segments whole tumour (WT), tumour core (TC) and enhancing tumour (ET) of a glioma from any "
    "non-empty subset of T1,\nT1c, T2 and FLAIR.",
    "as_where": ", as in BraTS",
    "intended": "Research on gliomas of adults before surgery: segmentations and volumes that an expert checks, "
    "comparisons of\nsequences, and a base for further training.",
    "out_of_scope": "Children, metastases, meningiomas, resection cavities\nand other diseases of the brain.",
    "limits": " Without T1c, the enhancing tumour\nis a guess. Without T2 and FLAIR, oedema is a guess.",
}


def about_task(task: Task) -> dict[str, str]:
    """Texts for the template `CARD` about the task: regions, sequences, and the consequences of missing sequences."""
    if task.is_brain_tumour:
        return TUMOUR
    regions = ", ".join(map(shown, task.regions))
    (scheme,) = task.schemes.values()
    limits = "".join(f" Without {name}: {warning}" for name, warning in task.without.items())
    return {
        "segments": f"Segments the regions {regions} of the task `{task.name}` from any non-empty subset of "
        f"{', '.join(task.modalities)}.\nLabel scheme: {scheme}.",
        "as_where": "",
        "intended": f"Research on the task `{task.name}`: segmentations that an expert checks, and further training.",
        "out_of_scope": "Images that are unlike the training data.",
        "limits": limits,
    }


def about_release(license: str | None, cost: str | None) -> dict[str, str]:
    """Sections on cost and licence for the template `CARD`.

    If `cost` is `None`, the section on cost is empty. If `license` is `None`, the section on the licence is empty.
    """
    return {
        "cost": COST.format(cost=cost.strip()) if cost else "",
        "licence": LICENCE.format(license=license) if license else "",
    }


def tags_of(task: Task) -> list[str]:
    """Tags of a card. Only cards of checkpoints for brain tumours have the tag `brain-tumor`."""
    return [tag for tag in TAGS if tag != TUMOUR_TAG or task.is_brain_tumour]


def adapter_card(
    name: str,
    *,
    base: str,
    preset: str,
    training_data: str,
    scores: str,
    license: str | None = None,
    cost: str | None = None,
    task: Task = BRAIN_TUMOUR,
) -> ModelCard:
    """Make the card of an adapter.

    Args:
        name: Hub id of the adapter, or a title for an adapter on this machine.
        base: Hub id, shipped name or folder of the adapted network. If it is a folder, the card shows only its name.
        preset: Name of the adapter's preset, see the module `presets`.
        training_data: Paragraph on the training data.
        scores: Paragraph on the scores.
        license: Licence of the adapter. Only cards on the Hub need a licence.
        cost: Time and hardware of the training, if they are known.
        task: Task that defines the sequences and regions.
    """
    # The base of a run may be a folder or a shipped name, which are no ids on the Hub.
    on_this_machine = Path(base).is_absolute() or base in shipped_names()
    called = Path(base).name if on_this_machine else base
    data = ModelCardData(
        license=license,
        library_name="peft",
        pipeline_tag="image-segmentation",
        tags=tags_of(task),
        base_model=None if on_this_machine else base,
    )
    if not on_this_machine:
        data["base_model_relation"] = "adapter"
    shown = called if on_this_machine else f"[{base}](https://huggingface.co/{base})"
    text = CARD.format(
        name=name,
        what=f"This is an adapter of {shown}. {TRAINED.get(preset, 'It trains its own selection of modules.')} ",
        use=FROM_THE_HUB.format(name=name, base=base) if "/" in name else FROM_THIS_MACHINE,
        training_data=training_data.strip(),
        scores=scores,
        **about_release(license, cost),
        **about_task(task),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def write_run_card(folder: Path, *, base: str, preset: str, score: str, task: Task = BRAIN_TUMOUR) -> None:
    """Write a card with the run's validation score to the adapter's `folder`, in place of the empty card of PEFT."""
    card = adapter_card(
        "Adapter for lora-moe-hgd",
        base=base,
        preset=preset,
        training_data="The training cases that `split.csv` of the run lists.",
        scores=f"Validation score of the run: {score}, over validation cases, subsets of sequences, and regions.",
        task=task,
    )
    card.data[SCORE] = score
    (folder / "README.md").write_text(f"---\n{card.data.to_yaml()}\n---\n{card.text}")


def validation_score(folder: Path) -> str:
    """Read the validation score from the card in the adapter's `folder`. If there is none, return an empty string."""
    path = folder / "README.md"
    return str(ModelCard.load(path, ignore_metadata_errors=True).data.get(SCORE) or "") if path.is_file() else ""

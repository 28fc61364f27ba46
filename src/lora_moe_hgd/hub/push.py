"""Upload a network or an adapter to the Hub, so that users of transformers and of this package can load it."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import LoraConfig

from ..adapters.presets import preset_of
from ..loading import adapter_base, checkpoint_digest, checkpoint_folder, checkpoint_task, is_adapter, load_checkpoint
from ..model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline
from ..model.task import BRAIN_TUMOUR
from ..pretrained import hub_id, shipped_names
from .card import PICTURES, make_card, read_scores
from .checksums import CARD, write_sums

EVALUATION_FILES = ("table.json", "table.md", *PICTURES)
# Files to delete in the repository, because an earlier push may have had more shards or other code files.
STALE = ["*.safetensors", "*.safetensors.index.json", "*.py", "evaluation/*"]


def stage(
    folder: Path,
    into: Path,
    *,
    repo: str,
    base: str | None,
    license: str,
    training_data: str,
    training_cost: str | None,
    evaluation: Path | None,
    max_shard_size: str,
) -> ModelCard:
    """Write all files of the repository into the folder `into`, and return the card.

    Raises:
        ValueError: If the evaluation belongs to other weights, or if an adapter's base is not on the Hub.
    """
    if evaluation is not None and read_scores(evaluation)["about"]["checkpoint"] != checkpoint_digest(folder):
        raise ValueError(
            f"{evaluation} was made with other weights or settings than {folder}, or with another version of this "
            "package. Run `lora-moe-hgd evaluate` on these weights."
        )
    adapter = None
    if is_adapter(folder):
        adapter = (_base_on_the_hub(folder, base), preset_of(LoraConfig.from_pretrained(str(folder))))
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = adapter[0]
        (into / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copyfile(folder / "adapter_model.safetensors", into / "adapter_model.safetensors")
        if (folder / "preprocessor_config.json").is_file():
            shutil.copyfile(folder / "preprocessor_config.json", into / "preprocessor_config.json")
    else:
        if base is not None:
            raise ValueError(f"--base is for adapters, but {folder} contains a complete network. Leave it out.")
        network, processor = load_checkpoint(folder)
        segmenter = BrainTumorSegmentationPipeline(model=network, image_processor=processor, device=-1)
        segmenter.save_pretrained(into, max_shard_size=max_shard_size)
    if evaluation is not None:
        (into / "evaluation").mkdir()
        for name in EVALUATION_FILES:
            shutil.copyfile(evaluation / name, into / "evaluation" / name)
    write_sums(into)
    card = make_card(
        repo,
        license=license,
        training_data=training_data,
        cost=training_cost,
        evaluation=evaluation,
        adapter=adapter,
        # An adapter from training has this file. Other adapters have the task of their base, which may be elsewhere.
        task=checkpoint_task(folder) if (folder / "preprocessor_config.json").is_file() else BRAIN_TUMOUR,
    )
    card.save(into / CARD)
    return card


def _base_on_the_hub(folder: Path, base: str | None) -> str:
    recorded = adapter_base(folder)
    base = base or hub_id(recorded)
    on_this_machine = Path(recorded).is_absolute() or recorded in shipped_names()
    if on_this_machine and base is None:
        raise ValueError(
            f"The adapter's base {recorded} is only on this machine. Push the base too, and name its repository with "
            "--base. Name that of a shipped base in LORA_MOE_HGD_HUB_IDS instead, if you like."
        )
    if not on_this_machine and base not in (None, recorded):
        raise ValueError(f"The adapter was trained on the base {recorded}, so --base cannot be {base}.")
    return base or recorded


def upload(staged: Path, card: ModelCard, *, repo: str, private: bool, revision: str | None) -> str:
    """Create the repository if necessary, upload all files in one commit, and return the address of the commit.

    Raises:
        ValueError: If the Hub rejects the card, or if `private` is set but the repository is public.
    """
    api = HfApi()
    card.validate()
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise ValueError(
            f"{repo} exists already and is public. Make it private on the Hub, or push to another repository."
        )
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=staged,
        revision=revision,
        delete_patterns=STALE,
        commit_message="Weights, code, card and checksums",
    )
    return str(commit.commit_url)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = argparse.ArgumentParser(description="Push a network or an adapter to the Hub, with card and checksums.")
    parser.add_argument("--checkpoint", required=True, help="shipped name, or folder of a network or an adapter")
    parser.add_argument("--repo", required=True, help="name of the repository, such as me/brats-tiny")
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--evaluation", type=Path, help="output folder of `lora-moe-hgd evaluate` on these weights")
    scored.add_argument("--without-evaluation", action="store_true", help="push weights that were not evaluated")
    parser.add_argument("--license", required=True, help="licence of the weights, such as mit, as named on the Hub")
    parser.add_argument("--training-data", required=True, help="text for the card: training data and their citation")
    parser.add_argument("--training-cost", help="text for the card: hardware and time of the training")
    parser.add_argument("--base", help="repository of an adapter's base, if the base is a folder on this machine")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument("--max-shard-size", default="5GB", help="largest file of weights (default: 5GB)")
    parser.add_argument("--dry-run", action="store_true", help="only show files and sizes, push nothing")
    return parser


def main(argv: Sequence[str]) -> None:
    """Push a checkpoint to the Hub."""
    args = build_parser().parse_args(argv)
    try:
        validate_repo_id(args.repo)
    except HFValidationError as error:
        raise ValueError(f"--repo must be a name such as me/brats-tiny, got {args.repo}: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        card = stage(
            checkpoint_folder(args.checkpoint),
            staged,
            repo=args.repo,
            base=args.base,
            license=args.license,
            training_data=args.training_data,
            training_cost=args.training_cost,
            evaluation=args.evaluation,
            max_shard_size=args.max_shard_size,
        )
        if args.dry_run:
            print(_listing(staged))
            print(f"Nothing was pushed to {args.repo}, because of --dry-run.")
        else:
            address = upload(staged, card, repo=args.repo, private=args.private, revision=args.revision)
            print(f"Pushed: {address}")


def _listing(folder: Path) -> str:
    """Size and name of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder).as_posix()}" for path in paths]
    return "\n".join(lines)

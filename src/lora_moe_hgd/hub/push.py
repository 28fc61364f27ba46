"""Put a network or an adapter on the Hub, so that users of transformers and of this package can load it."""

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
from ..loading import adapter_base, checkpoint_digest, checkpoint_folder, is_adapter, load_checkpoint
from ..model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline
from ..pretrained import hub_id, shipped_names
from .card import make_card, read_scores
from .checksums import CARD, write_sums

EVALUATION_FILES = ("table.json", "table.md", "heat_map.png")
# Files of an earlier push that this one may not replace: more shards, older code.
STALE = ["*.safetensors", "*.safetensors.index.json", "*.py", "evaluation/*"]


def stage(
    folder: Path,
    into: Path,
    *,
    repo: str,
    base: str | None,
    license: str,
    training_data: str,
    evaluation: Path | None,
    max_shard_size: str,
) -> ModelCard:
    """Lay out in `into` what the repository shall hold; return its card.

    Raises:
        ValueError: If the evaluation is of other weights, or an adapter's base is not on the Hub.
    """
    if evaluation is not None and read_scores(evaluation)["about"]["checkpoint"] != checkpoint_digest(folder):
        raise ValueError(
            f"{evaluation} is an evaluation of other weights or settings than {folder}, or by another version of this "
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
            raise ValueError(f"--base is for adapters, and {folder} holds a whole network.")
        network, processor = load_checkpoint(folder)
        segmenter = BrainTumorSegmentationPipeline(model=network, image_processor=processor, device=-1)
        segmenter.save_pretrained(into, max_shard_size=max_shard_size)
    if evaluation is not None:
        (into / "evaluation").mkdir()
        for name in EVALUATION_FILES:
            shutil.copyfile(evaluation / name, into / "evaluation" / name)
    write_sums(into)
    card = make_card(repo, license=license, training_data=training_data, evaluation=evaluation, adapter=adapter)
    card.save(into / CARD)
    return card


def _base_on_the_hub(folder: Path, base: str | None) -> str:
    recorded = adapter_base(folder)
    base = base or hub_id(recorded)
    on_this_machine = Path(recorded).is_absolute() or recorded in shipped_names()
    if on_this_machine and base is None:
        raise ValueError(
            f"The adapter's base is {recorded} on this machine, where nobody else finds it: push it, too, and name "
            "its repository with --base, or in LORA_MOE_HGD_HUB_IDS if it is shipped."
        )
    if not on_this_machine and base not in (None, recorded):
        raise ValueError(f"--base must be the base that the adapter was trained over, {recorded}, got {base}.")
    return base or recorded


def upload(staged: Path, card: ModelCard, *, repo: str, private: bool, revision: str | None) -> str:
    """Make the repository if need be, and put everything there in one commit; return its address.

    Raises:
        ValueError: If the Hub finds the card invalid, or a private repository is wanted and it is there in public.
    """
    api = HfApi()
    card.validate()
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise ValueError(f"{repo} is there already and public; make it private on the Hub, or push to another.")
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


def main(argv: Sequence[str]) -> None:
    """Push a checkpoint's folder."""
    parser = argparse.ArgumentParser(description="Push a network or an adapter to the Hub, with card and checksums.")
    parser.add_argument("--checkpoint", required=True, help="shipped name, or folder of a network or an adapter")
    parser.add_argument("--repo", required=True, help="name of the repository, such as me/brats-tiny")
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--evaluation", type=Path, help="--out of `lora-moe-hgd evaluate` on these weights")
    scored.add_argument("--without-evaluation", action="store_true", help="push weights whose worth nobody knows")
    parser.add_argument("--license", required=True, help="the weights' licence as the Hub calls it, such as mit")
    parser.add_argument(
        "--training-data", required=True, help="for the card: what they learned from, and its citation"
    )
    parser.add_argument("--base", help="repository of an adapter's base, if the base is a folder on this machine")
    parser.add_argument("--private", action="store_true", help="for your account alone")
    parser.add_argument("--revision", help="branch to push to; main if left out")
    parser.add_argument("--max-shard-size", default="5GB", help="weights above this are split; 5GB if left out")
    parser.add_argument("--dry-run", action="store_true", help="show files and sizes, push nothing")
    args = parser.parse_args(argv)
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
            evaluation=args.evaluation,
            max_shard_size=args.max_shard_size,
        )
        if args.dry_run:
            print(_listing(staged))
            print(f"Nothing was pushed to {args.repo}: --dry-run.")
        else:
            address = upload(staged, card, repo=args.repo, private=args.private, revision=args.revision)
            print(f"Pushed: {address}")


def _listing(folder: Path) -> str:
    """Size and name of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder).as_posix()}" for path in paths]
    return "\n".join(lines)

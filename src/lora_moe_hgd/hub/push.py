"""Upload a network or an adapter to the Hub, so that users of transformers and of this package can load it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import LoraConfig

from ..adapters.presets import preset_of
from ..arguments import CommandParser
from ..files import reason_of
from ..loading import (
    adapter_base,
    checkpoint_digest,
    checkpoint_folder,
    checkpoint_task,
    is_adapter,
    load_checkpoint,
    local_folder,
    read_settings,
)
from ..model.pipeline_lora_moe_hgd import BrainTumorSegmentationPipeline
from ..model.task import BRAIN_TUMOUR
from ..pretrained import hub_id, shipped_names
from .card import PICTURES, make_card, read_scores
from .checksums import CARD, write_sums
from .companions import NOTEBOOK_ON_HUB, write_notebook, write_space, write_wheel
from .licences import licence_warning

EVALUATION_FILES = ("table.json", "table.md", *PICTURES)
# A push deletes these files in the repository first, because an earlier push may have had other shards or code files.
STALE = ["*.safetensors", "*.safetensors.index.json", "*.py", "evaluation/*", "*.whl", NOTEBOOK_ON_HUB]
BASE_REMEDY = (
    "Push the base too, and name its repository with --base. For a shipped base, you can set the environment variable "
    "LORA_MOE_HGD_HUB_IDS=tiny=OWNER/NAME instead of --base."
)
# The Hub ends the slug of a collection with 24 hexadecimal digits.
SLUG = re.compile(r"[^/]+/.+-[0-9a-f]{24}")


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
    revision: str | None = None,
) -> ModelCard:
    """Write all files of the repository into the folder `into`, and return the card.

    If the task is brain tumour, the files include a notebook, and the wheel that the notebook installs.

    Raises:
        ValueError: If the evaluation belongs to other weights, if `base` is given for a complete network, if `base` is
            not the base of the adapter, or if the adapter's base is only on this machine and `base` is `None`.
    """
    if evaluation is not None and read_scores(evaluation)["about"]["checkpoint"] != checkpoint_digest(folder):
        raise ValueError(
            f"The evaluation in {evaluation} was made with other weights or settings than those in {folder}, or with "
            "another version of this package. Run `lora-moe-hgd evaluate` on these weights."
        )
    adapter = None
    if is_adapter(folder):
        adapter = (_base_on_the_hub(folder, base), preset_of(LoraConfig.from_pretrained(str(folder))))
        config = read_settings(folder / "adapter_config.json")
        config["base_model_name_or_path"] = adapter[0]
        (into / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        shutil.copyfile(folder / "adapter_model.safetensors", into / "adapter_model.safetensors")
        if (folder / "preprocessor_config.json").is_file():
            shutil.copyfile(folder / "preprocessor_config.json", into / "preprocessor_config.json")
    else:
        if base is not None:
            raise ValueError(f"--base is for adapters, but {folder} contains a complete network. Omit --base.")
        network, processor = load_checkpoint(folder)
        segmenter = BrainTumorSegmentationPipeline(model=network, image_processor=processor, device=-1)
        segmenter.save_pretrained(into, max_shard_size=max_shard_size)
    if evaluation is not None:
        (into / "evaluation").mkdir()
        for name in EVALUATION_FILES:
            shutil.copyfile(evaluation / name, into / "evaluation" / name)
    # Adapters that this package trained have this file, which contains the task. Other adapters do not record a task,
    # and their base may not be on this machine, so they count as adapters for brain tumours.
    task = checkpoint_task(folder) if (folder / "preprocessor_config.json").is_file() else BRAIN_TUMOUR
    if task.is_brain_tumour:
        write_notebook(into, repo=repo, revision=revision, wheel=write_wheel(into).name)
    write_sums(into)
    card = make_card(
        repo,
        license=license,
        training_data=training_data,
        cost=training_cost,
        evaluation=evaluation,
        adapter=adapter,
        task=task,
    )
    card.save(into / CARD)
    return card


def _lacks_base(folder: Path, base: str | None) -> bool:
    """Whether a Hub repository of the adapter's base must still be named, because the base is only on this machine."""
    return _is_local_base(adapter_base(folder)) and not (base or hub_id(adapter_base(folder)))


def _is_local_base(base: str) -> bool:
    return Path(base).is_absolute() or base in shipped_names()


def _base_on_the_hub(folder: Path, base: str | None) -> str:
    recorded = adapter_base(folder)
    if _lacks_base(folder, base):
        raise ValueError(f"The adapter's base {recorded} is only on this machine. {BASE_REMEDY}")
    base = base or hub_id(recorded)
    if not _is_local_base(recorded) and base not in (None, recorded):
        raise ValueError(f"The adapter was trained on the base {recorded}, so --base cannot be {base}. Omit --base.")
    return base or recorded


def publish(
    staged: Path,
    card: ModelCard,
    *,
    repo: str,
    private: bool,
    revision: str | None,
    space: str | None,
    collection: str | None,
) -> None:
    """Upload a repository and its Space, and add both to a collection. Print the Hub address of each.

    Args:
        staged: Folder with all files of the repository.
        card: Card of the repository.
        repo: Name of the repository, which is created if necessary.
        private: Whether new repositories and collections are private.
        revision: Branch to push to; `None` means `main`.
        space: Name of the Space. `None` means no Space.
        collection: Slug of a collection, or title of a collection of the repository's owner. If no collection has this
            title, a new collection is created. `None` means no collection.

    Raises:
        ValueError: If a step fails. The error message names the failed step and lists the finished steps.
    """
    api, done = HfApi(), list[str]()
    with _step(f"The upload of {repo}", done):
        commit = upload(staged, card, repo=repo, private=private, revision=revision, public=space is not None)
    _report(done, repo, commit.commit_url)
    if space is not None:
        with _step(f"The upload of the Space {space}", done), tempfile.TemporaryDirectory() as scratch:
            _write_space(staged, Path(scratch), repo=repo, revision=revision, commit=commit.oid)
            address = api.create_repo(space, repo_type="space", space_sdk="gradio", exist_ok=True)
            api.upload_folder(
                repo_id=space, repo_type="space", folder_path=scratch, commit_message=f"The page of {repo}"
            )
        _report(done, f"the Space {space}", str(address))
    if collection is not None:
        with _step(f"The collection {collection}", done):
            slug = collection
            if not SLUG.fullmatch(collection):
                owner = repo.split("/")[0]
                slug = api.create_collection(collection, namespace=owner, private=private, exists_ok=True).slug
            found = api.add_collection_item(slug, repo, "model", exists_ok=True)
            if space is not None:
                found = api.add_collection_item(slug, space, "space", exists_ok=True)
        _report(done, f"the collection {slug}", found.url)


def _report(done: list[str], name: str, address: str) -> None:
    """Print the name and the Hub address of a finished upload, and append the name to `done`."""
    done.append(name)
    print(f"Pushed {name}: {address}", flush=True)


@contextmanager
def _step(name: str, done: Sequence[str]) -> Iterator[None]:
    """Convert an error inside the `with` block to a `ValueError` that names the step, the finished steps and a remedy.

    The error message never contains the access token.
    """
    try:
        yield
    except Exception as error:
        reason = reason_of(error)
        if token := get_token():
            # The error of an HTTP client may quote a header, and a header contains the token.
            reason = reason.replace(token, "[token]")
        already = f"Pushed before: {', '.join(done)}." if done else "Nothing was pushed."
        # `from None` hides the original error, because its text may contain the token.
        raise ValueError(
            f"{name} failed: {reason.rstrip('.')}. {already} Remove the cause and run the same command again. Files "
            "that are on the Hub already are not uploaded again."
        ) from None


def upload(
    staged: Path, card: ModelCard, *, repo: str, private: bool, revision: str | None, public: bool
) -> CommitInfo:
    """Create the repository if necessary, upload all files in one commit, and return the commit.

    Args:
        staged: Folder with all files of the repository.
        card: Card of the repository.
        repo: Name of the repository.
        private: Whether the repository must be private.
        revision: Branch to push to; `None` means `main`.
        public: Whether the repository must be public.

    Raises:
        ValueError: If the Hub rejects the card, or if an existing repository is public although `private` is set, or
            private although `public` is set.
    """
    api = HfApi()
    card.validate()
    api.create_repo(repo, private=private or None, exist_ok=True)
    is_private = api.model_info(repo).private if private or public else None
    if private and not is_private:
        raise ValueError(
            f"{repo} exists already and is public. Make {repo} private on the Hub, or push to another repository."
        )
    if public and is_private:
        raise ValueError(
            f"A Space cannot download from the private repository {repo}. Make {repo} public, or omit --space."
        )
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo,
        folder_path=staged,
        revision=revision,
        delete_patterns=STALE,
        commit_message="Weights, code, card and checksums",
    )


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = CommandParser(description="Push a network or an adapter to the Hub, with card and checksums.")
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="name of a shipped checkpoint, or folder or Hub id of a network or an adapter",
    )
    # A dry run needs only --checkpoint. Otherwise, `_missing` lists all that is missing at once.
    parser.add_argument("--repo", help="name of the repository, such as me/brats-tiny")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument("--evaluation", type=Path, help="output folder of `lora-moe-hgd evaluate` on these weights")
    scored.add_argument("--without-evaluation", action="store_true", help="push weights that were not evaluated")
    parser.add_argument("--license", help="licence of the weights, named as on the Hub, such as mit")
    parser.add_argument("--training-data", help="text for the card: training data and their citation")
    parser.add_argument("--training-cost", help="text for the card: hardware and time of the training")
    parser.add_argument("--base", help="Hub repository of an adapter's base, if the base is only on this machine")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", help="branch to push to (default: main)")
    parser.add_argument(
        "--space",
        nargs="?",
        const="",
        metavar="ID",
        help="also push a Space that serves the page of `lora-moe-hgd app` with this checkpoint (default ID: that "
        "of --repo)",
    )
    parser.add_argument(
        "--collection",
        metavar="NAME_OR_SLUG",
        help="also add the repository and the Space to this collection, which is created if it does not exist",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", help="size above which weights are split into several files (default: 5GB)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show files, sizes and missing options; push nothing"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Push a checkpoint to the Hub."""
    args = build_parser().parse_args(argv)
    # Without a dry run, a checkpoint on the Hub is downloaded only if no option is missing.
    find = checkpoint_folder if args.dry_run else local_folder
    missing = _missing(args, find(args.checkpoint))
    still = "".join(f"\n  {line}" for line in missing.values())
    if missing and not args.dry_run:
        raise ValueError(f"Options are missing:{still}\nTo see the files without giving these options, add --dry-run.")
    # In a dry run, examples stand for missing options.
    repo = args.repo or "OWNER/NAME"
    space = repo if args.space == "" else args.space
    _check_name("--repo", repo)
    if space is not None:
        _check_name("--space", space)
        if args.private:
            raise ValueError("A Space cannot download from a private repository. Omit --space or --private.")
    folder = checkpoint_folder(args.checkpoint)
    if args.license and (warning := licence_warning(folder, args.license)):
        print(f"warning: {warning}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        card = stage(
            folder,
            staged,
            repo=repo,
            base="OWNER/BASE" if "base" in missing else args.base,
            license=args.license or "unknown",
            training_data=args.training_data or "",
            training_cost=args.training_cost,
            evaluation=args.evaluation,
            max_shard_size=args.max_shard_size,
            revision=args.revision,
        )
        if space is not None and not any(staged.glob("*.whl")):
            raise ValueError(
                "--space needs a checkpoint for brain tumours, but this checkpoint has another task. Omit --space."
            )
        if args.dry_run:
            print(_listing(staged, f"the repository {repo}"))
            if space is not None:
                print(_space_listing(staged, space, repo=repo, revision=args.revision))
            others = [f"the Space {space}"] if space else []
            others += [f"the collection {args.collection}"] if args.collection else []
            print(f"Nothing was pushed to {', '.join([repo, *others])}, because of --dry-run.")
            if missing:
                print(f"A push also needs these options:{still}")
        else:
            publish(
                staged,
                card,
                repo=repo,
                private=args.private,
                revision=args.revision,
                space=space,
                collection=args.collection,
            )


def _missing(args: argparse.Namespace, folder: Path | None) -> dict[str, str]:
    """Options that a push still needs, each with a line that explains the option.

    Args:
        args: The options.
        folder: Folder of the checkpoint. `None` if the checkpoint is not on this machine.
    """
    needed = {
        "repo": (args.repo, "--repo OWNER/NAME: name of the repository"),
        "evaluation": (
            args.evaluation or args.without_evaluation,
            "--evaluation FOLDER: output of `lora-moe-hgd evaluate` on these weights; or --without-evaluation",
        ),
        "license": (args.license, "--license NAME: licence of the weights, named as on the Hub, such as mit"),
        "training_data": (args.training_data, "--training-data TEXT: training data and their citation, for the card"),
    }
    missing = {name: line for name, (given, line) in needed.items() if not given}
    if folder is not None and is_adapter(folder) and _lacks_base(folder, args.base):
        missing["base"] = (
            f"--base OWNER/NAME: repository of the base {adapter_base(folder)}, which is only on this machine. "
            f"{BASE_REMEDY}"
        )
    return missing


def _check_name(option: str, name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{option} must be a name such as me/brats-tiny, got {name}: {error}") from error
    if "/" not in name:
        raise ValueError(f"{option} must be OWNER/NAME, such as me/brats-tiny, got {name}.")


def _write_space(staged: Path, into: Path, *, repo: str, revision: str | None, commit: str) -> None:
    """Write the files of a Space into the folder `into`. `staged` contains the files of the repository."""
    (wheel,) = staged.glob("*.whl")
    write_space(into, repo=repo, revision=revision, commit=commit, wheel=wheel.name)


def _space_listing(staged: Path, space: str, *, repo: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        # A commit exists only after a push. Every commit has 40 digits, so the sizes are correct.
        _write_space(staged, Path(scratch), repo=repo, revision=revision, commit="0" * 40)
        return _listing(Path(scratch), f"the Space {space}")


def _listing(folder: Path, name: str) -> str:
    """Size and name of every file in `folder`, below a line that names the repository or the Space."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size:>14,} bytes  {path.relative_to(folder).as_posix()}" for path in paths]
    return "\n".join([f"Files of {name}:", *lines])

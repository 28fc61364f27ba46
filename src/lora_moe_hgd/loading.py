"""Load checkpoints by name.

A name is the name of a shipped checkpoint, a folder, `X.pt` for the folder `X`, or a Hub id, optionally followed by
`@` and a branch, tag or commit. A checkpoint is either a complete network or a PEFT adapter of a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from transformers.utils.logging import set_tqdm_hook

from .fingerprints import file_fingerprint, fingerprint
from .model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from .model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .model.task import BRAIN_TUMOUR, Task
from .pretrained import DEFAULT_CHECKPOINT, pretrained_path, shipped_names

# Name of the folder of the shipped checkpoints.
_SHIPPED = pretrained_path("tiny").parent.name


def checkpoint_folder(name: str | Path) -> Path:
    """Return the local folder of a checkpoint. A Hub repository is downloaded to the Hub's cache.

    Raises:
        ValueError: If `name` is a pickle file, or is not a folder, a shipped name or a Hub id.
    """
    folder = _folder_on_disk(name)
    if folder is not None:
        return folder
    repo, _, revision = str(name).partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    # No repository of this network has a name without an owner, so such a name is a typing error.
    if "/" not in repo:
        shipped = ", ".join(shipped_names())
        raise ValueError(
            f"There is no checkpoint '{name}'. Give a folder, a shipped name ({shipped}) or a Hub id, OWNER/NAME."
        )
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))


def checkpoint_digest(folder: Path) -> str:
    """Fingerprint of a checkpoint and of the package's version, because results depend on both."""
    return fingerprint(weights_digest(folder))


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights and settings in a checkpoint's folder. For an adapter, its base is included."""
    paths = (*folder.glob("*.json"), *folder.glob("*.safetensors"))
    content = [f"{path.name} {file_fingerprint(path)}" for path in sorted(paths)]
    if is_adapter(folder):
        content.append(weights_digest(checkpoint_folder(adapter_base(folder))))
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def checkpoint_task(folder: Path) -> Task:
    """Read the task of a checkpoint, without its weights.

    Raises:
        BadInputError: If the task is invalid.
    """
    settings = folder / "preprocessor_config.json"
    if settings.is_file():
        task = json.loads(settings.read_text()).get("task")
        return BRAIN_TUMOUR if task is None else Task.from_dict(task)
    # An adapter has the task of its base. Loading of any other folder without this file raises an error later.
    return checkpoint_task(checkpoint_folder(adapter_base(folder))) if is_adapter(folder) else BRAIN_TUMOUR


def is_adapter(folder: Path) -> bool:
    """Whether the folder contains a PEFT adapter, not a complete network."""
    return (folder / "adapter_config.json").is_file()


def adapter_base(folder: Path) -> str:
    """Name of the base of the adapter in `folder`.

    Raises:
        ValueError: If the adapter's configuration does not name a base.
    """
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(
            f"`base_model_name_or_path` in {folder / 'adapter_config.json'} must name the adapter's base, got {base}."
        )
    path = Path(base)
    if path.is_absolute() and not path.exists() and path.parent.name == _SHIPPED and path.name in shipped_names():
        # The adapter was trained on another computer, where the package is installed elsewhere.
        return path.name
    return str(base)


def base_name(name: str | Path) -> str:
    """Name of this checkpoint in an adapter's configuration: a Hub id unchanged, a folder as full path."""
    folder = _folder_on_disk(name)
    return str(name) if folder is None else str(folder.resolve())


def _folder_on_disk(name: str | Path) -> Path | None:
    """Return the folder on this machine for `name`; `None` if `name` can only be a Hub id."""
    path = Path(name)
    # Shipped names come first, so that a folder in the working directory cannot hide the base of a shipped adapter.
    if str(name) in shipped_names():
        return pretrained_path(str(name))
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file, but a checkpoint is a folder with safetensors weights. Pickled files (.pt, .pth, "
            ".bin) are not supported, because loading them can run malicious code."
        )
    if path.suffix == ".pt" and path.with_suffix("").is_dir():
        return path.with_suffix("")
    if path.is_absolute() or path.suffix == ".pt" or str(name).startswith("."):
        raise ValueError(f"There is no checkpoint folder {path.with_suffix('') if path.suffix == '.pt' else path}.")
    return None


def usable_device(name: str | None) -> str:
    """Check the name of a device. `None` means `cuda` where there is a GPU, else `cpu`.

    Raises:
        ValueError: If this machine has no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    # Torch raises various errors, such as AssertionError if it was built without support for the device.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"The device '{name}' cannot be used: {reason}. Choose cpu, or cuda:0 on a GPU.") from error
    return name


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, because weights load in less than a second. Downloads still show one."""
    before = set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


def load_checkpoint(
    name: str | Path = DEFAULT_CHECKPOINT, *, device: str = "cpu"
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """Load a network in evaluation mode and its processor. An adapter is merged into its base.

    Args:
        name: Network or adapter: shipped name, folder, or Hub id, optionally followed by `@` and a revision.
        device: Device of the network.

    Raises:
        ValueError: If the checkpoint cannot be found or is a pickle file.
    """
    folder = checkpoint_folder(name)
    if not is_adapter(folder):
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{folder} contains no checkpoint: neither config.json nor adapter_config.json exists. Give the "
                "folder of a network or an adapter."
            )
        with _without_bars():
            network = LoraMoeHgdForSegmentation.from_pretrained(folder, use_safetensors=True)
        network.to(device)  # type: ignore[arg-type]  # transformers wraps it without its type
        return network.eval(), LoraMoeHgdImageProcessor.from_pretrained(folder)
    network, processor = load_checkpoint(adapter_base(folder), device=device)
    if (folder / "preprocessor_config.json").is_file():
        # The adapter may have been trained at another voxel size than its base.
        processor = LoraMoeHgdImageProcessor.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(network, folder).merge_and_unload()
    # PEFT records this name as base in new adapters of this network.
    adapted.name_or_path = str(folder)
    # PEFT froze the base. The merged network must be trainable like any other network.
    return adapted.eval().requires_grad_(True), processor

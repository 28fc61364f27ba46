"""Load checkpoints by name.

A checkpoint is either a complete network or a PEFT adapter of a network. The name of a checkpoint is a shipped name, a
folder, or a Hub id. If there is no file `X.pt`, the name `X.pt` means the folder `X`. A Hub id may end with `@` and a
branch, tag or commit.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import set_tqdm_hook

from .files import did_you_mean, read_json, reason_of
from .fingerprints import file_fingerprint, fingerprint
from .model.findings import BadInputError
from .model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from .model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .model.task import BRAIN_TUMOUR, Task
from .pretrained import DEFAULT_CHECKPOINT, pretrained_path, shipped_names
from .processes import is_fast_in_bf16

# Key in the section `auto_mapping` of adapter_config.json, which PEFT reserves for facts about the base.
BASE_DIGEST = "base_weights_sha256"


def checkpoint_folder(name: str | Path) -> Path:
    """Return the local folder of a checkpoint. A Hub repository is downloaded to the Hub's cache.

    Raises:
        ValueError: If `name` is a pickle file, or is neither a folder nor a shipped name nor a Hub id, or if a
            download fails.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    repo, _, revision = str(name).partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    # Every Hub repository of this network has an owner, so a name without an owner is a typing error.
    if "/" not in repo:
        shipped = shipped_names()
        raise ValueError(
            f"There is no checkpoint '{name}'.{did_you_mean(str(name), shipped)} Give a folder, a shipped name "
            f"({', '.join(shipped)}) or a Hub id, OWNER/NAME."
        )
    with hub_errors(str(name)):
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Convert an error that a Hub download raises inside the `with` block to a `ValueError` with a remedy.

    Args:
        name: Hub id of the repository, as the user gave it.
    """
    try:
        yield
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"There is no folder {name} here, and the Hub repository of this name could not be downloaded "
            f"({reason_of(error).rstrip('.')}). Check the name, the connection and, for a private repository, the "
            "login (`hf auth login`)."
        ) from error


def checkpoint_digest(folder: Path, *, base: str | Path | None = None) -> str:
    """Fingerprint of a checkpoint and of the package's version, because results depend on both."""
    return fingerprint(weights_digest(folder, base=base))


def weights_digest(folder: Path, *, base: str | Path | None = None) -> str:
    """SHA-256 of the weights and settings of a checkpoint. For an adapter, the digest also covers its base."""
    paths = (*folder.glob("*.json"), *folder.glob("*.safetensors"))
    content = [f"{path.name} {file_fingerprint(path)}" for path in sorted(paths)]
    if is_adapter(folder):
        content.append(weights_digest(find_base(folder, base)))
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def tensors_digest(folder: Path) -> str:
    """SHA-256 of the tensors of a checkpoint and, for an adapter, of its base.

    The digest of a network depends neither on its settings nor on the number of its weight files. So a network on the
    Hub has the same digest as the folder from which it was pushed.
    """
    found = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    if is_adapter(folder):
        config = PeftConfig.from_pretrained(str(folder)).to_dict()
        for name in ("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"):
            del config[name]
        found.update(json.dumps(config, sort_keys=True, default=sorted).encode())
        found.update(tensors_digest(find_base(folder)).encode())
    return found.hexdigest()


def checkpoint_task(folder: Path, *, base: str | Path | None = None) -> Task:
    """Read the task of a checkpoint without loading the weights.

    Raises:
        BadInputError: If the task is invalid.
        ValueError: If the folder contains no checkpoint.
    """
    _require_checkpoint(folder)
    settings = folder / "preprocessor_config.json"
    if settings.is_file():
        task = read_settings(settings).get("task")
        return BRAIN_TUMOUR if task is None else Task.from_dict(task)
    # An adapter without this file has the task of its base.
    if is_adapter(folder):
        return checkpoint_task(find_base(folder, base))
    return BRAIN_TUMOUR


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file with settings of a checkpoint.

    Raises:
        BadInputError: If the file is too large or not a JSON object.
    """
    remedy = "This file belongs to a checkpoint. Save or download the checkpoint again."
    settings = read_json(path, remedy=remedy)
    if not isinstance(settings, dict):
        raise BadInputError(path, f"The file is not a JSON object. {remedy}")
    return settings


def _require_checkpoint(folder: Path) -> None:
    """Check that a folder contains a network or an adapter.

    Raises:
        ValueError: If the folder has neither config.json nor adapter_config.json.
    """
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} contains no checkpoint: neither config.json nor adapter_config.json exists. Give the folder of "
            "a network or an adapter."
        )


def is_adapter(folder: Path) -> bool:
    """Whether the folder contains a PEFT adapter, not a complete network."""
    return (folder / "adapter_config.json").is_file()


def adapter_base(folder: Path) -> str:
    """Name of an adapter's base: shipped name, Hub id, or full path of a folder.

    Raises:
        ValueError: If the adapter's configuration does not name a base.
    """
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(
            f"`base_model_name_or_path` in {folder / 'adapter_config.json'} must name the adapter's base, got {base}."
        )
    return str((folder / base).resolve()) if base.startswith(".") else str(base)


def base_digest(folder: Path) -> str | None:
    """`tensors_digest` of the base on which the adapter in `folder` was trained; `None` if it is not known."""
    return (read_settings(folder / "adapter_config.json").get("auto_mapping") or {}).get(BASE_DIGEST)


def find_base(folder: Path, base: str | Path | None = None) -> Path:
    """Local folder of an adapter's base.

    Args:
        folder: Folder of the adapter.
        base: Folder or Hub id of the adapter's base. `None` means the base that `adapter_config.json` names.

    Raises:
        ValueError: If the base is not found, or is not the network on which the adapter was trained.
    """
    digest = base_digest(folder)
    # The base may be one of the shipped networks, whose digests are computed first.
    digest_of = functools.cache(tensors_digest)
    if base is None:
        for name in shipped_names() if digest else ():
            # A shipped network with equal weights is the base, whatever its name was when the adapter was trained.
            if not is_adapter(pretrained_path(name)) and digest_of(pretrained_path(name)) == digest:
                return pretrained_path(name)
    name = str(base or adapter_base(folder))
    try:
        found = checkpoint_folder(name)
    except ValueError as error:
        raise ValueError(
            f"The base of the adapter in {folder} is not found: {error} Name the folder or Hub id of the base with "
            "--base."
        ) from error
    if digest is not None and (got := digest_of(found)) != digest:
        raise ValueError(
            f"The adapter in {folder} was trained on the base {_called(adapter_base(folder))} (digest of the weights: "
            f"{digest[:12]}), but {name} has other weights (digest: {got[:12]}). Name the folder or Hub id of the "
            "adapter's own base with --base."
        )
    return found


def _called(base: str) -> str:
    """Name of a base for messages. If the name is a full path, only its last part is shown."""
    return Path(base).name if Path(base).is_absolute() else base


def base_reference(name: str | Path, *, adapter: Path) -> str:
    """Name of a base to write into `adapter_config.json`, so that other computers find the base.

    Args:
        name: Name of the base.
        adapter: Folder of the adapter.

    Returns:
        Shipped name or Hub id. For any other folder, the path relative to the adapter's folder. This path begins with
        a dot, so it is not read as a Hub id.
    """
    folder = local_folder(name)
    if folder is None:
        return str(name)
    if shipped := shipped_name(folder):
        return shipped
    way = os.path.relpath(folder.resolve(), adapter.resolve())
    return way if way.startswith(".") else f"./{way}"


def shipped_name(folder: Path) -> str | None:
    """Name of the shipped checkpoint in this folder; `None` for any other folder."""
    return next((name for name in shipped_names() if pretrained_path(name).resolve() == folder.resolve()), None)


def base_name(name: str | Path) -> str:
    """Name of a base that is valid in every working directory: a Hub id as it is, or the full path of a folder."""
    folder = local_folder(name)
    return str(name) if folder is None else str(folder.resolve())


def local_folder(name: str | Path) -> Path | None:
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
        raise ValueError(
            f"There is no checkpoint folder {path.with_suffix('') if path.suffix == '.pt' else path}. Check the path."
        )
    return None


def usable_device(name: str | None, *, bf16: bool = False) -> str:
    """Check a device, and return its name. `None` means `cuda` if there is a GPU, otherwise `cpu`.

    Args:
        name: Name of a device.
        bf16: Whether the device will compute in bfloat16.

    Raises:
        ValueError: If this machine has no such device, or if `bf16` is true and the device is not known to compute
            faster in bfloat16.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        _require_device(name)
    if bf16 and not is_fast_in_bf16(name):
        raise ValueError(f"The device '{name}' is not known to compute faster in bfloat16. Leave out bf16.")
    return name


def _require_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    # Torch raises various errors, such as AssertionError if it was built without support for the device.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"The device '{name}' cannot be used: {reason}. Choose cpu, or cuda:0 on a GPU.") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars that transformers shows while it loads weights. Downloads still show a bar."""
    before = set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


def load_checkpoint(
    name: str | Path = DEFAULT_CHECKPOINT, *, device: str = "cpu", base: str | Path | None = None
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """Load a network in evaluation mode, and its image processor. An adapter is merged into its base.

    Args:
        name: Network or adapter: name of a shipped checkpoint, folder, or Hub id with or without `@` and a revision.
        device: Device of the network.
        base: For an adapter: folder or Hub id of its base. `None` means the base that `adapter_config.json` names.

    Raises:
        ValueError: If the checkpoint is not found or is a pickle file, or if an adapter was trained on another base.
    """
    folder = checkpoint_folder(name)
    _require_checkpoint(folder)
    if not is_adapter(folder):
        with _without_bars():
            network = LoraMoeHgdForSegmentation.from_pretrained(folder, use_safetensors=True, return_dict=True)
        # PEFT records this name as the base of new adapters. Unlike the path of the installed package, a shipped name
        # is valid on every computer.
        network.name_or_path = shipped_name(folder) or str(folder)
        network.to(device)
        return network.eval(), LoraMoeHgdImageProcessor.from_pretrained(folder)
    network, processor = load_checkpoint(find_base(folder, base), device=device)
    if (folder / "preprocessor_config.json").is_file():
        # The adapter may have been trained at another voxel size than its base.
        processor = LoraMoeHgdImageProcessor.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(network, folder).merge_and_unload()
    # PEFT records this name as the base of new adapters.
    adapted.name_or_path = shipped_name(folder) or str(folder)
    # PEFT froze the base. The merged network must be trainable like any other network.
    return adapted.eval().requires_grad_(True), processor

"""Loading of checkpoints by name.

A name is that of a shipped checkpoint, a folder, `X.pt` for the folder `X`, or a Hub id, with `@` and a branch, tag or
commit behind it if need be; each may hold a whole network or a PEFT adapter over one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import set_tqdm_hook

from .fingerprints import file_fingerprint, fingerprint
from .model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from .model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .pretrained import DEFAULT_CHECKPOINT, pretrained_path, shipped_names

# Key of `auto_mapping` in adapter_config.json, where PEFT keeps what helps to find the base.
BASE_DIGEST = "base_weights_sha256"


def checkpoint_folder(name: str | Path) -> Path:
    """Return the local folder of a checkpoint; a Hub repository is fetched into the Hub's cache.

    Raises:
        ValueError: If `name` is a pickle file, or neither a folder nor a name nor a Hub id.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    repo, _, revision = str(name).partition("@")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    # The Hub's few names without an owner are none of this network's, but slips of the pen are.
    if "/" not in repo:
        shipped = ", ".join(shipped_names())
        raise ValueError(f"'{name}' is neither a folder, nor shipped ({shipped}), nor a Hub id, OWNER/NAME.")
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))


def checkpoint_digest(folder: Path, *, base: str | Path | None = None) -> str:
    """Fingerprint of a checkpoint and of the package's version: results are made from both."""
    return fingerprint(weights_digest(folder, base=base))


def weights_digest(folder: Path, *, base: str | Path | None = None) -> str:
    """SHA-256 of the weights and settings in a checkpoint's folder, and of those of an adapter's base."""
    paths = (*folder.glob("*.json"), *folder.glob("*.safetensors"))
    content = [f"{path.name} {file_fingerprint(path)}" for path in sorted(paths)]
    if is_adapter(folder):
        content.append(weights_digest(find_base(folder, base)))
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def tensors_digest(folder: Path) -> str:
    """SHA-256 of the tensors of a checkpoint, and of what an adapter goes over.

    It depends neither on the settings beside the weights nor on the number of files: a network on the Hub has the
    digest of the folder that it was pushed from.
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


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter and no whole network."""
    return (folder / "adapter_config.json").is_file()


def adapter_base(folder: Path) -> str:
    """Name of the base that the adapter in `folder` goes over: shipped name, Hub id, or path of a folder.

    Raises:
        ValueError: If the folder does not tell.
    """
    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(
            f"`base_model_name_or_path` in {folder / 'adapter_config.json'} must name the base, got {base}."
        )
    return str((folder / base).resolve()) if base.startswith(".") else str(base)


def base_digest(folder: Path) -> str | None:
    """`tensors_digest` of the base that the adapter in `folder` was trained over, if it is recorded."""
    return (json.loads((folder / "adapter_config.json").read_text()).get("auto_mapping") or {}).get(BASE_DIGEST)


def find_base(folder: Path, base: str | Path | None = None) -> Path:
    """Local folder of the base that the adapter in `folder` goes over.

    Args:
        folder: Folder of the adapter.
        base: Where to look for the base, instead of where the adapter says.

    Raises:
        ValueError: If it is not found, or has other weights than the adapter was trained over.
    """
    digest = base_digest(folder)
    if base is None:
        for name in shipped_names() if digest else ():
            # Whatever it was called where the adapter was trained.
            if not is_adapter(pretrained_path(name)) and tensors_digest(pretrained_path(name)) == digest:
                return pretrained_path(name)
    name = str(base or adapter_base(folder))
    try:
        found = checkpoint_folder(name)
    except ValueError as error:
        raise ValueError(
            f"The base of the adapter in {folder} is not found: {error} Name its place with --base."
        ) from error
    if digest is not None and (got := tensors_digest(found)) != digest:
        raise ValueError(
            f"The adapter in {folder} was trained over {_called(adapter_base(folder))} with the weights "
            f"{digest[:12]}, but {name} has the weights {got[:12]}. Name the folder or Hub id of its base with --base."
        )
    return found


def _called(base: str) -> str:
    """Name of a base for messages, without the folders around it."""
    return Path(base).name if Path(base).is_absolute() else base


def base_reference(name: str | Path, *, adapter: Path) -> str:
    """How an adapter names its base so that it is found on other computers.

    Args:
        name: Name of the base.
        adapter: Folder in which the adapter lies.

    Returns:
        Shipped name or Hub id; for another folder the way to it from that of the adapter, which begins with a dot.
    """
    folder = local_folder(name)
    if folder is None:
        return str(name)
    if shipped := _shipped_name(folder):
        return shipped
    way = os.path.relpath(folder.resolve(), adapter.resolve())
    return way if way.startswith(".") else f"./{way}"


def _shipped_name(folder: Path) -> str | None:
    """Name of a shipped checkpoint from its folder; `None` of any other folder."""
    return next((name for name in shipped_names() if pretrained_path(name).resolve() == folder.resolve()), None)


def base_name(name: str | Path) -> str:
    """Name by which an adapter refers to this checkpoint: a Hub id as it is, a folder by its full path."""
    folder = local_folder(name)
    return str(name) if folder is None else str(folder.resolve())


def local_folder(name: str | Path) -> Path | None:
    """The folder that `name` means on this machine; `None` if it can only be a Hub id."""
    path = Path(name)
    # First, so that a shipped adapter finds its base whatever lies in the working directory.
    if str(name) in shipped_names():
        return pretrained_path(str(name))
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file; a checkpoint is a folder with safetensors weights. Pickled files (.pt, .pth, .bin) "
            "are not read, because loading one can run any code it holds."
        )
    if path.suffix == ".pt" and path.with_suffix("").is_dir():
        return path.with_suffix("")
    if path.is_absolute() or path.suffix == ".pt" or str(name).startswith("."):
        raise ValueError(f"No checkpoint folder {path.with_suffix('') if path.suffix == '.pt' else path} is there.")
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
    # Torch raises AssertionError where it was built without the device, and other kinds elsewhere.
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"The device '{name}' cannot be used: {reason}. Choose cpu, or cuda:0 on a GPU.") from error
    return name


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers: weights load in less than a second. Downloads keep theirs."""
    before = set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


def load_checkpoint(
    name: str | Path = DEFAULT_CHECKPOINT, *, device: str = "cpu", base: str | Path | None = None
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """Load a network in evaluation mode and its processor; an adapter is merged into its base.

    Args:
        name: Shipped name, folder, or Hub id with `@` and a revision if need be; of a network or an adapter.
        device: Where the network is put.
        base: Where to look for the base of an adapter, instead of where the adapter says.

    Raises:
        ValueError: If the checkpoint cannot be found or is a pickle file, or the base has other weights than the
            adapter was trained over.
    """
    folder = checkpoint_folder(name)
    if not is_adapter(folder):
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no checkpoint: neither config.json nor adapter_config.json is there.")
        with _without_bars():
            network = LoraMoeHgdForSegmentation.from_pretrained(folder, use_safetensors=True, return_dict=True)
        # PEFT records it as the base of adapters: where the package is installed means nothing to others.
        network.name_or_path = _shipped_name(folder) or str(folder)
        network.to(device)
        return network.eval(), LoraMoeHgdImageProcessor.from_pretrained(folder)
    network, processor = load_checkpoint(find_base(folder, base), device=device)
    if (folder / "preprocessor_config.json").is_file():
        # The adapter may have been trained at another voxel size than its base.
        processor = LoraMoeHgdImageProcessor.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(network, folder).merge_and_unload()
    adapted.name_or_path = _shipped_name(folder) or str(folder)
    # PEFT froze the base. Merged, it can be trained like any other network.
    return adapted.eval().requires_grad_(True), processor

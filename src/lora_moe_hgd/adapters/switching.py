"""Load several adapters of one network, switch between them, disable them, combine them and merge them.

This module avoids two defects of PEFT and transformers. PEFT makes frozen adapters trainable when it switches
adapters. If adapters are disabled and then enabled again with `enable_adapters` of transformers, the modules of which
an adapter trained all weights keep the weights of the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.functional import set_adapter
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..loading import (
    adapter_base,
    base_digest,
    base_name,
    checkpoint_digest,
    checkpoint_folder,
    find_base,
    is_adapter,
    load_checkpoint,
    local_folder,
    tensors_digest,
)
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation
from .presets import COMPOSABLE_PRESET

Adapted = PeftModel | LoraMoeHgdForSegmentation
"""A network with adapters: a PEFT model, or a network into which transformers loaded the adapters."""


def adapter_folder(name: str | Path) -> Path:
    """Return the local folder of an adapter. An adapter on the Hub is downloaded.

    Raises:
        ValueError: If the folder cannot be found or contains no adapter.
    """
    folder = checkpoint_folder(name)
    if not is_adapter(folder):
        raise ValueError(f"{folder} contains no adapter (adapter_config.json). Give the folder of an adapter.")
    return folder


def load_adapters(base: str | Path | Adapted, adapters: Mapping[str, str | Path]) -> PeftModel:
    """Load several adapters into one network. All adapters are frozen, and the first of `adapters` is active.

    Args:
        base: Name of a checkpoint, or a network, which is modified in place. A network that an earlier call returned
            can be given again: it keeps its adapters and gets the new ones.
        adapters: Dictionary from names of your choice to the folder or Hub id of each adapter.

    Returns:
        The network with its adapters, in evaluation mode.

    Raises:
        ValueError: If a name is invalid or in use, if a folder contains no adapter, or if an adapter was trained
            on another base.

    Example:
        >>> load_adapters("tiny", {"site.a": "runs/a/best/adapter"})
        Traceback (most recent call last):
        ...
        ValueError: The adapter name 'site.a' is empty, has a dot or is reserved by torch modules. Choose another name.
    """
    if not adapters:
        raise ValueError("`adapters` is empty. Give at least one adapter.")
    taken = set(base.peft_config) if isinstance(base, PeftModel) else set()
    for name in adapters:
        _check_name(name, taken)
    folders = {name: adapter_folder(place) for name, place in adapters.items()}
    for folder in folders.values():
        _check_base(folder, _name_of(base))
    network = base if isinstance(base, nn.Module) else load_checkpoint(base)[0]
    if not isinstance(network, PeftModel):
        if _adapted_layers(network):
            raise ValueError("`base` must be a network without adapters, or a result of `load_adapters`.")
        name, folder = next(iter(folders.items()))
        network = PeftModel(network, _frozen_config(folder), adapter_name=name)
    for name, folder in folders.items():
        try:
            result = network.load_adapter(str(folder), name)
        except RuntimeError as error:
            raise ValueError(f"The adapter in {folder} does not fit the base: {_last_line(error)}") from error
        if lost := [*result.missing_keys, *result.unexpected_keys]:
            raise ValueError(f"The adapter in {folder} does not fit the base: one of them lacks the tensor {lost[0]}.")
    _activate(network, next(iter(folders)))
    return network


def _frozen_config(folder: Path) -> PeftConfig:
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


@contextmanager
def using_adapter(model: Adapted, name: str) -> Iterator[None]:
    """Use the adapter `name` inside the `with` block.

    After the block, also after an exception, the adapter that was active before is active again. The block does not
    change which parameters are trainable.

    Raises:
        ValueError: If `model` has no such adapter.
    """
    with _put_back(model):
        _check_known(model, [name])
        _activate(model, name)
        yield


@contextmanager
def adapter_disabled(model: Adapted) -> Iterator[None]:
    """Use the base without adapters inside the `with` block.

    After the block, also after an exception, the adapter that was active before is active again.

    Raises:
        ValueError: If `model` has no adapter, or if an adapter trained biases. Such an adapter cannot be disabled,
            because its biases replaced those of the base.
    """
    with _put_back(model) as layers:
        for name in model.peft_config:
            if (bias := _lora_config(model, name).bias) != "none":
                raise ValueError(
                    f"Adapters can be disabled only if their `bias` is none, but '{name}' has `bias` {bias}."
                )
        with _same_gradients(model):
            for layer in layers:
                layer.enable_adapters(False)
        yield


def combine_adapters(model: PeftModel, weights: Mapping[str, float], *, into: str) -> None:
    """Add a new adapter that changes each weight by exactly the weighted sum of other adapters' changes.

    The low-rank matrices are concatenated (PEFT's `cat`), so the rank of the new adapter is the sum of the other
    adapters' ranks. The active adapter does not change.

    Args:
        model: Network to which the new adapter is added.
        weights: Weight of each adapter to combine; negative weights are allowed.
        into: Name of the new adapter.

    Raises:
        ValueError: If an adapter does not exist or trained other weights than low-rank matrices, or if the new name is
            in use.
    """
    if not weights:
        raise ValueError("`weights` is empty. Give at least one adapter.")
    _check_known(model, weights)
    _check_name(into, set(model.peft_config))
    for name in weights:
        _check_composable(name, _lora_config(model, name))
    with _put_back(model):
        model.add_weighted_adapter(list(weights), list(weights.values()), into, combination_type="cat")
    # PEFT sets alpha to the rank so that the factor is 1. With rsLoRA the factor would be the root of the rank.
    _lora_config(model, into).use_rslora = False
    for module in model.modules():
        if isinstance(module, LoraLayer) and into in module.scaling:
            module.scaling[into] = 1.0
    # The dropout modules of the new adapter are created in training mode.
    if not model.training:
        model.eval()


def merge_adapter(
    name: str | Path, *, scale: float = 1.0, base: str | Path | None = None
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """Merge an adapter into its base; return the complete network and the processor.

    Each weight becomes `base + scale * (adapted - base)`, also in modules of which the adapter trained all weights. A
    scale of 0 gives exactly the base, and a scale of 1 exactly the adapted network.

    Args:
        name: Folder or Hub id of the adapter.
        scale: Strength of the adapter, from 0 (the base alone) to 1 (the full adapter).
        base: Folder or Hub id of the adapter's base. `None` means the base that `adapter_config.json` names.

    Raises:
        ValueError: If `name` is not an adapter, if its base cannot be found, or if `scale` is not between 0 and 1.
    """
    if not 0 <= scale <= 1:
        raise ValueError(f"`scale` must be between 0 (the base) and 1 (the adapter), got {scale}.")
    folder = adapter_folder(name)
    found = find_base(folder, base)
    return _blend(load_checkpoint(found)[0], load_checkpoint(folder, base=found), scale=scale)


def blend(
    base: str | Path, checkpoint: str | Path, *, scale: float
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """Interpolate each weight between `base` (scale 0) and `checkpoint` (scale 1); return network and processor.

    The weights of both networks must have the same names and shapes. The processor is taken from `checkpoint`.
    """
    return _blend(load_checkpoint(base)[0], load_checkpoint(checkpoint), scale=scale)


def _blend(
    base: LoraMoeHgdForSegmentation,
    checkpoint: tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor],
    scale: float,
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    weights = base.state_dict()
    network, processor = checkpoint
    with torch.no_grad():
        for key, value in network.state_dict().items():
            value.copy_(torch.lerp(weights[key], value, scale))
    return network, processor


def _adapted_layers(model: nn.Module) -> list[BaseTunerLayer | ModulesToSaveWrapper]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]


@contextmanager
def _put_back(model: Adapted) -> Iterator[list[BaseTunerLayer | ModulesToSaveWrapper]]:
    """Yield the layers that have adapters. After the `with` block, the previously active adapters are active again."""
    layers = _adapted_layers(model)
    if not layers:
        raise ValueError("`model` has no adapter. Load an adapter with `load_adapters`.")
    before = [(layer, list(layer.active_adapters), not layer.disable_adapters) for layer in layers]
    names = (model.active_adapter, model.base_model.active_adapter) if isinstance(model, PeftModel) else None
    try:
        yield layers
    finally:
        with _same_gradients(model):
            for layer, active, enabled in before:
                layer.set_adapter(active)
                layer.enable_adapters(enabled)
            if names is not None:
                model.active_adapter, model.base_model.active_adapter = names


@contextmanager
def _same_gradients(model: nn.Module) -> Iterator[None]:
    """Restore each parameter's `requires_grad` after the `with` block. Switching adapters in PEFT changes it."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _activate(model: Adapted, name: str) -> None:
    with _same_gradients(model):
        # Use PEFT's function. The function of transformers fails if only another adapter trained all weights of
        # a module.
        set_adapter(model, name)
        for layer in _adapted_layers(model):
            layer.enable_adapters(True)
    if isinstance(model, PeftModel):
        model.active_adapter = name
        model.base_model.active_adapter = name  # type: ignore[assignment]  # a property of PEFT's tuner


def _check_name(name: str, taken: set[str]) -> None:
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"The adapter name '{name}' is empty, has a dot or is reserved by torch modules. Choose another name."
        )
    if name in taken:
        raise ValueError(
            f"The name '{name}' is in use. Names in use: {', '.join(sorted(taken))}. Choose another name."
        )


def _check_known(model: Adapted, names: Mapping[str, float] | list[str]) -> None:
    if unknown := sorted(set(names) - set(model.peft_config)):
        raise ValueError(f"No adapter is named '{unknown[0]}'. The names are: {', '.join(model.peft_config)}.")


def _lora_config(model: Adapted, name: str) -> LoraConfig:
    config = model.peft_config[name]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"Adapters must be of the type LORA, but '{name}' is of the type {config.peft_type}.")
    return config


def _check_composable(name: str, config: LoraConfig) -> None:
    rule = "Only adapters that consist of low-rank matrices can be combined."
    if config.modules_to_save:
        raise ValueError(
            f"{rule} '{name}' trained all weights of {', '.join(sorted(config.modules_to_save))} "
            f"(`modules_to_save`). Train '{name}' with the preset `{COMPOSABLE_PRESET}`."
        )
    if config.use_dora:
        raise ValueError(f"{rule} '{name}' uses DoRA. Train the adapter with `use_dora: false`.")
    if config.bias != "none" or config.lora_bias:
        raise ValueError(
            f"{rule} '{name}' trained biases. Train the adapter with `bias: none` and `lora_bias: false`."
        )


def _name_of(base: str | Path | Adapted) -> str:
    """Name of the base; an empty string for a network that was not loaded from a checkpoint."""
    network = base.get_base_model() if isinstance(base, PeftModel) else base
    return str(network.name_or_path) if isinstance(network, nn.Module) else str(network)


def _check_base(folder: Path, given: str) -> None:
    """Check that the adapter in `folder` was trained on the base `given`.

    If the adapter records the digest of its base, and `given` is on this machine, the digests of the weights are
    compared. Otherwise, the names are compared.

    Raises:
        ValueError: If the adapter was trained on another base.
    """
    digest, found = base_digest(folder), local_folder(given) if given else None
    if digest and found:
        if (got := tensors_digest(found)) != digest:
            raise ValueError(
                f"The adapter in {folder} was trained on the base {adapter_base(folder)} (digest of the weights: "
                f"{digest[:12]}), but {given} has other weights (digest: {got[:12]}). Give the base on "
                "which the adapter was trained."
            )
        return
    recorded = adapter_base(folder) if PeftConfig.from_pretrained(str(folder)).base_model_name_or_path else ""
    if not all(name and (Path(name).is_dir() or not Path(name).is_absolute()) for name in (recorded, given)):
        return
    names = [base_name(name) for name in (recorded, given)]
    local = [Path(name).is_dir() for name in names]
    if names[0] == names[1] or local[0] != local[1]:
        # A local folder may be a copy of a Hub repository, so the names alone prove nothing.
        return
    if all(local):
        same = checkpoint_digest(Path(names[0])) == checkpoint_digest(Path(names[1]))
    else:
        # Compare without revisions, because one name may contain a branch and the other name its commit.
        same = names[0].partition("@")[0] == names[1].partition("@")[0]
    if not same:
        raise ValueError(
            f"The adapter in {folder} was trained on the base {recorded}, not on {given}. Give the base on which the "
            "adapter was trained."
        )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()

"""Several adapters over one network: loaded together, switched by the call, taken out, combined, merged.

What PEFT and transformers do by themselves and is wrong here: PEFT makes frozen adapters trainable when it switches;
transformers does not put back what an adapter trained in full, once it was taken out (`enable_adapters`).
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
"""A network with adapters, whether PEFT's wrapper is around it or transformers loaded them into it."""


def adapter_folder(name: str | Path) -> Path:
    """The local folder of an adapter; one on the Hub is fetched.

    Raises:
        ValueError: If it cannot be found or holds no adapter.
    """
    folder = checkpoint_folder(name)
    if not is_adapter(folder):
        raise ValueError(f"{folder} must hold an adapter, but there is no adapter_config.json.")
    return folder


def load_adapters(base: str | Path | Adapted, adapters: Mapping[str, str | Path]) -> PeftModel:
    """Load adapters over one network; the first is active, all are frozen.

    Args:
        base: Name of a checkpoint, a network, which is modified in place, or what an earlier call returned, to which
            the adapters are added.
        adapters: Folder or Hub id of each by a name of one's own.

    Returns:
        The network with its adapters, in evaluation mode.

    Raises:
        ValueError: If a name is taken or not possible, a folder holds no adapter, or one was made for another base.

    Example:
        >>> load_adapters("tiny", {"site.a": "runs/a/best/adapter"})
        Traceback (most recent call last):
        ...
        ValueError: An adapter's name must not be empty or hold a dot, nor be that of a method of torch, got 'site.a'.
    """
    if not adapters:
        raise ValueError("`adapters` must hold at least one, got none.")
    taken = set(base.peft_config) if isinstance(base, PeftModel) else set()
    for name in adapters:
        _check_name(name, taken)
    folders = {name: adapter_folder(place) for name, place in adapters.items()}
    for folder in folders.values():
        _check_base(folder, _name_of(base))
    network = base if isinstance(base, nn.Module) else load_checkpoint(base)[0]
    if not isinstance(network, PeftModel):
        if _adapted_layers(network):
            raise ValueError("`base` must be a network without adapters, or what `load_adapters` returned.")
        name, folder = next(iter(folders.items()))
        network = PeftModel(network, _frozen_config(folder), adapter_name=name)
    for name, folder in folders.items():
        try:
            result = network.load_adapter(str(folder), name)
        except RuntimeError as error:
            raise ValueError(f"The adapter in {folder} does not fit the base: {_last_line(error)}") from error
        if lost := [*result.missing_keys, *result.unexpected_keys]:
            raise ValueError(f"The adapter in {folder} does not fit the base: {lost[0]} has no counterpart.")
    _activate(network, next(iter(folders)))
    return network


def _frozen_config(folder: Path) -> PeftConfig:
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    return config


@contextmanager
def using_adapter(model: Adapted, name: str) -> Iterator[None]:
    """Within the block `name` is the adapter; after it, also after an exception, all is as it was.

    Which parameters are trained does not change, in the block or after it.

    Raises:
        ValueError: If `model` has no such adapter.
    """
    with _put_back(model):
        _check_known(model, [name])
        _activate(model, name)
        yield


@contextmanager
def adapter_disabled(model: Adapted) -> Iterator[None]:
    """Within the block the network is its base; after it, also after an exception, all is as it was.

    Raises:
        ValueError: If `model` has no adapter, or one that trained biases: these have replaced those of the base.
    """
    with _put_back(model) as layers:
        for name in model.peft_config:
            if (bias := _lora_config(model, name).bias) != "none":
                raise ValueError(f"An adapter can be taken out if its `bias` is none, got {bias} in '{name}'.")
        with _same_gradients(model):
            for layer in layers:
                layer.enable_adapters(False)
        yield


def combine_adapters(model: PeftModel, weights: Mapping[str, float], *, into: str) -> None:
    """Add an adapter whose change of each weight is the weighted sum of those of others, exactly.

    The matrices of the others are set side by side (PEFT's `cat`), so its rank is the sum of theirs. Which adapter is
    active does not change.

    Args:
        model: Gets the new adapter.
        weights: Weight of each adapter to combine, of either sign.
        into: Name of the new adapter.

    Raises:
        ValueError: If an adapter is not there or is not all low-rank matrices, or the name is taken.
    """
    if not weights:
        raise ValueError("`weights` must hold at least one adapter, got none.")
    _check_known(model, weights)
    _check_name(into, set(model.peft_config))
    for name in weights:
        _check_composable(name, _lora_config(model, name))
    with _put_back(model):
        model.add_weighted_adapter(list(weights), list(weights.values()), into, combination_type="cat")
    # PEFT makes alpha the rank, for a factor of 1, which with rsLoRA would be the root of the rank.
    _lora_config(model, into).use_rslora = False
    for module in model.modules():
        if isinstance(module, LoraLayer) and into in module.scaling:
            module.scaling[into] = 1.0
    # The dropout of the new adapter is born in training mode.
    if not model.training:
        model.eval()


def merge_adapter(
    name: str | Path, *, scale: float = 1.0, base: str | Path | None = None
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """An adapter as a whole network, and the processor of its base.

    Each weight is `base + scale (adapted - base)`, also of what was trained in full: 0 gives the base and 1 the
    adapter, exactly.

    Args:
        name: Folder or Hub id of the adapter.
        scale: How far to go.
        base: Where to look for the base, instead of where the adapter says.

    Raises:
        ValueError: If `name` is no adapter, does not name its base, or `scale` is not between 0 and 1.
    """
    if not 0 <= scale <= 1:
        raise ValueError(f"`scale` must be between 0, the base, and 1, the adapter, got {scale}.")
    folder = adapter_folder(name)
    found = find_base(folder, base)
    return _blend(load_checkpoint(found)[0], load_checkpoint(folder, base=found), scale=scale)


def blend(
    base: str | Path, checkpoint: str | Path, *, scale: float
) -> tuple[LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor]:
    """The network `scale` of the way from a base to a checkpoint of its shape, and the processor of the latter."""
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
    """The layers with adapters; whatever the block does to them is undone when it ends."""
    layers = _adapted_layers(model)
    if not layers:
        raise ValueError("`model` must have an adapter, got none.")
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
    """PEFT decides anew what is trained whenever it switches: what was frozen stays frozen."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _activate(model: Adapted, name: str) -> None:
    with _same_gradients(model):
        # Of PEFT, as that of transformers cannot when another adapter alone trained a module in full.
        set_adapter(model, name)
        for layer in _adapted_layers(model):
            layer.enable_adapters(True)
    if isinstance(model, PeftModel):
        model.active_adapter = name
        model.base_model.active_adapter = name  # type: ignore[assignment]  # a property of PEFT's tuner


def _check_name(name: str, taken: set[str]) -> None:
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"An adapter's name must not be empty or hold a dot, nor be that of a method of torch, got '{name}'."
        )
    if name in taken:
        raise ValueError(f"An adapter named '{name}' is there already, beside {', '.join(sorted(taken - {name}))}.")


def _check_known(model: Adapted, names: Mapping[str, float] | list[str]) -> None:
    if unknown := sorted(set(names) - set(model.peft_config)):
        raise ValueError(f"No adapter is named '{unknown[0]}'; there is: {', '.join(model.peft_config)}.")


def _lora_config(model: Adapted, name: str) -> LoraConfig:
    config = model.peft_config[name]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"An adapter must be LoRA, got {config.peft_type} in '{name}'.")
    return config


def _check_composable(name: str, config: LoraConfig) -> None:
    rule = "Adapters are combined by adding low-rank matrices"
    if config.modules_to_save:
        raise ValueError(
            f"{rule}, which modules trained in full (`modules_to_save`) have not: the preset `{COMPOSABLE_PRESET}` "
            f"can be combined, got '{name}' with {', '.join(sorted(config.modules_to_save))}."
        )
    if config.use_dora:
        raise ValueError(f"{rule}, and DoRA is not a sum of them (`use_dora` must be false), got '{name}' with DoRA.")
    if config.bias != "none" or config.lora_bias:
        raise ValueError(f"{rule}, and biases would be lost (`bias` must be none), got '{name}' with biases.")


def _name_of(base: str | Path | Adapted) -> str:
    """Name of the base; empty for a network that was never loaded."""
    network = base.get_base_model() if isinstance(base, PeftModel) else base
    return str(network.name_or_path) if isinstance(network, nn.Module) else str(network)


def _check_base(folder: Path, given: str) -> None:
    """Refuse an adapter of another base, as far as names or, on this machine, weights tell.

    Raises:
        ValueError: If they tell that the base is another.
    """
    digest, found = base_digest(folder), local_folder(given) if given else None
    if digest and found:
        if (got := tensors_digest(found)) != digest:
            raise ValueError(
                f"The adapter in {folder} was trained over {adapter_base(folder)} with the weights {digest[:12]}, "
                f"got the base {given} with the weights {got[:12]}."
            )
        return
    recorded = adapter_base(folder) if PeftConfig.from_pretrained(str(folder)).base_model_name_or_path else ""
    if not all(name and (Path(name).is_dir() or not Path(name).is_absolute()) for name in (recorded, given)):
        return
    names = [base_name(name) for name in (recorded, given)]
    local = [Path(name).is_dir() for name in names]
    if names[0] == names[1] or local[0] != local[1]:
        # A folder may well be a copy of what the Hub has.
        return
    if all(local):
        same = checkpoint_digest(Path(names[0])) == checkpoint_digest(Path(names[1]))
    else:
        # One may name the branch of the commit that the other names.
        same = names[0].partition("@")[0] == names[1].partition("@")[0]
    if not same:
        raise ValueError(f"The adapter in {folder} was made for the base {recorded}, got the base {given}.")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()

"""Two presets of LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) for PEFT.

Adapters of the preset `lora` can be combined with each other. The preset `lora+decoder` also trains all weights of
stem, routers and decoder. With few training cases, `lora+decoder` segments better than `lora`, but its adapters
cannot be combined.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ..files import did_you_mean
from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation

TARGET_MODULES = r".*\.(attention\.(q|k|v|o)|(experts\.\d+|shared_expert)\.(fc1|fc2))"
COMPOSABLE_PRESET = "lora"
TRAINED_IN_FULL = {COMPOSABLE_PRESET: None, "lora+decoder": ["stem", "router", "decoder"]}


def add_adapter(
    network: LoraMoeHgdForSegmentation, preset: str, *, options: Mapping[str, Any], base: str
) -> PeftModel:
    """Freeze `network` and add a LoRA adapter, which changes no output until it is trained.

    Args:
        network: Network to adapt, modified in place.
        preset: `lora` or `lora+decoder`.
        options: Options of PEFT's `LoraConfig`, which override the options of the preset. By default, the rank is 8,
            and alpha is twice the rank.
        base: Name from which `network` was loaded. The name is saved with the adapter.

    Raises:
        ValueError: If PEFT does not know an option, if `target_modules` matches no module, or if PEFT cannot merge an
            adapter into a module that `target_modules` matches.
    """
    known = [option.name for option in dataclasses.fields(LoraConfig)]
    if unknown := sorted(set(options) - set(known)):
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"`lora` sets '{unknown[0]}', but PEFT's LoraConfig has no such option.{hint}")
    rank = options.get("r", 8)
    preset_options: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": TARGET_MODULES,
        "modules_to_save": TRAINED_IN_FULL[preset],
    }
    adapted = get_peft_model(network, LoraConfig(**{**preset_options, **options}))
    single = [
        name
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
        and isinstance(module.get_base_layer(), nn.Conv3d)
        and module.get_base_layer().kernel_size == (1, 1, 1)
    ]
    if single:
        raise ValueError(
            f"`lora.target_modules` matches {single[0].removeprefix('base_model.model.')}, a convolution whose kernel "
            "has one voxel. PEFT cannot merge the adapter of such a convolution. Change `lora.target_modules`."
        )
    # PEFT reads the base's name from the network's configuration, which lacks it for a shipped checkpoint.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def preset_of(config: LoraConfig) -> str:
    """Name of the preset that trains the same modules as this adapter, or `own` if no preset does."""
    for preset, in_full in TRAINED_IN_FULL.items():
        if config.target_modules == TARGET_MODULES and set(config.modules_to_save or ()) == set(in_full or ()):
            return preset
    return "own"


def merged(network: PeftModel | LoraMoeHgdForSegmentation) -> LoraMoeHgdForSegmentation:
    """Return a copy of the network. If the network has an adapter, the adapter is merged into the copy."""
    network = copy.deepcopy(network)
    return network.merge_and_unload() if isinstance(network, PeftModel) else network

"""LoRA through PEFT (Hu et al. 2021, https://arxiv.org/abs/2106.09685): two presets.

`lora` can be merged, weighted and combined; `lora+decoder` also trains stem, routers and decoder in full, which is
better on few cases and cannot be combined with another.
"""

from __future__ import annotations

import copy

from peft import LoraConfig, PeftModel, get_peft_model

from ..model.modeling_lora_moe_hgd import LoraMoeHgdForSegmentation

TARGET_MODULES = r".*\.(attention\.(q|k|v|o)|(experts\.\d+|shared_expert)\.(fc1|fc2))"
TRAINED_IN_FULL = {"lora": None, "lora+decoder": ["stem", "router", "decoder"]}


def add_adapter(network: LoraMoeHgdForSegmentation, preset: str, *, rank: int, base: str) -> PeftModel:
    """Freeze `network` and add a LoRA adapter, which changes nothing until it is trained.

    Args:
        network: Modified in place.
        preset: `lora` or `lora+decoder`.
        rank: Rank of each pair of low-rank matrices; the scale alpha is twice that.
        base: Where the base can be loaded from; the adapter's folder names it.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=TARGET_MODULES,
        modules_to_save=TRAINED_IN_FULL[preset],
    )
    adapted = get_peft_model(network, config)
    # PEFT copies the base's folder name from its configuration, which a shipped checkpoint does not know.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def merged(network: PeftModel | LoraMoeHgdForSegmentation) -> LoraMoeHgdForSegmentation:
    """A copy of the network with the adapter, if any, folded into its weights."""
    network = copy.deepcopy(network)
    return network.merge_and_unload() if isinstance(network, PeftModel) else network

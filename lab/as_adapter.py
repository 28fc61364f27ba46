"""The difference of two networks as an adapter: `python lab/as_adapter.py BASE TRAINED OUT --rank 16`.

The matrices that the preset `lora+decoder` adapts get the best approximation of their difference of that rank, by
singular values; stem, routers and decoder are those of TRAINED. Prints what else differs, which the adapter lacks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.adapters.presets import add_adapter


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("trained")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    (base, processor), (trained, _) = load_checkpoint(args.base), load_checkpoint(args.trained)
    state = trained.state_dict()
    adapted = add_adapter(base, "lora+decoder", options={"r": args.rank, "lora_alpha": args.rank}, base=args.base)
    kept = []
    for name, module in adapted.named_modules():
        name = name.removeprefix("base_model.model.")
        if isinstance(module, LoraLayer):
            change = state[f"{name}.weight"] - module.get_base_layer().weight
            left, values, right = torch.linalg.svd(change, full_matrices=False)
            left, values, right = left[:, : args.rank], values[: args.rank], right[: args.rank]
            module.lora_B["default"].weight.copy_(left * values.sqrt())
            module.lora_A["default"].weight.copy_(values.sqrt()[:, None] * right)
            kept.append((values.square().sum() / change.square().sum()).item())
        elif isinstance(module, ModulesToSaveWrapper):
            part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            module.modules_to_save["default"].load_state_dict(part)
    print(f"of the square of the differences the adapter keeps {min(kept):.2f} to {max(kept):.2f}")
    adapted.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    merged = adapted.merge_and_unload().state_dict()
    left_out = [name for name in state if not torch.allclose(merged[name], state[name], atol=1e-3)]
    print(f"{len(left_out)} of {len(state)} tensors differ by more than .001")
    alien = [name for name in left_out if "fc" not in name and "attention" not in name]
    print(*alien, sep="\n")


if __name__ == "__main__":
    main()

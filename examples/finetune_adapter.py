"""Fit a LoRA adapter with the plain APIs of torch and PEFT.

`python examples/finetune_adapter.py --data data/brats2018 --out adapter`. What a longer run wants (validation, moving
average, schedule, resuming) is in `train.py --config configs/lora_finetune.yaml`.
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from tqdm import tqdm

from lora_moe_hgd import load_checkpoint, save_adapter
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.training.data.crops import SubsetCrops
from lora_moe_hgd.training.data.datasets import CaseDataset
from lora_moe_hgd.training.schedule import draw_subset

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
parser.add_argument("--crop", type=int, default=64, help="edge of a training crop in voxels")
args = parser.parse_args()

base, processor = load_checkpoint()
layers = r".*\.(attention\.(q|k|v|o)|(experts\.\d+|shared_expert)\.(fc1|fc2))"
network = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=layers)).train()
network.print_trainable_parameters()

cases = CaseDataset(find_cases(args.data), processor=processor, cache_dir=args.out / "cache")
crops = SubsetCrops(cases, crop_size=(args.crop,) * 3, crops_per_case=4, seed=0, draw_subset=draw_subset)
crops.begin_epoch(0, progress=1.0)
optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=1e-3)
for batch in (bar := tqdm(DataLoader(crops, batch_size=2, shuffle=True))):
    loss = network(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    bar.set_postfix(loss=f"{loss.item():.3f}")
save_adapter(network, args.out, processor=processor)
print(f"The adapter is in {args.out}.")

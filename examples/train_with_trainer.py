"""Train with `transformers.Trainer`, which finds the loss in the model's output.

`python examples/train_with_trainer.py --data data/brats2018 --out trained`.
"""

import argparse
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.cases.layouts import find_cases
from lora_moe_hgd.training.data.crops import SubsetCrops
from lora_moe_hgd.training.data.datasets import CaseDataset
from lora_moe_hgd.training.schedule import draw_subset

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path, required=True, help="folder of labelled cases")
parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
parser.add_argument("--crop", type=int, default=64, help="edge of a training crop in voxels")
args = parser.parse_args()

model, processor = load_checkpoint()
cases = CaseDataset(find_cases(args.data), processor=processor, cache_dir=args.out / "cache")
crops = SubsetCrops(cases, crop_size=(args.crop,) * 3, crops_per_case=4, seed=0, draw_subset=draw_subset)
crops.begin_epoch(0, progress=1.0)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=str(args.out),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        label_names=["labels"],
        report_to="none",
    ),
    train_dataset=crops,
)
trainer.train()
trainer.save_model()
processor.save_pretrained(args.out)
print(f"The model is in {args.out}.")

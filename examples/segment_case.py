"""Segment a case with the classes of transformers: `python examples/segment_case.py CASE_FOLDER`."""

import sys
from pathlib import Path

import nibabel as nib
from transformers import AutoImageProcessor, AutoModel

import lora_moe_hgd

case = Path(sys.argv[1])
checkpoint = lora_moe_hgd.pretrained_path("tiny")  # or the id of a repository on the Hub
model = AutoModel.from_pretrained(checkpoint).eval()
processor = AutoImageProcessor.from_pretrained(checkpoint)

t1c, flair = nib.load(case / "T1c.nii.gz"), nib.load(case / "FLAIR.nii.gz")
inputs = processor({"t1": None, "t1c": t1c, "t2": None, "flair": flair})
logits = model.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
(labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
nib.save(nib.Nifti1Image(labels, flair.affine), "segmentation.nii.gz")
print(labels.shape, "labels", set(labels.ravel().tolist()))

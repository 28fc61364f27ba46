"""The style of phantoms: one value, which the cache and other processes see."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import torch

from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.phantoms.phantom import make_phantom
from lora_moe_hgd.phantoms.style import NARROW
from lora_moe_hgd.training.data.datasets import PhantomDataset

PROCESSOR = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0,) * 3)
SMALL = dataclasses.replace(NARROW, whole_tumour_ml=(10.0, 0.0), low_share=0.0)


def test_phantoms_of_another_style_are_kept_elsewhere(tmp_path: Path) -> None:
    folders = {
        PhantomDataset(1, seed=0, processor=PROCESSOR, cache_dir=tmp_path, style=style).folder
        for style in (NARROW, SMALL, dataclasses.replace(NARROW, bone={**NARROW.bone, "t2": (0.0, 1.0)}))
    }
    assert len(folders) == 3


def test_a_data_set_that_was_sent_to_another_process_makes_phantoms_of_its_style(tmp_path: Path) -> None:
    sent = pickle.loads(pickle.dumps(PhantomDataset(1, seed=0, processor=PROCESSOR, cache_dir=tmp_path, style=SMALL)))
    expected = make_phantom(0, spacing_mm=4.0, style=SMALL).regions[0].sum()
    assert torch.equal(sent[0]["labels"][0].sum(), expected)
    assert expected < make_phantom(0, spacing_mm=4.0, style=NARROW).regions[0].sum()

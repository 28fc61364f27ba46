"""The style of phantoms: one value, which cache and worker processes see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from lora_moe_hgd.data.datasets import PhantomDataset
from lora_moe_hgd.data.phantom import make_phantom
from lora_moe_hgd.data.style import NARROW
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor

PROCESSOR = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0,) * 3)
SMALL = dataclasses.replace(NARROW, whole_tumour_ml=(10.0, 0.0), low_share=0.0)


def test_phantoms_of_another_style_are_kept_elsewhere(tmp_path: Path) -> None:
    folders = {
        PhantomDataset(1, seed=0, processor=PROCESSOR, cache_dir=tmp_path, style=style).folder
        for style in (NARROW, SMALL, dataclasses.replace(NARROW, bone={**NARROW.bone, "t2": (0.0, 1.0)}))
    }
    assert len(folders) == 3


def test_worker_processes_make_phantoms_of_the_style_they_are_given(tmp_path: Path) -> None:
    phantoms = PhantomDataset(2, seed=0, processor=PROCESSOR, cache_dir=tmp_path, style=SMALL)
    phantoms.prepare_all(num_workers=2, progress=False)
    for seed in range(2):
        expected = make_phantom(seed, spacing_mm=4.0, style=SMALL).regions[0].sum()
        assert torch.equal(phantoms[seed]["labels"][0].sum(), expected)
        assert expected < make_phantom(seed, spacing_mm=4.0, style=NARROW).regions[0].sum()

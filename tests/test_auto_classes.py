"""What is saved loads by every `Auto` class, with the package and without it, to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import random_volumes, small_config, small_network
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
    pipeline,
)

import lora_moe_hgd
from lora_moe_hgd import BrainTumorSegmentationPipeline, LoraMoeHgdForSegmentation, LoraMoeHgdImageProcessor
from lora_moe_hgd.cases.layouts import find_case

TASK = "brain-tumor-segmentation"
PACKAGE = Path(lora_moe_hgd.__file__).parent
WEIGHTS = {"config.json", "model.safetensors"}
CODE = {path.name for path in (PACKAGE / "model").glob("*.py")} - {"__init__.py"}

# What a user of transformers alone would write; argv: folder, files of T1c and FLAIR, where the results go.
WITHOUT_PACKAGE = """
import json, sys
# As where they are not installed: importing them is an error.
sys.modules.update(dict.fromkeys(['lora_moe_hgd', 'scipy', 'peft', 'accelerate', 'datasets', 'monai', 'pandas']))
import numpy as np, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
from transformers import pipeline
folder, t1c, flair, out = sys.argv[1:]
trusted = {'trust_remote_code': True}
assert AutoConfig.from_pretrained(folder, **trusted).model_type == 'lora_moe_hgd'
case = {'t1c': t1c, 'flair': flair}
inputs = [auto.from_pretrained(folder, **trusted)(case) for auto in (AutoImageProcessor, AutoProcessor)]
assert torch.equal(inputs[0]['pixel_values'], inputs[1]['pixel_values'])
volumes = torch.load(out + '/volumes.pt', weights_only=True)
networks = [auto.from_pretrained(folder, **trusted) for auto in (AutoModel, AutoModelForSemanticSegmentation)]
torch.save([network(volumes).logits.detach() for network in networks], out + '/logits.pt')
segmenter = pipeline(model=folder, device='cpu', **trusted)
np.save(out + '/mask.npy', segmenter(case)['segmentation'])
AutoModel.from_pretrained(folder, **trusted).save_pretrained(out + '/again')
segmenter.image_processor.save_pretrained(out + '/again')
try:
    segmenter('case_000')
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline around a small network, saved."""
    folder = tmp_path_factory.mktemp("auto") / "saved"
    processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0), least_part=0.1)
    pipeline(TASK, model=small_network(), image_processor=processor, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(dummy_root: Path) -> dict[str, str]:
    images = find_case(dummy_root / "case_000").images
    return {name: str(images[name]) for name in ("t1c", "flair")}


def run_alone(code: str, *words: str, home: Path) -> str:
    """Run `code` in a fresh interpreter, and return what it prints."""
    environment = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    # As many threads as here: sums are split among them, and rounding depends on the split.
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits_of(network: Any, volumes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(volumes).logits


def test_without_the_package_every_auto_class_gives_the_same_bits(
    saved: Path, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = random_volumes()
    torch.save(volumes, tmp_path / "volumes.pt")
    words = [str(saved), files["t1c"], files["flair"], str(tmp_path)]
    printed = run_alone(WITHOUT_PACKAGE, *words, home=tmp_path / "home")
    assert "Reading the folder case_000 needs the package lora-moe-hgd, which is not installed" in printed
    expected = logits_of(AutoModel.from_pretrained(saved), volumes)
    for logits in torch.load(tmp_path / "logits.pt", weights_only=True):
        assert torch.equal(logits, expected)
    # With the package nothing is asked, although the folder brings a pipeline of its own.
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    segmenter = pipeline(TASK, model=str(saved), device="cpu")
    assert type(segmenter) is BrainTumorSegmentationPipeline
    here = segmenter(files)
    assert np.array_equal(np.load(tmp_path / "mask.npy"), here["segmentation"])
    # Saved again by someone without the package, it is as whole as before.
    again = {path.name for path in (tmp_path / "again").iterdir()}
    assert again == WEIGHTS | CODE - {"pipeline_lora_moe_hgd.py"} | {"preprocessor_config.json"}
    maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (saved, tmp_path / "again")]
    assert maps[0] == maps[1]


def test_with_the_package_every_auto_class_is_its_own_and_needs_no_trust(saved: Path, files) -> None:
    for auto in (AutoModel, AutoModelForSemanticSegmentation):
        assert type(auto.from_pretrained(saved)) is LoraMoeHgdForSegmentation
        # The flag must not swap in the copy: what is installed and what is loaded would differ.
        assert type(auto.from_pretrained(saved, trust_remote_code=True)) is LoraMoeHgdForSegmentation
    for auto in (AutoImageProcessor, AutoProcessor):
        assert type(auto.from_pretrained(saved)) is LoraMoeHgdImageProcessor
    assert type(AutoConfig.from_pretrained(saved)) is type(small_config())


def test_a_saved_pipeline_is_the_hub_folder_and_weights_and_nothing_else(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == WEIGHTS | CODE | {"preprocessor_config.json"}
    for name in CODE:
        assert (saved / name).read_bytes() == (PACKAGE / "model" / name).read_bytes()


def test_network_and_processor_each_bring_the_code_that_they_need_and_together_all_but_the_pipeline(
    tmp_path: Path,
) -> None:
    small_network().save_pretrained(tmp_path / "network")
    LoraMoeHgdImageProcessor().save_pretrained(tmp_path / "processor")
    network, processor = ({path.name for path in (tmp_path / part).glob("*.py")} for part in ("network", "processor"))
    assert network | processor == CODE - {"pipeline_lora_moe_hgd.py"}
    assert network & processor == {"configuration_lora_moe_hgd.py"}

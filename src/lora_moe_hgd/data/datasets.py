"""Datasets of whole preprocessed cases, and of random crops from them."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..files import replacing
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES
from .layouts import CaseFiles
from .nifti import read_image
from .phantom import make_phantom
from .transforms import random_crop, random_flip, random_intensity


class Case(TypedDict):
    """A preprocessed case: `pixel_values (M, D, H, W)`, `modality_mask (M,)` bool, `labels (R, D, H, W)` uint8."""

    case_id: str
    pixel_values: Tensor
    modality_mask: Tensor
    labels: Tensor


SubsetDraw = Callable[[Tensor, float, torch.Generator], Tensor]


class CaseSource(Protocol):
    """Anything with a length that gives preprocessed cases by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...


class PhantomDataset(Dataset):
    """Phantoms by number, made once and kept on disk.

    Args:
        size: Number of phantoms.
        seed: Seed of the first; the others follow.
        processor: Gives spacing and normalisation.
        cache_dir: Where preprocessed phantoms are kept, as safetensors in half precision.
    """

    def __init__(self, size: int, *, seed: int, processor: LoraMoeHgdImageProcessor, cache_dir: Path) -> None:
        self.size = size
        self.seed = seed
        self.processor = processor
        settings = f"{processor.to_json_string()}-{_phantom_code()}"
        self.folder = cache_dir / f"phantoms-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Case:
        path = self.folder / f"{self.seed + index}.safetensors"
        if not path.is_file():
            self._make(index)
        tensors = load_file(path)
        return {
            "case_id": f"phantom_{self.seed + index}",
            "pixel_values": tensors["pixel_values"].float(),
            "modality_mask": tensors["modality_mask"],
            "labels": tensors["labels"],
        }

    def make_all(self, *, num_workers: int, progress: bool) -> None:
        """Make the phantoms that are not on disk yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(self.size) if not (self.folder / f"{self.seed + i}.safetensors").is_file()]
        bar = tqdm(total=len(missing), desc="phantoms", unit="case", disable=not progress or not missing)
        if num_workers < 2 or len(missing) < 2:
            for index in missing:
                self._make(index)
                bar.update()
        else:
            with multiprocessing.get_context("spawn").Pool(num_workers, initializer=_one_thread) as pool:
                for _ in pool.imap_unordered(self._make, missing):
                    bar.update()
        bar.close()

    def _make(self, index: int) -> None:
        phantom = make_phantom(self.seed + index, spacing_mm=self.processor.target_spacing_mm[0])
        inputs = self.processor(
            dict(phantom.volumes),
            segmentation_maps=LABEL_SCHEMES["msd"].encode(phantom.regions.numpy()),
            label_scheme="msd",
            spacing_mm=self.processor.target_spacing_mm,
        )
        _write_tensors(
            self.folder / f"{self.seed + index}.safetensors",
            {
                "pixel_values": inputs["pixel_values"][0].half(),
                "modality_mask": inputs["modality_mask"][0],
                "labels": inputs["labels"][0],
            },
        )


class CaseDataset(Dataset):
    """Cases on disk, preprocessed once and kept in memory.

    Args:
        cases: What to read; each needs a segmentation.
        processor: Preprocessing.
    """

    def __init__(self, cases: Sequence[CaseFiles], *, processor: LoraMoeHgdImageProcessor) -> None:
        self.cases = list(cases)
        self.processor = processor
        self._kept: dict[int, Case] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case:
        if index not in self._kept:
            case = self.cases[index]
            inputs = self.processor(
                {name: read_image(path) for name, path in case.images.items()},
                segmentation_maps=read_image(case.labelled()),
                label_scheme=case.label_scheme,
            )
            self._kept[index] = {
                "case_id": case.case_id,
                "pixel_values": inputs["pixel_values"][0],
                "modality_mask": inputs["modality_mask"][0],
                "labels": inputs["labels"][0],
            }
        return self._kept[index]


class CropDataset(Dataset):
    """Random augmented crops; which crop number `index` of an epoch is depends on nothing else.

    Args:
        source: Whole cases.
        crop_size: Edges of a crop in voxels.
        crops_per_case: Crops of each case in an epoch.
        seed: Seed of the run.
        draw_subset: Chooses the sequences that a sample keeps, from those acquired, progress and generator.
    """

    def __init__(
        self,
        source: CaseSource,
        *,
        crop_size: tuple[int, int, int],
        crops_per_case: int,
        seed: int,
        draw_subset: SubsetDraw,
    ) -> None:
        self.source = source
        self.crop_size = crop_size
        self.crops_per_case = crops_per_case
        self.seed = seed
        self.draw_subset = draw_subset
        self.epoch = 0
        self.progress = 0.0

    def begin_epoch(self, epoch: int, *, progress: float) -> None:
        """Say which epoch comes next, and how far the run is, for the draws."""
        self.epoch, self.progress = epoch, progress

    def __len__(self) -> int:
        return len(self.source) * self.crops_per_case

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = sample_generator(self.seed, self.epoch, index)
        case = self.source[index % len(self.source)]
        pixel_values, labels = random_crop(case["pixel_values"], case["labels"], self.crop_size, generator)
        pixel_values, labels = random_flip(pixel_values, labels, generator)
        pixel_values = random_intensity(pixel_values, generator)
        kept = self.draw_subset(case["modality_mask"], self.progress, generator)
        pixel_values = torch.where(kept[:, None, None, None], pixel_values, 0.0)
        return {"pixel_values": pixel_values, "modality_mask": kept, "labels": labels.contiguous()}


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator of its own for each sample of each epoch of each run."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _phantom_code() -> str:
    """Fingerprint of the code that makes phantoms: changed code must not meet old phantoms."""
    folder = Path(__file__).parent
    names = ("anatomy.py", "contrast.py", "noise.py", "phantom.py", "tumour.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)

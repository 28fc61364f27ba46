"""Sources of whole preprocessed cases: phantoms, files, streams, and mixtures of them."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BatchFeature

from ..files import replacing
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES
from .anatomy import read_templates
from .case_files import CaseFiles
from .cases import read_case
from .findings import BadInputError, Finding
from .label_maps import label_map_files
from .phantom import make_phantom


class Case(TypedDict):
    """A preprocessed case: `pixel_values (M, D, H, W)`, `modality_mask (M,)` bool, `labels (R, D, H, W)` uint8."""

    case_id: str
    pixel_values: Tensor
    modality_mask: Tensor
    labels: Tensor


class CaseSource(Protocol):
    """Anything with a length that gives preprocessed cases by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...


class CachedCases(Dataset):
    """Cases that are preprocessed once and then kept on disk, as safetensors in half precision.

    Reading a preprocessed case takes milliseconds, unpacking and resampling its files takes seconds.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def case_ids(self) -> list[str]:
        """Name of each case, by number."""
        return [self._case_id(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> Case:
        path = self._kept_at(index)
        if not path.is_file():
            for finding in self._prepare(index):
                raise BadInputError(finding.where, finding.message)
        tensors = load_file(path)
        return {
            "case_id": self._case_id(index),
            "pixel_values": tensors["pixel_values"].float(),
            "modality_mask": tensors["modality_mask"],
            "labels": tensors["labels"],
        }

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Preprocess what is not on disk yet; return, by number, why a case cannot be.

        Raises:
            BadInputError: If what several cases may be made from, a label map, is bad.
        """
        missing = [index for index in range(len(self)) if not self._kept_at(index).is_file()]
        if missing:
            self._read_sources()
        bar = tqdm(total=len(missing), desc="preparing", unit="case", disable=not progress or not missing)
        if num_workers < 2 or len(missing) < 2:
            found = []
            for index in missing:
                found.append(self._prepare(index))
                bar.update()
        else:
            # Spawned, as a fork of a process that computes with threads may hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread) as pool:
                found = []
                for findings in pool.map(self._prepare, missing):
                    found.append(findings)
                    bar.update()
        bar.close()
        return {index: findings[0] for index, findings in zip(missing, found, strict=True) if findings}

    def _read_sources(self) -> None:
        """Read what any case may be made from, so that what is bad is told before the first is made; here nothing."""

    def _prepare(self, index: int) -> list[Finding]:
        """Preprocess a case and keep it, or return what is wrong with it."""
        try:
            inputs = self._preprocess(index)
        except BadInputError as error:
            return [error.finding]
        tensors = {name: inputs[name][0] for name in ("pixel_values", "modality_mask", "labels")}
        tensors["pixel_values"] = tensors["pixel_values"].half()
        path = self._kept_at(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        return []

    def _preprocess(self, index: int) -> BatchFeature:
        raise NotImplementedError

    def _case_id(self, index: int) -> str:
        raise NotImplementedError

    def _kept_at(self, index: int) -> Path:
        """Where the case is kept; another place when anything changes that it is made from."""
        raise NotImplementedError


class PhantomDataset(CachedCases):
    """Phantoms by number.

    Args:
        size: Number of phantoms.
        seed: Seed of the first; the others follow.
        label_maps: Folder of FreeSurfer-style label maps of brains to begin from, or only the built-in template.
        processor: Gives spacing and normalisation.
        cache_dir: Where preprocessed phantoms are kept.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        processor: LoraMoeHgdImageProcessor,
        cache_dir: Path,
        label_maps: Path | None = None,
    ) -> None:
        self.size = size
        self.seed = seed
        self.label_maps = label_map_files(label_maps) if label_maps else []
        self.processor = processor
        made_from = (_settings(processor), _phantom_code(), *(_state(path) for path in self.label_maps))
        self.folder = cache_dir / f"phantoms-{_digest(*made_from)}"

    def __len__(self) -> int:
        return self.size

    def _read_sources(self) -> None:
        read_templates(self.processor.target_spacing_mm[0], self.label_maps)

    def _preprocess(self, index: int) -> BatchFeature:
        spacing_mm = self.processor.target_spacing_mm[0]
        phantom = make_phantom(self.seed + index, spacing_mm=spacing_mm, label_maps=self.label_maps)
        return self.processor(
            dict(phantom.volumes),
            segmentation_maps=LABEL_SCHEMES["msd"].encode(phantom.regions.numpy()),
            label_scheme="msd",
            spacing_mm=self.processor.target_spacing_mm,
        )

    def _case_id(self, index: int) -> str:
        return f"phantom_{self.seed + index}"

    def _kept_at(self, index: int) -> Path:
        return self.folder / f"{self.seed + index}.safetensors"


class CaseDataset(CachedCases):
    """Cases on disk; those without a segmentation have empty labels, and are for objectives that read none.

    Args:
        cases: What to read.
        processor: Preprocessing.
        cache_dir: Where preprocessed cases are kept.
    """

    def __init__(self, cases: Sequence[CaseFiles], *, processor: LoraMoeHgdImageProcessor, cache_dir: Path) -> None:
        self.cases = list(cases)
        self.processor = processor
        self.folder = cache_dir / "cases"

    def __len__(self) -> int:
        return len(self.cases)

    def _preprocess(self, index: int) -> BatchFeature:
        case = self.cases[index]
        reading = read_case(case, labels=case.segmentation is not None, not_finite="error").checked()
        for finding in reading.findings:
            warnings.warn(str(finding), stacklevel=2)
        if reading.labels is None or reading.scheme is None:
            inputs = self.processor(reading.images)
            inputs["labels"] = torch.zeros(1, len(REGIONS), *inputs["pixel_values"].shape[2:], dtype=torch.uint8)
            return inputs
        return self.processor(reading.images, segmentation_maps=reading.labels, label_scheme=reading.scheme.name)

    def without(self, indices: Collection[int]) -> CaseDataset:
        """The same cases but these, by number."""
        kept = [case for index, case in enumerate(self.cases) if index not in indices]
        return CaseDataset(kept, processor=self.processor, cache_dir=self.folder.parent)

    def _case_id(self, index: int) -> str:
        return self.cases[index].case_id

    def _kept_at(self, index: int) -> Path:
        case = self.cases[index]
        paths = [path for path in (*case.images.values(), case.segmentation) if path is not None]
        settings = (_settings(self.processor), *case.label_schemes, *case.images, str(case.channels))
        return self.folder / f"{_digest(*settings, *(_state(path) for path in paths))}.safetensors"


class StreamedCases(CachedCases):
    """Labelled cases of a `datasets` dataset, a Hub id or a folder, streamed once and then read from the cache.

    Columns are called as the sequences, `t1`, `t1c` or `t1ce`, `t2` and `flair`, and `seg`, each a `datasets.Nifti`
    with null for a sequence that was not acquired.

    Args:
        name: What `datasets.load_dataset` takes.
        split: Split of it.
        label_scheme: Scheme of the segmentations.
        processor: Preprocessing.
        cache_dir: Where preprocessed cases are kept.
    """

    def __init__(
        self, name: str, *, split: str, label_scheme: str, processor: LoraMoeHgdImageProcessor, cache_dir: Path
    ) -> None:
        self.name, self.split, self.label_scheme, self.processor = name, split, label_scheme, processor
        self.folder = cache_dir / "cases"
        self.kept: list[Path] = []

    def __len__(self) -> int:
        return len(self.kept)

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Read the stream to its end; files of cases that are on disk already are not opened.

        Returns:
            Nothing: a case that cannot be used is an error, as its place in the stream tells nobody which it is.

        Raises:
            ValueError: If it lacks a column, or holds no case.
        """
        # Here, because it takes a second that other sources need not wait for.
        from datasets import Nifti, load_dataset

        stream = load_dataset(self.name, split=self.split, streaming=True)
        features = stream.features or {}
        columns = [name for name in (*MODALITIES, "t1ce", "seg") if name in features]
        if "seg" not in columns or len(columns) < 2 or not all(isinstance(features[name], Nifti) for name in columns):
            raise ValueError(
                f"A dataset must have some of the columns {', '.join(MODALITIES)}, and seg, all of type Nifti; "
                f"{self.name} has {', '.join(f'{name} ({kind})' for name, kind in features.items()) or 'none'}."
            )
        # Not by `cast_column`: a stream from the Hub is one that threads decode, whatever its columns are cast to.
        stream = stream.decode(False)
        for example in tqdm(stream, desc="streaming", unit="case", disable=not progress):
            files = {name: example[name] for name in columns if example[name] is not None}
            versions = [f"{name} {_version(file)}" for name, file in files.items()]
            self.kept.append(
                self.folder / f"{_digest(_settings(self.processor), self.label_scheme, *versions)}.safetensors"
            )
            if not self.kept[-1].is_file():
                self.images = {name: Nifti().decode_example(file) for name, file in files.items()}
                self._prepare(len(self) - 1)
        if not self.kept:
            raise ValueError(f"A dataset must hold at least one case, {self.name} holds none.")
        return {}

    def _preprocess(self, index: int) -> BatchFeature:
        images = {"t1c" if name == "t1ce" else name: image for name, image in self.images.items()}
        if "seg" not in images:
            raise ValueError(f"Each case must have a segmentation, number {index} of {self.name} has none.")
        segmentation = images.pop("seg")
        return self.processor(images, segmentation_maps=segmentation, label_scheme=self.label_scheme)

    def _case_id(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def _kept_at(self, index: int) -> Path:
        return self.kept[index]


class ChosenCases:
    """Some cases of a source, by number."""

    def __init__(self, source: CaseSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Case:
        return self.source[self.indices[index]]


class MixedCases:
    """Cases of several sources, each with its share; long enough that every case comes at least once.

    Args:
        sources: What to mix, none of them empty.
        shares: Share of each source, positive, adding up to 1.
    """

    def __init__(self, sources: Sequence[CaseSource], shares: Sequence[float]) -> None:
        self.sources = list(sources)
        length = max(math.ceil(len(source) / share) for source, share in zip(sources, shares, strict=True))
        self.places = [
            (number, index % len(source))
            for number, (source, share) in enumerate(zip(sources, shares, strict=True))
            for index in range(max(round(share * length), len(source)))
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Case:
        number, place = self.places[index]
        return self.sources[number][place]


def _settings(processor: LoraMoeHgdImageProcessor) -> str:
    """All of the processor that `preprocess` reads; label schemes are told by those who call it."""
    return json.dumps([processor.modalities, processor.target_spacing_mm, processor.intensity_clip])


def _state(path: Path) -> str:
    """What changes when a file does."""
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"


def _version(file: Mapping[str, Any]) -> str:
    """What tells a file of a stream from another: its content, or its address, which names the commit on the Hub."""
    if file["bytes"] is not None:
        return hashlib.sha256(file["bytes"]).hexdigest()
    local = Path(file["path"])
    return f"{local.resolve()} {local.stat().st_mtime_ns}" if local.is_file() else file["path"]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _phantom_code() -> str:
    """Fingerprint of the code that makes phantoms: changed code must not meet old phantoms."""
    folder = Path(__file__).parent
    names = ("anatomy.py", "contrast.py", "label_maps.py", "noise.py", "phantom.py", "tumour.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def _one_thread() -> None:
    torch.set_num_threads(1)

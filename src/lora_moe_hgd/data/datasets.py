"""Sources of whole preprocessed cases: phantoms, files, streams, and mixtures of them."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BatchFeature

from ..files import replacing
from ..fingerprints import case_fingerprint, code_fingerprint, file_fingerprint, fingerprint
from ..model.configuration_lora_moe_hgd import MODALITIES, REGIONS
from ..model.findings import BadInputError, Finding
from ..model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ..model.label_schemes import LABEL_SCHEMES
from .anatomy import read_templates
from .case_files import CaseFiles
from .cases import read_case
from .label_maps import label_map_files
from .phantom import make_phantom

# Settings of a processor that do not change what it makes of images and of label maps in a named scheme.
OF_NO_EFFECT = ("auto_map", "image_processor_type", "processor_class", "label_scheme", "least_part")


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

    Reading a preprocessed case takes milliseconds. Unpacking and resampling its files takes seconds.

    Args:
        processor: Preprocessing.
        cache_dir: Folder for the preprocessed cases. Each version of the package, and of the code that prepares cases,
            has a folder of its own in it.
    """

    def __init__(self, processor: LoraMoeHgdImageProcessor, cache_dir: Path) -> None:
        self.processor = processor
        self.cache_dir = cache_dir
        self.folder = cache_dir / f"{version('lora-moe-hgd')}-{code_fingerprint(__name__)[:16]}"

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Case:
        path = self._kept_at(index)
        if not path.is_file():
            finding = self._prepare(index)
            if finding is not None:
                raise BadInputError(finding.where, finding.message)
        tensors = load_file(path)
        return {
            "case_id": self._case_id(index),
            "pixel_values": tensors["pixel_values"].float(),
            "modality_mask": tensors["modality_mask"],
            "labels": tensors["labels"],
        }

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Preprocess all cases that are not on disk yet; return, by number, why a case cannot be used.

        Raises:
            BadInputError: If an input that several cases share, such as a label map of a brain, is bad.
        """
        # The files are read for their fingerprints: of a large cohort this takes minutes.
        numbers = tqdm(range(len(self)), desc="looking up", unit="case", delay=2, disable=not progress)
        missing = [index for index in numbers if not self._is_kept(index)]
        if missing:
            self._check_shared_inputs()
        bar = tqdm(total=len(missing), desc="preparing", unit="case", disable=not progress or not missing)
        found: list[Finding | None] = []
        if num_workers < 2 or len(missing) < 2:
            for index in missing:
                found.append(self._prepare(index))
                bar.update()
        else:
            # Spawned, as a fork of a process that computes with threads may hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread) as pool:
                for finding in pool.map(self._prepare, missing):
                    found.append(finding)
                    bar.update()
        bar.close()
        return {index: finding for index, finding in zip(missing, found, strict=True) if finding is not None}

    def _is_kept(self, index: int) -> bool:
        try:
            return self._kept_at(index).is_file()
        except OSError:
            # Preparing the case says which file cannot be read, and why.
            return False

    def _check_shared_inputs(self) -> None:
        """Validate inputs that several cases share before any case is made. The default does nothing."""

    def _prepare(self, index: int) -> Finding | None:
        """Preprocess a case and keep it, or return why it cannot be used."""
        try:
            self._keep(self._preprocess(index), self._kept_at(index))
        except BadInputError as error:
            return error.finding
        return None

    def _keep(self, inputs: BatchFeature, path: Path) -> None:
        tensors = {name: inputs[name][0] for name in ("pixel_values", "modality_mask", "labels")}
        tensors["pixel_values"] = tensors["pixel_values"].half()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)

    def _settings(self) -> dict[str, Any]:
        """All settings of the processor that preprocessing reads."""
        return {name: value for name, value in self.processor.to_dict().items() if name not in OF_NO_EFFECT}

    def _preprocess(self, index: int) -> BatchFeature:
        """Make network input and labels of a case from its origin.

        Raises:
            BadInputError: If the case cannot be used.
        """
        raise NotImplementedError

    def _case_id(self, index: int) -> str:
        raise NotImplementedError

    def _kept_at(self, index: int) -> Path:
        """Path of the preprocessed case. It differs whenever anything differs that the case is made from."""
        raise NotImplementedError


class PhantomDataset(CachedCases):
    """Phantoms by number.

    Args:
        size: Number of phantoms.
        seed: Seed of the first; the others follow.
        label_maps: Folder of FreeSurfer-style label maps of brains to begin from, or only the built-in template.
        processor: Gives spacing and normalisation.
        cache_dir: Folder for preprocessed phantoms.
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
        super().__init__(processor, cache_dir)
        self.size = size
        self.seed = seed
        self.label_maps = label_map_files(label_maps) if label_maps else []
        # A phantom draws one of the maps by its place in the list.
        maps = [file_fingerprint(path) for path in self.label_maps]
        self.folder /= f"phantoms-{fingerprint(self._settings(), maps)}"

    def __len__(self) -> int:
        return self.size

    def _check_shared_inputs(self) -> None:
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
        cases: Files of the cases.
        processor: Preprocessing.
        cache_dir: Folder for preprocessed cases.
    """

    def __init__(self, cases: Sequence[CaseFiles], *, processor: LoraMoeHgdImageProcessor, cache_dir: Path) -> None:
        super().__init__(processor, cache_dir)
        self.cases = list(cases)
        self.folder /= "cases"
        # Fingerprints by number: each file is read once for them, not once an epoch.
        self._fingerprints: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def _preprocess(self, index: int) -> BatchFeature:
        case = self.cases[index]
        reading = read_case(case, labels=case.segmentation is not None, not_finite="error").checked()
        for finding in reading.findings:
            warnings.warn(str(finding), stacklevel=2)
        if index in self._fingerprints and self._fingerprints[index] != self._made_from(index):
            raise BadInputError(
                case.folder, "Files of this case have changed since the run began. Start the run again to use them."
            )
        if reading.labels is None or reading.scheme is None:
            inputs = self.processor(reading.images)
            inputs["labels"] = torch.zeros(1, len(REGIONS), *inputs["pixel_values"].shape[2:], dtype=torch.uint8)
            return inputs
        return self.processor(reading.images, segmentation_maps=reading.labels, label_scheme=reading.scheme.name)

    def without(self, indices: Collection[int]) -> CaseDataset:
        """The same cases without some of them, which are given by number."""
        kept = [index for index in range(len(self)) if index not in indices]
        rest = CaseDataset([self.cases[index] for index in kept], processor=self.processor, cache_dir=self.cache_dir)
        known = self._fingerprints
        rest._fingerprints = {new: known[old] for new, old in enumerate(kept) if old in known}
        return rest

    def _case_id(self, index: int) -> str:
        return self.cases[index].case_id

    def _made_from(self, index: int) -> str:
        return fingerprint(self._settings(), case_fingerprint(self.cases[index], labels=True))

    def _kept_at(self, index: int) -> Path:
        if index not in self._fingerprints:
            self._fingerprints[index] = self._made_from(index)
        return self.folder / f"{self._fingerprints[index]}.safetensors"


class StreamedCases(CachedCases):
    """Labelled cases of a `datasets` dataset, a Hub id or a folder, streamed once and then read from the cache.

    The columns have the names of the sequences, `t1`, `t1c` or `t1ce`, `t2` and `flair`, and `seg`. Each is a
    `datasets.Nifti` with null for a sequence that was not acquired.

    Args:
        name: First argument of `datasets.load_dataset`.
        split: Split of the dataset.
        label_scheme: Scheme of the segmentations.
        processor: Preprocessing.
        cache_dir: Folder for preprocessed cases.
    """

    def __init__(
        self, name: str, *, split: str, label_scheme: str, processor: LoraMoeHgdImageProcessor, cache_dir: Path
    ) -> None:
        super().__init__(processor, cache_dir)
        self.name, self.split, self.label_scheme = name, split, label_scheme
        self.folder /= "cases"
        self.kept: list[Path] = []

    def __len__(self) -> int:
        return len(self.kept)

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Read the stream to its end; cases that are on disk already are not decoded.

        Returns:
            Nothing: a case that cannot be used is an error, as its number in the stream does not help to find it.

        Raises:
            ValueError: If the dataset lacks a column or holds no case, or a case cannot be used.
        """
        self.kept = []
        for index, files in enumerate(tqdm(self._stream(), desc="streaming", unit="case", disable=not progress)):
            self.kept.append(self._path_of(files))
            if not self.kept[-1].is_file():
                self._keep(self._decoded(index, files), self.kept[-1])
        if not self.kept:
            raise ValueError(f"The dataset {self.name} holds no case in its split {self.split}.")
        return {}

    def _stream(self, *, begin: int = 0) -> Iterable[dict[str, Any]]:
        """Files of each case by column, not decoded, from number `begin` on.

        Raises:
            ValueError: If the dataset lacks a column.
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
        for example in stream.decode(False).skip(begin):
            yield {name: example[name] for name in columns if example[name] is not None}

    def _path_of(self, files: Mapping[str, Mapping[str, Any]]) -> Path:
        versions = {name: _version(file) for name, file in files.items()}
        return self.folder / f"{fingerprint(self._settings(), self.label_scheme, versions)}.safetensors"

    def _decoded(self, index: int, files: Mapping[str, dict[str, Any]]) -> BatchFeature:
        from datasets import Nifti

        where = f"Case number {index} of {self.name}"
        if "seg" not in files:
            raise ValueError(f"{where} has no segmentation. Training needs one for each case.")
        images = {"t1c" if name == "t1ce" else name: Nifti().decode_example(file) for name, file in files.items()}
        segmentation = images.pop("seg")
        try:
            return self.processor(images, segmentation_maps=segmentation, label_scheme=self.label_scheme)
        except ValueError as error:
            raise ValueError(f"{where} cannot be used. {error}") from error

    def _preprocess(self, index: int) -> BatchFeature:
        """Read this case from a new stream; what `prepare_all` kept of it has been removed since."""
        files = next(iter(self._stream(begin=index)), None)
        if files is None or self._path_of(files) != self.kept[index]:
            raise ValueError(
                f"Case number {index} of {self.name} has changed since the run began. Start the run again to use it."
            )
        return self._decoded(index, files)

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
        sources: Sources to mix, none of them empty.
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


def _version(file: Mapping[str, Any]) -> str:
    """Fingerprint of a file of a stream: of its content, or its address, which on the Hub names the commit."""
    if file["bytes"] is not None:
        return hashlib.sha256(file["bytes"]).hexdigest()
    local = Path(file["path"])
    return file_fingerprint(local) if local.is_file() else str(file["path"])


def _one_thread() -> None:
    torch.set_num_threads(1)

"""Sources of preprocessed cases: phantoms, files, and mixtures of sources. Streamed cases are in `streams`."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BatchFeature

from ...cases.case_files import CaseFiles
from ...cases.reading import read_case
from ...files import printable, reason_of, replacing
from ...fingerprints import (
    case_fingerprint,
    code_fingerprint,
    file_fingerprint,
    fingerprint,
    images_fingerprint,
)
from ...model.case_rules import SettledCase
from ...model.configuration_lora_moe_hgd import MODALITIES
from ...model.findings import BadInputError, Finding
from ...model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ...model.label_schemes import LABEL_SCHEMES
from ...phantoms.anatomy import read_templates
from ...phantoms.brain_maps import label_map_files
from ...phantoms.phantom import make_phantom
from ...phantoms.style import WIDE, PhantomStyle

# Settings of a processor that do not change its output for images and for label maps of a known scheme.
OF_NO_EFFECT = (
    "auto_map",
    "image_processor_type",
    "processor_class",
    "label_scheme",
    "least_part",
    "confidence_weights",
)


class Case(TypedDict):
    """A preprocessed case: `pixel_values (M, D, H, W)`, `modality_mask (M,)` bool, `labels (R, D, H, W)` uint8."""

    case_id: str
    pixel_values: Tensor
    modality_mask: Tensor
    labels: Tensor


class CaseSource(Protocol):
    """Interface of a source of preprocessed cases, which are read by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...


class CachedCases(Dataset):
    """Cases that are preprocessed once and then cached on disk, as safetensors in half precision.

    Reading a preprocessed case takes milliseconds. Unpacking and resampling the files of a case takes seconds.
    Warnings about a case are cached with the case, so that every run prints them.

    Args:
        processor: Image processor that preprocesses the cases.
        cache_dir: Folder for preprocessed cases. A new version of the package, or a change of its code for
            preprocessing, uses a new subfolder.
    """

    def __init__(self, processor: LoraMoeHgdImageProcessor, cache_dir: Path) -> None:
        self.processor = processor
        self.cache_dir = cache_dir
        self.folder = cache_dir / f"{version('lora-moe-hgd')}-{code_fingerprint(type(self).__module__)[:16]}"

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def case_ids(self) -> list[str]:
        """Ids of all cases, in the order of their indices."""
        return [self._case_id(index) for index in range(len(self))]

    def __getitem__(self, index: int) -> Case:
        path = self._kept_at(index)
        if not path.is_file():
            finding = self._prepare(index)
            if finding is not None:
                raise BadInputError(finding.where, finding.message)
            self._print_findings(index)
        tensors = load_file(path)
        return {
            "case_id": self._case_id(index),
            "pixel_values": tensors["pixel_values"].float(),
            "modality_mask": tensors["modality_mask"],
            "labels": tensors["labels"],
        }

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Preprocess all cases that are not in the cache; return the error of each unusable case, by its index.

        Args:
            num_workers: Number of worker processes that preprocess cases. With 0 or 1, no worker is started, and this
                process preprocesses the cases itself.
            progress: Whether to show progress and to print warnings about cases.

        Raises:
            BadInputError: If an input that several cases share, such as a label map of a brain, is invalid.
        """
        # Fingerprints need the content of all files. For a large cohort, reading them takes minutes.
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
            # Spawn the workers: a fork of a process that uses threads may hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_one_thread) as pool:
                for finding in pool.map(self._prepare, missing):
                    found.append(finding)
                    bar.update()
        bar.close()
        bad = {index: finding for index, finding in zip(missing, found, strict=True) if finding is not None}
        if progress:
            for index in range(len(self)):
                if index not in bad:
                    self._print_findings(index)
        return bad

    def _is_kept(self, index: int) -> bool:
        try:
            return self._kept_at(index).is_file()
        except OSError:
            # Preprocessing the case will raise again and report the file that cannot be read.
            return False

    def content(self) -> str:
        """Fingerprint of the content of all cases and of the settings of their preprocessing."""
        # Leave out the first folder below the cache, which is named after the versions of package and code.
        kept = [self._kept_at(index).relative_to(self.cache_dir).parts[1:] for index in range(len(self))]
        return fingerprint(kept)

    def _check_shared_inputs(self) -> None:
        """Validate the inputs that several cases share.

        This method is called before any case is preprocessed. The method of the base class does nothing.
        """

    def _prepare(self, index: int) -> Finding | None:
        """Preprocess a case and write it to the cache. If the case cannot be used, return the error."""
        try:
            self._keep(*self._preprocess(index), self._kept_at(index))
        except BadInputError as error:
            return error.finding
        # An unexpected error in one case must not stop the others.
        except Exception as error:
            return Finding(self._case_id(index), reason_of(error), "error")
        return None

    def _keep(self, inputs: BatchFeature, findings: Sequence[Finding], path: Path) -> None:
        tensors = {name: inputs[name][0] for name in ("pixel_values", "modality_mask", "labels")}
        tensors["pixel_values"] = tensors["pixel_values"].half()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as scratch:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                scratch,
                metadata={"findings": json.dumps([str(finding) for finding in findings])},
            )

    def _print_findings(self, index: int) -> None:
        """Print the warnings about a preprocessed case, one per line."""
        with safe_open(self._kept_at(index), framework="pt") as file:
            for text in json.loads(file.metadata()["findings"]):
                tqdm.write(printable(f"warning: {self._case_id(index)}: {text}"), file=sys.stderr)

    def _settings(self) -> dict[str, Any]:
        """Settings of the processor that influence the preprocessed cases."""
        return {name: value for name, value in self.processor.to_dict().items() if name not in OF_NO_EFFECT}

    def _preprocess(self, index: int) -> tuple[BatchFeature, Sequence[Finding]]:
        """Compute network input and labels of a case, and return them with the findings about the case.

        Raises:
            BadInputError: If the case cannot be used.
        """
        raise NotImplementedError

    def _case_id(self, index: int) -> str:
        raise NotImplementedError

    def _kept_at(self, index: int) -> Path:
        """Path of the preprocessed case. If an input of the preprocessing changes, the path changes, too."""
        raise NotImplementedError


def folder_of_allowed(folder: Path, *, skull: bool, partial: bool) -> Path:
    """Return a separate cache folder for each combination of `--allow-skull` and `--allow-partial`.

    A run without `--allow-skull` must not use a case that is cached only because another run used `--allow-skull`. The
    same is true of `--allow-partial`. The fingerprint of a case does not depend on these options, so the folder must.
    """
    allowed = "".join(f"-{name}" for name, is_allowed in (("skull", skull), ("partial", partial)) if is_allowed)
    return folder.with_name(folder.name + allowed)


class PhantomDataset(CachedCases):
    """Phantoms that are made from consecutive seeds.

    Args:
        size: Number of phantoms.
        seed: Seed of the first phantom. Each further phantom has the next seed.
        label_maps: Folder of FreeSurfer-style label maps of brains from which phantoms are made, in addition to the
            built-in brain.
        processor: Image processor that preprocesses the phantoms. The target spacing of the processor is the phantoms'
            voxel size.
        cache_dir: Folder for preprocessed phantoms.
        style: Ranges of the random properties of phantoms.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        processor: LoraMoeHgdImageProcessor,
        cache_dir: Path,
        label_maps: Path | None = None,
        style: PhantomStyle = WIDE,
    ) -> None:
        super().__init__(processor, cache_dir)
        self.size = size
        self.seed = seed
        self.label_maps = label_map_files(label_maps) if label_maps else []
        self.style = style
        # A phantom draws a label map by its index, so the order of the maps is part of the fingerprint.
        maps = [file_fingerprint(path) for path in self.label_maps]
        self.folder /= f"phantoms-{fingerprint(self._settings(), asdict(style), maps)}"

    def __len__(self) -> int:
        return self.size

    def _check_shared_inputs(self) -> None:
        read_templates(self.processor.target_spacing_mm[0], self.label_maps)

    def _preprocess(self, index: int) -> tuple[BatchFeature, Sequence[Finding]]:
        spacing_mm = self.processor.target_spacing_mm[0]
        phantom = make_phantom(self.seed + index, spacing_mm=spacing_mm, label_maps=self.label_maps, style=self.style)
        settled = SettledCase(
            arrays={name: phantom.volumes[name].numpy() for name in MODALITIES},
            affine=np.diag([*self.processor.target_spacing_mm, 1.0]),
            reference=MODALITIES[0],
            labels=LABEL_SCHEMES["msd"].encode(phantom.regions.numpy()),
            scheme=LABEL_SCHEMES["msd"],
        )
        return self.processor(settled), ()

    def _case_id(self, index: int) -> str:
        return f"phantom_{self.seed + index}"

    def _kept_at(self, index: int) -> Path:
        return self.folder / f"{self.seed + index}.safetensors"


class CaseDataset(CachedCases):
    """Cases on disk. A case without a segmentation, which only masked pre-training accepts, gets labels of zeros.

    Args:
        cases: Files of the cases.
        processor: Image processor that preprocesses the cases.
        cache_dir: Folder for preprocessed cases.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
    """

    def __init__(
        self,
        cases: Sequence[CaseFiles],
        *,
        processor: LoraMoeHgdImageProcessor,
        cache_dir: Path,
        allow_skull: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(processor, cache_dir)
        self.cases = list(cases)
        self.allow_skull, self.allow_partial = allow_skull, allow_partial
        self.folder = folder_of_allowed(self.folder, skull=allow_skull, partial=allow_partial) / "cases"
        # Fingerprints by index. They are stored, so that each file is read once, not once per epoch.
        self._fingerprints: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def contents(self) -> dict[str, str]:
        """Fingerprint of the images of each case, by case id."""
        return {case.case_id: images_fingerprint(case) for case in self.cases}

    def _preprocess(self, index: int) -> tuple[BatchFeature, Sequence[Finding]]:
        case = self.cases[index]
        reading = read_case(
            case,
            labels=case.segmentation is not None,
            not_finite="error",
            allow_skull=self.allow_skull,
            allow_partial=self.allow_partial,
            task=self.processor.segmentation_task,
        ).checked()
        if index in self._fingerprints and self._fingerprints[index] != self._made_from(index):
            raise BadInputError(
                case.folder, "Files of this case have changed since the run began. Start the run again."
            )
        inputs = self.processor(reading.settled)
        if "labels" not in inputs:
            regions = self.processor.segmentation_task.regions
            inputs["labels"] = torch.zeros(1, len(regions), *inputs["pixel_values"].shape[2:], dtype=torch.uint8)
        # These findings name sequences, not files, so they remain correct when the files of a cached case are moved.
        return inputs, reading.settled.findings

    def without(self, indices: Collection[int]) -> CaseDataset:
        """Return a data set without the cases at `indices`."""
        kept = [index for index in range(len(self)) if index not in indices]
        rest = CaseDataset(
            [self.cases[index] for index in kept],
            processor=self.processor,
            cache_dir=self.cache_dir,
            allow_skull=self.allow_skull,
            allow_partial=self.allow_partial,
        )
        known = self._fingerprints
        rest._fingerprints = {new: known[old] for new, old in enumerate(kept) if old in known}
        return rest

    def _case_id(self, index: int) -> str:
        return self.cases[index].case_id

    def _made_from(self, index: int) -> str:
        content = case_fingerprint(self.cases[index], labels=True)
        return fingerprint(self._settings(), content)

    def _kept_at(self, index: int) -> Path:
        if index not in self._fingerprints:
            self._fingerprints[index] = self._made_from(index)
        return self.folder / f"{self._fingerprints[index]}.safetensors"


class ChosenCases:
    """The cases of a source at the given indices."""

    def __init__(self, source: CaseSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Case:
        return self.source[self.indices[index]]


class MixedCases:
    """Cases of several sources, repeated so that each source has a given share. Every case appears at least once.

    Args:
        sources: Sources to mix, none of them empty.
        shares: Share of each source among all cases. The shares are positive and add up to 1.
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


def _one_thread() -> None:
    torch.set_num_threads(1)

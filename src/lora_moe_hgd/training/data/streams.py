"""Preprocessed cases of a dataset that the library `datasets` streams, with one pass over the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import BatchFeature

from ...fingerprints import combined_fingerprint, file_fingerprint, fingerprint
from ...model.case_rules import LABEL_MAP, settle
from ...model.findings import Finding
from ...model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from ...model.sources import volume_of
from .datasets import CachedCases, folder_of_allowed


class StreamedCases(CachedCases):
    """Labelled cases of a dataset that the library `datasets` streams.

    One pass over the stream fills the cache. Training reads the cases from the cache.

    The columns are named after the sequences (for brain tumours `t1`, `t1c` or `t1ce`, `t2` and `flair`). The column
    `seg` contains the segmentations. All columns are of type `datasets.Nifti`, with null for a missing sequence.

    Args:
        name: Hub id or folder of the dataset, the first argument of `datasets.load_dataset`.
        split: Split of the dataset.
        label_scheme: Name of the label scheme of the segmentations.
        processor: Image processor that preprocesses the cases.
        cache_dir: Folder for preprocessed cases.
        allow_skull: Accept heads with their skull.
        allow_partial: Accept volumes that show only a part of a brain.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str,
        label_scheme: str,
        processor: LoraMoeHgdImageProcessor,
        cache_dir: Path,
        allow_skull: bool = False,
        allow_partial: bool = False,
    ) -> None:
        super().__init__(processor, cache_dir)
        self.name, self.split, self.label_scheme = name, split, label_scheme
        self.allow_skull, self.allow_partial = allow_skull, allow_partial
        self.folder = folder_of_allowed(self.folder, skull=allow_skull, partial=allow_partial) / "cases"
        self.kept: list[Path] = []
        self._contents: list[str] = []

    def __len__(self) -> int:
        return len(self.kept)

    def prepare_all(self, *, num_workers: int, progress: bool) -> dict[int, Finding]:
        """Read the stream to its end, and cache its cases. Cases that are already in the cache are not decoded.

        Args:
            num_workers: Has no effect, because one process reads a stream.
            progress: Whether to show progress and to print warnings about cases.

        Returns:
            Always an empty dictionary. The first case that cannot be used raises an error, because users cannot easily
            find a case by its index in a stream.

        Raises:
            ValueError: If the dataset lacks a column or contains no case, or if a case cannot be used.
        """
        self.kept, self._contents = [], []
        for index, files in enumerate(tqdm(self._stream(), desc="streaming", unit="case", disable=not progress)):
            versions = {_sequence(name): _version(file) for name, file in files.items()}
            self.kept.append(self._path_of(versions))
            self._contents.append(
                combined_fingerprint({name: versions[name] for name in self.processor.modalities if name in versions})
            )
            if not self.kept[-1].is_file():
                self._keep(*self._decoded(index, files), self.kept[-1])
            if progress:
                self._print_findings(index)
        if not self.kept:
            raise ValueError(f"The split {self.split} of the dataset {self.name} contains no case.")
        return {}

    def contents(self) -> dict[str, str]:
        """Fingerprint of the images of each case, by case id."""
        return dict(zip(self.case_ids, self._contents, strict=True))

    def _stream(self, *, begin: int = 0) -> Iterable[dict[str, Any]]:
        """Yield the undecoded files of each case by column, beginning with case number `begin`.

        Raises:
            ValueError: If the dataset lacks a column.
        """
        # This import takes about a second, so it is done only where cases are streamed.
        from datasets import Nifti, load_dataset

        stream = load_dataset(self.name, split=self.split, streaming=True)
        features = stream.features or {}
        names = self.processor.modalities
        columns = [name for name in (*names, *(["t1ce"] if "t1c" in names else []), "seg") if name in features]
        if "seg" not in columns or len(columns) < 2 or not all(isinstance(features[name], Nifti) for name in columns):
            found = ", ".join(f"{name} ({kind})" for name, kind in features.items()) or "none"
            raise ValueError(
                f"A dataset must have the column seg and at least one of the columns {', '.join(names)}, all of type "
                f"Nifti. The columns of {self.name} are: {found}."
            )
        # `cast_column` would not help: a stream from the Hub is decoded by threads even if its columns were cast.
        for example in stream.decode(False).skip(begin):
            yield {name: example[name] for name in columns if example[name] is not None}

    def _path_of(self, versions: Mapping[str, str]) -> Path:
        """Path of a preprocessed case. `versions` are the fingerprints of the case's files, by sequence."""
        made_from = fingerprint(self._settings(), self.label_scheme, versions)
        return self.folder / f"{made_from}.safetensors"

    def _decoded(self, index: int, files: Mapping[str, dict[str, Any]]) -> tuple[BatchFeature, Sequence[Finding]]:
        from datasets import Nifti

        where = f"Case number {index} of {self.name}"
        if "seg" not in files:
            raise ValueError(f"{where} has no segmentation. Training needs a segmentation of each case.")
        images = {_sequence(name): Nifti().decode_example(file) for name, file in files.items()}
        segmentation = images.pop("seg")
        try:
            settled = settle(
                {name: volume_of(images[name], where=name) for name in self.processor.modalities if name in images},
                label_map=volume_of(segmentation, where=LABEL_MAP),
                label_schemes=(self.label_scheme,),
                not_finite="error",
                allow_skull=self.allow_skull,
                allow_partial=self.allow_partial,
                task=self.processor.segmentation_task,
            ).raise_errors()
            return self.processor(settled), settled.findings
        except ValueError as error:
            raise ValueError(f"{where} cannot be used. {error}") from error

    def _preprocess(self, index: int) -> tuple[BatchFeature, Sequence[Finding]]:
        """Read this case from a new stream, because its file has been removed from the cache since `prepare_all`."""
        files = next(iter(self._stream(begin=index)), None)
        versions = {_sequence(name): _version(file) for name, file in (files or {}).items()}
        if files is None or self._path_of(versions) != self.kept[index]:
            raise ValueError(
                f"Case number {index} of {self.name} has changed since the run began. Start the run again."
            )
        return self._decoded(index, files)

    def _case_id(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def _kept_at(self, index: int) -> Path:
        return self.kept[index]


def _sequence(column: str) -> str:
    """Name of the sequence that a column of the dataset contains; `seg` for the segmentations."""
    return "t1c" if column == "t1ce" else column


def _version(file: Mapping[str, Any]) -> str:
    """Fingerprint of a streamed file: the hash of its content, or its address if the file is only on the Hub.

    The address contains the commit, so it changes with the file.
    """
    if file["bytes"] is not None:
        return hashlib.sha256(file["bytes"]).hexdigest()
    local = Path(file["path"])
    return file_fingerprint(local) if local.is_file() else str(file["path"])

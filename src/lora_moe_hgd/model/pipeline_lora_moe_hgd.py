"""`pipeline("brain-tumor-segmentation")`: a case, or several, to label maps on their own grids."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import Pipeline

from .configuration_lora_moe_hgd import REGIONS
from .label_schemes import label_scheme as find_label_scheme


class BrainTumorSegmentationPipeline(Pipeline):
    """Image processor, network and post-processing in one call.

    A case is a dict from sequence name to a path, a nibabel image or an array, absent sequences left out or `None`; or
    the path of a folder, where the package lora-moe-hgd is installed, which knows how files are called. The result of
    a case is a dict:

    - `segmentation`: label map, uint8, on the case's own grid;
    - `probabilities`: of WT, TC and ET, `(3, D, H, W)` float32 on that grid;
    - `volumes_ml`: volume of each region in millilitres;
    - `affine`: voxel to millimetre, `(4, 4)`, to save them with.

    Example:
        `pipeline("brain-tumor-segmentation", model=...)({"t1c": "t1c.nii.gz", "flair": "flair.nii.gz"})`
    """

    _load_image_processor = True

    model: Any
    image_processor: Any

    def __call__(self, cases: Any, **kwargs: Any) -> Any:
        """Segment a case, or a list of cases one after another.

        Args:
            cases: One case, a list of cases, or what else a pipeline iterates over.
            **kwargs: `label_scheme`, that of the label map, the processor's own when left out; `spacing_mm`, voxel
                size of bare arrays; `mirror`, to take the mean over the case and its mirror image.

        Raises:
            ValueError: If a case cannot be used, or cases are to be stacked with `batch_size`.
        """
        if kwargs.get("batch_size", self._batch_size or 1) != 1:
            raise ValueError(
                f"`batch_size` must be 1, as cases differ in size and sequences, got "
                f"{kwargs.get('batch_size', self._batch_size)}; a list of cases is segmented one by one."
            )
        return super().__call__(cases, **kwargs)

    def _sanitize_parameters(
        self, label_scheme: str | None = None, spacing_mm: float | None = None, mirror: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before = {} if spacing_mm is None else {"spacing_mm": spacing_mm}
        between = {} if mirror is None else {"mirror": mirror}
        after = {} if label_scheme is None else {"label_scheme": label_scheme}
        return before, between, after

    def preprocess(self, case: Mapping[str, Any] | str | Path, **parameters: Any) -> Mapping[str, Any]:
        images = case if isinstance(case, Mapping) else _files_of(case)
        return self.image_processor(images, **parameters)

    def _forward(self, inputs: Mapping[str, Any], mirror: bool = False) -> dict[str, Any]:
        logits = self.model.segment_volume(inputs["pixel_values"], inputs["modality_mask"], mirror=mirror)
        return {"logits": logits, "geometry": inputs["geometry"]}

    def postprocess(self, outputs: Mapping[str, Any], label_scheme: str | None = None) -> dict[str, Any]:
        logits: Tensor = outputs["logits"]
        ((segmentation, probabilities),) = self.image_processor.post_process_semantic_segmentation(
            logits, outputs["geometry"], label_scheme=label_scheme, return_probabilities=True
        )
        (geometry,) = outputs["geometry"]
        regions = find_label_scheme(label_scheme or self.image_processor.label_scheme).decode(segmentation)
        voxels = np.count_nonzero(regions, axis=(1, 2, 3))
        return {
            "segmentation": segmentation,
            "probabilities": probabilities,
            "volumes_ml": dict(zip(REGIONS, (voxels * geometry.voxel_ml).tolist(), strict=True)),
            "affine": geometry.affine,
        }


def _files_of(folder: str | Path) -> Mapping[str, Any]:
    """The sequences of a case's folder, by name.

    Raises:
        ValueError: If the package that knows the names of files is not installed.
    """
    try:
        from lora_moe_hgd.data.cases import read_case
        from lora_moe_hgd.data.layouts import find_case
    except ImportError as error:
        raise ValueError(
            "A case must be a dict from sequence name to file or array; folders need the package lora-moe-hgd, "
            f"which is not installed, got {folder}."
        ) from error
    reading = read_case(find_case(Path(folder))).checked()
    for finding in reading.findings:
        warnings.warn(str(finding), stacklevel=2)
    return reading.images


__all__ = ["BrainTumorSegmentationPipeline"]

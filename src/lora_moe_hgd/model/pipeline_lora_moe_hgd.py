"""`pipeline("brain-tumor-segmentation")`: segment one or several cases, each on its own grid."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import Pipeline

from .case_rules import SettledCase
from .confidence import confidence_warnings, rounded_down
from .task import Task


class BrainTumorSegmentationPipeline(Pipeline):
    """Image processor, network and post-processing in one call.

    A case is a dict from sequence name to a path, a nibabel image or an array. Absent sequences are left out or
    `None`. If the package lora-moe-hgd is installed, a case can also be the path of a folder. The result for a case is
    a dict:

    - `segmentation`: label map, uint8, on the case's own grid;
    - `probabilities`: probabilities of the regions (WT, TC and ET), `(R, D, H, W)` float32, on the case's own grid;
    - `volumes_ml`: volume of each region in millilitres;
    - `confidence`: expected Dice of each region, `None` for an empty region;
    - `affine`: affine of the case, voxel to millimetre, `(4, 4)`, for saving the arrays;
    - `warnings`: list of warnings about the case and the result.

    With `on_error="return"`, the result of a case that cannot be segmented is `{"error": reason}`.

    Example:
        `pipeline("brain-tumor-segmentation", model=...)({"t1c": "t1c.nii.gz", "flair": "flair.nii.gz"})`
    """

    _load_image_processor = True
    # By default, `pipeline` looks for each of these parts, and asks whether it may run the code of the checkpoint.
    _load_tokenizer = _load_feature_extractor = _load_processor = _load_video_processor = False

    model: Any
    image_processor: Any

    def __call__(self, cases: Any, **kwargs: Any) -> Any:
        """Segment a case, or a list of cases one after another.

        Args:
            cases: One case, a list of cases, or another iterable that a pipeline accepts.
            **kwargs: `label_scheme`: name of the label scheme of the result (default: the label scheme of the
                processor). `spacing_mm`: voxel size in millimetres of arrays without an affine. `allow_skull` and
                `allow_partial`: accept heads with their skull, and partial brains. `mirror`: average the logits of the
                case and of its left-right mirror image. `bf16`: compute in bfloat16. `on_error`: `raise` (default)
                stops at a case that cannot be segmented, and `return` makes the error the result of this case.

        Raises:
            ValueError: If a case cannot be used and `on_error` is `raise`, if an option is invalid, or if `batch_size`
                is not 1.
        """
        if kwargs.get("batch_size", self._batch_size or 1) != 1:
            raise ValueError(
                f"`batch_size` must be 1, got {kwargs.get('batch_size', self._batch_size)}. Cases differ in size and "
                "sequences, so a list of cases is segmented one by one."
            )
        return super().__call__(cases, **kwargs)

    def _sanitize_parameters(
        self,
        label_scheme: str | None = None,
        mirror: bool | None = None,
        bf16: bool | None = None,
        on_error: str | None = None,
        **parameters: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before: dict[str, Any] = {
            name: parameters[name] for name in ("spacing_mm", "allow_skull", "allow_partial") if name in parameters
        }
        if unknown := sorted(set(parameters) - set(before)):
            raise TypeError(f"The pipeline has no option {', '.join(unknown)}.")
        options = {"mirror": mirror, "bf16": bf16}
        between: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        after: dict[str, Any] = {} if label_scheme is None else {"label_scheme": label_scheme}
        if on_error is not None:
            if on_error not in ("raise", "return"):
                raise ValueError(f"`on_error` must be 'raise' or 'return', got {on_error!r}.")
            for step in (before, between, after):
                step["on_error"] = on_error
        return before, between, after

    def preprocess(self, case: Any, on_error: str = "raise", **parameters: Any) -> Mapping[str, Any]:
        return self._attempt(on_error, self._prepare, case, **parameters)

    def _forward(self, inputs: Mapping[str, Any], on_error: str = "raise", **options: bool) -> Mapping[str, Any]:
        return inputs if "error" in inputs else self._attempt(on_error, self._segment, inputs, **options)

    def postprocess(
        self, outputs: Mapping[str, Any], on_error: str = "raise", label_scheme: str | None = None
    ) -> Mapping[str, Any]:
        return outputs if "error" in outputs else self._attempt(on_error, self._result, outputs, label_scheme)

    def _attempt(
        self, on_error: str, step: Callable[..., Mapping[str, Any]], *args: Any, **parameters: Any
    ) -> Mapping[str, Any]:
        try:
            return step(*args, **parameters)
        # After any error of a case, the next case is segmented.
        except Exception as error:
            if on_error == "raise":
                raise
            return {"error": str(error) or type(error).__name__}

    def _prepare(self, case: Mapping[str, Any] | str | Path, **parameters: Any) -> Mapping[str, Any]:
        if isinstance(case, Mapping):
            return self.image_processor(case, **parameters)
        if "spacing_mm" in parameters:
            raise ValueError(
                "`spacing_mm` is only for arrays without an affine. Leave it out for a folder, because the files in a "
                "folder state their voxel size."
            )
        return self.image_processor(_read_folder(case, self.image_processor.segmentation_task, **parameters))

    def _segment(self, inputs: Mapping[str, Any], **options: bool) -> dict[str, Any]:
        logits = self.model.segment_volume(inputs["pixel_values"], inputs["modality_mask"], **options)
        return {"logits": logits, "geometry": inputs["geometry"], "modality_mask": inputs["modality_mask"]}

    def _result(self, outputs: Mapping[str, Any], label_scheme: str | None) -> dict[str, Any]:
        logits: Tensor = outputs["logits"]
        ((regions, probabilities),) = self.image_processor.post_process_regions(logits, outputs["geometry"])
        (geometry,) = outputs["geometry"]
        scheme = self.image_processor.scheme(label_scheme)
        voxels = np.count_nonzero(regions, axis=(1, 2, 3))
        volumes_ml = {
            name: round(volume, 3)
            for name, volume in zip(scheme.regions, (voxels * geometry.voxel_ml).tolist(), strict=True)
        }
        (present,) = outputs["modality_mask"].tolist()
        confidence = self.image_processor.confidence(
            probabilities, regions, voxel_ml=geometry.voxel_ml, present=present
        )
        doubts = confidence_warnings(confidence, self.image_processor.segmentation_task.target)
        return {
            "segmentation": scheme.encode(regions),
            "probabilities": probabilities,
            "volumes_ml": volumes_ml,
            "confidence": {name: value and rounded_down(value, 3) for name, value in confidence.items()},
            "affine": geometry.affine,
            "warnings": [*geometry.warnings, *map(str, doubts)],
        }


def _read_folder(
    folder: str | Path, task: Task, *, allow_skull: bool = False, allow_partial: bool = False
) -> SettledCase:
    """Read the case in a folder.

    Raises:
        ValueError: If the package lora-moe-hgd is not installed, or the case cannot be used.
    """
    try:
        from lora_moe_hgd.cases.layouts import find_case
        from lora_moe_hgd.cases.reading import read_case
    except ImportError as error:
        raise ValueError(
            f"Reading the folder {folder} needs the package lora-moe-hgd, which is not installed. Install "
            "lora-moe-hgd, or give a dict from sequence name to file or array."
        ) from error
    reading = read_case(
        find_case(Path(folder), task=task), allow_skull=allow_skull, allow_partial=allow_partial
    ).checked()
    for finding in reading.findings:
        warnings.warn(str(finding), stacklevel=2)
    return reading.settled


__all__ = ["BrainTumorSegmentationPipeline"]

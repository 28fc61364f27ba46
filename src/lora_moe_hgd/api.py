"""The shortest way from a case to its segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases.case_files import given_case
from .cases.layouts import find_case
from .inference.results import Case, CaseSegmenter, ResultOptions
from .inference.segmentation import Segmentation
from .model.configuration_lora_moe_hgd import MODALITIES
from .pretrained import DEFAULT_CHECKPOINT


def segment(
    case: str | Path | Mapping[str, Any],
    checkpoint: str | Path = DEFAULT_CHECKPOINT,
    *,
    sequences: Sequence[str] | None = None,
    device: str | None = None,
    base: str | Path | None = None,
    label_scheme: str | None = None,
    mirror: bool = False,
    allow_skull: bool = False,
    allow_partial: bool = False,
) -> Segmentation:
    """Segment the tumour of one case, as `lora-moe-hgd segment` does.

    Args:
        case: Folder of the case, or a dict from `t1`, `t1c`, `t2`, `flair` to a path, nibabel image, MONAI
            `MetaTensor`, array or tensor `(D, H, W)`. Missing sequences are left out or `None`. Arrays without an
            affine are taken to have voxels of 1 mm in RAS order.
        checkpoint: Name of a shipped checkpoint, folder or Hub id, of a network or an adapter.
        sequences: Use only these; all that are there when `None`.
        device: Such as `cpu` or `cuda:0`; a GPU if there is one when `None`.
        base: Folder or Hub id of an adapter's base; where the adapter says when `None`.
        label_scheme: Name of the label numbers, see `model.label_schemes`; `input` takes those of the case's own label
            map, and `None` those of the checkpoint, `brats2023`: 1 core, 2 oedema, 3 enhancing.
        mirror: Average over the case and its mirror image, in twice the time.
        allow_skull: Accept heads with their skull, which are refused otherwise.
        allow_partial: Accept volumes that show a part of a brain, which are refused otherwise.

    Returns:
        `label_map` (nibabel image), `regions` and `probabilities` `(3, D, H, W)` in the order WT, TC, ET,
        `volumes_ml`, `confidence` and `warnings`, on the grid of the first sequence; `save(folder)` writes them.

    Raises:
        ValueError: If the case, the checkpoint or an option cannot be used; the message says why and what to do.
    """
    options = ResultOptions(
        sequences=None if sequences is None else tuple(sequences),
        label_scheme=label_scheme,
        mirror=mirror,
        allow_skull=allow_skull,
        allow_partial=allow_partial,
    )
    return CaseSegmenter(checkpoint, options, device=device, base=base).segment(_found(case))


def example_case() -> Path:
    """Return the folder of the real case that ships with the package: four sequences and the experts' label map.

    Its README.md says where it comes from. No weight and no choice was made with it.
    """
    return Path(__file__).parent / "example" / "BraTS-SSA-00041-000"


def _found(case: str | Path | Mapping[str, Any]) -> Case:
    """The files of the case, or its sequences by name if some of them are in memory.

    Raises:
        ValueError: If no sequence is found, or one is unknown.
    """
    if not isinstance(case, Mapping):
        return find_case(Path(case))
    known = ", ".join(MODALITIES)
    if unknown := sorted(set(map(str, case)) - set(MODALITIES)):
        raise ValueError(f"Unknown sequence {', '.join(unknown)}. The names are {known}.")
    present = {name: source for name, source in case.items() if source is not None}
    if not present:
        raise ValueError(f"No sequence was given. Give at least one of {known}.")
    if all(isinstance(source, str | Path) for source in present.values()):
        return given_case({name: Path(source) for name, source in present.items()})
    return present

"""Definition of the benchmark: its cases, subsets, regions and settings, and digests of its data."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_moe_hgd.cases.case_files import CaseFiles
from lora_moe_hgd.cases.layouts import survey
from lora_moe_hgd.cases.nifti import read_image
from lora_moe_hgd.files import listed, reason_of
from lora_moe_hgd.subsets import EVERY_SUBSET, subset_name

NAME = "fifteen_subsets"
VERSION = 1
FOLDER = Path(__file__).parent

SUBSETS = [subset_name(subset) for subset in EVERY_SUBSET]
REGIONS = ("wt", "tc", "et")
# Files of a case: four sequences and the ground truth.
ROLES = ("t1", "t1c", "t2", "flair", "seg")
CONVENTION, LESION_RULES = "brats", "gli2023"

# Data set and parts of `splits.csv` of each track.
TRACKS = {
    "africa-3": ("brats-africa", ("test3",)),
    "africa": ("brats-africa", ("test", "test3")),
    "brats2021": ("brats2021", ("test",)),
}


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file of this folder."""
    with open(FOLDER / name, newline="") as file:
        return list(csv.DictReader(file))


def cases_of(data: str, parts: Sequence[str]) -> list[str]:
    """Names of the cases of a data set in the given parts of `splits.csv`, such as `fit`."""
    return [row["case"] for row in read_table("splits.csv") if row["data"] == data and row["part"] in parts]


def find(root: Path, names: Iterable[str]) -> dict[str, CaseFiles]:
    """Find the cases with these folder names below `root`, each with its four sequences and its ground truth.

    Raises:
        ValueError: If a case is missing or incomplete, or occurs twice.
    """
    names = list(names)
    found, bad = survey(root)
    cases: dict[str, CaseFiles] = {}
    for case in found:
        name = case.folder.name
        if name in names and name in cases:
            raise ValueError(f"{root} contains {name} twice: {cases[name].folder} and {case.folder}. Remove one.")
        cases[name] = case
    missing = [name for name in names if name not in cases]
    if missing:
        reasons = "".join(f"\n  {finding}" for finding in bad if Path(finding.where).name in missing)
        raise ValueError(f"{root} lacks {len(missing)} of {len(names)} cases: {listed(missing)}.{reasons}")
    for name in names:
        if lacks := [role for role in ROLES if role not in files_of(cases[name])]:
            raise ValueError(f"{cases[name].folder} lacks {', '.join(lacks)}.")
    return {name: cases[name] for name in names}


def files_of(case: CaseFiles) -> dict[str, Path]:
    """Files of a case by role, such as `t1c` or `seg`."""
    return {**case.images, **({} if case.segmentation is None else {"seg": case.segmentation})}


def voxels_digest(path: Path) -> tuple[tuple[int, ...], str]:
    """Shape of a volume, and SHA-256 of its shape and its voxels as float32 in the order of the file.

    Compression, data type and header have no influence, so a file that was compressed again keeps its digest.

    Raises:
        BadInputError: If the file cannot be read.
    """
    # Adding zero makes negative zeros positive.
    voxels = np.ascontiguousarray(np.asarray(read_image(path).image.dataobj, dtype="<f4")) + np.float32(0)
    content = hashlib.sha256(repr(voxels.shape).encode())
    content.update(voxels.tobytes())
    return voxels.shape, content.hexdigest()


def shape_text(shape: Sequence[int]) -> str:
    """Shape as in `digests.csv`, such as 240x240x155."""
    return "x".join(map(str, shape))


def known_digests() -> dict[tuple[str, str], dict[str, str]]:
    """Rows of `digests.csv` by case and role. The digest of a file is empty if its voxels were never compared."""
    return {(row["case"], row["role"]): row for row in read_table("digests.csv")}


def check_data(cases: Mapping[str, CaseFiles]) -> tuple[dict[tuple[str, str], str], int]:
    """Compute the digest of every file of the cases, and count the files that `digests.csv` confirms.

    Raises:
        ValueError: If a file differs from `digests.csv`.
    """
    known = known_digests()
    digests: dict[tuple[str, str], str] = {}
    confirmed = 0
    for name, case in cases.items():
        files = files_of(case)
        for role in ROLES:
            shape, digests[name, role] = voxels_digest(files[role])
            expected = known.get((name, role))
            if expected is None:
                continue
            if shape_text(shape) != expected["shape"]:
                raise ValueError(f"{files[role]} has the shape {shape_text(shape)}, not {expected['shape']}.")
            if expected["sha256"] and digests[name, role] != expected["sha256"]:
                raise ValueError(
                    f"{files[role]} has other voxels than the file of this benchmark: their SHA-256 is "
                    f"{digests[name, role]}, not {expected['sha256']}. Download the file again."
                )
            confirmed += bool(expected["sha256"])
    return digests, confirmed


def data_digest(digests: Mapping[tuple[str, str], str]) -> str:
    """One SHA-256 for all files of the cases."""
    lines = [f"{case} {role} {digest}\n" for (case, role), digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def task_id(subset: str) -> str:
    """Id of a subset's task in `eval.yaml`.

    Example:
        >>> task_id("t1c+flair")
        't1c_flair'
    """
    return subset.replace("+", "_")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run the main function of a script. Invalid input ends the script with a one-line message and exit code 2."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {reason_of(error)}", file=sys.stderr)
        raise SystemExit(2) from error

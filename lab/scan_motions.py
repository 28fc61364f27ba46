"""Known motions of real heads, and how well registration recovers them: `python lab/scan_motions.py FOLDER`.

FOLDER is that of the heads with their skull, `open-ms/skull-on`. Each head's sequences are registered to each other
after one was moved. The truth for a pair is the optimum without a motion. Its distance from the position that the
headers give is printed first: what the patient moved between the sequences, or an error of all registrations alike.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from lora_moe_hgd.model.grids import Volume
from lora_moe_hgd.scans.registration import optimum, register

SEQUENCES = ("t1", "t2", "flair")
# Points of a brain, 70 mm around its centre.
POINTS = 70 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def read(folder: Path, name: str) -> Volume:
    image = nib.load(folder / f"{name}.nii.gz")
    return Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine)


def motion(degrees: tuple[float, float, float], shift: tuple[float, float, float], centre: np.ndarray) -> np.ndarray:
    """Turn about `centre`, then shift, `(4, 4)`."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = centre + shift - matrix[:3, :3] @ centre
    return matrix


def apart(first: np.ndarray, second: np.ndarray, centre: np.ndarray) -> tuple[float, float]:
    """Largest distance over the brain in millimetres, and the angle in degrees, between two motions."""
    points = np.column_stack([POINTS + centre, np.ones(len(POINTS))])
    distance = np.linalg.norm((points @ (first - second).T)[:, :3], axis=1).max()
    between = Rotation.from_matrix((first @ np.linalg.inv(second))[:3, :3])
    return float(distance), float(np.degrees(between.magnitude()))


def main(argv: list[str]) -> None:
    """Print a line for each pair and motion."""
    print("| head | moved to | degrees | mm | error in mm | error in degrees | gain | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for head in sorted(Path(argv[0]).glob("patient*")):
        # The same motions for each head.
        rng = np.random.default_rng(0)
        volumes = {name: read(head, name) for name in SEQUENCES}
        brains = {name: read(head, f"brainmask_{name}").array > 0 for name in SEQUENCES}
        for reference in SEQUENCES:
            for moving in SEQUENCES:
                if reference == moving:
                    continue
                masks = {"brain": brains[reference], "moving_brain": brains[moving]}
                centre = (volumes[reference].affine @ [*np.argwhere(brains[reference]).mean(axis=0), 1])[:3]
                unmoved = optimum(volumes[reference], volumes[moving], **masks)
                truth, pair = unmoved.matrix, f"{head.name} | {moving} to {reference}"
                rest_mm, rest_degrees = apart(truth, np.eye(4), centre)
                gain = f"{unmoved.before:.3f} to {unmoved.after:.3f}"
                print(f"| {pair} | - | - | {rest_mm:.2f} | {rest_degrees:.2f} | {gain} | - |", flush=True)
                sizes = [(5.0, 5.0), (15.0, 15.0), (15.0, 15.0)]
                for largest_turn, largest_shift in sizes:
                    turn, shift = rng.standard_normal((2, 3))
                    degrees = turn / np.linalg.norm(turn) * largest_turn
                    millimetres = shift / np.linalg.norm(shift) * largest_shift
                    moved_by = motion(tuple(degrees), tuple(millimetres), centre)
                    moved = Volume(volumes[moving].array, moved_by @ volumes[moving].affine)
                    started = time.process_time()
                    found = register(volumes[reference], moved, **masks)
                    seconds = time.process_time() - started
                    error_mm, error_degrees = apart(found.matrix @ moved_by, truth, centre)
                    print(
                        f"| {pair} | {largest_turn:.0f} | {largest_shift:.0f} | "
                        f"{error_mm:.2f} | {error_degrees:.2f} | {found.before:.2f} to {found.after:.2f} | "
                        f"{seconds:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main(sys.argv[1:])

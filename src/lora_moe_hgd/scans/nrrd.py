"""Read NRRD images, such as those of 3D Slicer (https://teem.sourceforge.net/nrrd/format.html).

This module reads the header first, so that sizes are checked before any voxel is read, and no file in another
folder is opened. SimpleITK then reads the voxels.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its documentation uses

from ..cases.case_files import CaseFiles, stem_of
from ..cases.layouts import name_of_place
from ..cases.naming import name_files
from ..cases.volume_rules import NRRD, check_place, check_size
from ..model.findings import BadInputError
from ..model.grids import Volume, check_affine

MAX_HEADER_BYTES = 64 * 1024
# NumPy type of each name of a voxel type in NRRD headers.
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
ENCODINGS = ("raw", "gzip", "gz")
# Values of the field `space` that define the orientation of the patient, each in its long and its short form.
SPACES = {
    *("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"),
}


def has_nrrd(folder: Path) -> bool:
    """Whether the folder contains an NRRD file."""
    return folder.is_dir() and any(stem_of(path, NRRD) is not None for path in folder.iterdir())


def find_nrrd_case(folder: Path) -> CaseFiles:
    """Find the case in a folder with NRRD files, which may also contain NIfTI files.

    The rules for the names of NIfTI files also apply to NRRD files.

    Raises:
        BadInputError: If the file names do not show which file is which sequence.
    """
    content = sorted(folder.iterdir())
    # Each NRRD file, by the path that it would have as a NIfTI file.
    own: dict[Path, Path] = {}
    for path in content:
        if (stem := stem_of(path, NRRD)) is None:
            continue
        name = folder / f"{stem}.nii.gz"
        other = name if name in content else own.get(name)
        if other is not None:
            raise BadInputError(
                folder, f"{other.name} and {path.name} may be the same image. Keep only one of these files."
            )
        own[name] = path
    others = [path for path in content if path not in own.values()]
    try:
        named = name_files(folder, sorted([*own, *others]))
    except BadInputError as error:
        message = error.finding.message
        for name, path in own.items():
            message = message.replace(name.name, path.name)
        raise BadInputError(folder, message) from error
    return CaseFiles(
        case_id=name_of_place(folder, folder),
        folder=folder,
        layout="NRRD",
        label_schemes=(),
        images={role: own.get(files[0], files[0]) for role, files in named.roles.items() if role != "seg"},
        segmentation=None,
        left_out=tuple(own.get(path, path) for path in named.left_out),
    )


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD image as float32, with its affine in RAS.

    Raises:
        BadInputError: If the file is damaged, too large or of an unsupported kind, or if its header does not state the
            orientation.
    """
    check_place(path)
    fields = _fields(path)
    _check(path, fields)
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32, "NrrdImageIO")
    except RuntimeError as error:
        raise BadInputError(path, "The NRRD file is damaged or incomplete. Copy or save the file again.") from error
    # SimpleITK gives directions and origin in LPS, whatever the space of the file is.
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    array = np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
    check_affine(path, affine, array.shape)
    return Volume(array, affine)


def _fields(path: Path) -> dict[str, str]:
    """Fields of the header by their name in lower case. Key-value pairs, which may name the patient, are left out."""
    with path.open("rb") as file:
        raw = file.read(MAX_HEADER_BYTES)
    if not raw.startswith(b"NRRD000"):
        raise BadInputError(path, "The file does not begin with an NRRD header. Copy or save the file again.")
    header, blank, _ = raw.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not blank and len(raw) == MAX_HEADER_BYTES:
        raise BadInputError(
            path, f"The NRRD header is longer than {MAX_HEADER_BYTES} bytes. Save the image again with 3D Slicer."
        )
    fields: dict[str, str] = {}
    for line in header.decode("latin-1").split("\n")[1:]:
        name, separator, value = line.partition(": ")
        if not separator or ":=" in name or line.startswith("#"):
            continue
        name = re.sub(r"\s", "", name.lower())
        if name in fields:
            raise BadInputError(
                path, f"The NRRD header gives the field {name} twice. Save the image again with 3D Slicer."
            )
        fields[name] = value.strip()
    return fields


def _check(path: Path, fields: dict[str, str]) -> None:
    """Check the header before any data is read."""
    try:
        shape = tuple(int(edge) for edge in fields["sizes"].split())
        dtype = np.dtype(TYPES[fields["type"].lower()])
        encoding = fields["encoding"].lower()
    except (KeyError, ValueError) as error:
        raise BadInputError(
            path,
            "The NRRD header lacks sizes, type or encoding, or one of these is invalid. Save the image again with 3D "
            "Slicer.",
        ) from error
    directions = fields.get("spacedirections", "")
    if len(shape) != 3 or fields.get("dimension") != "3" or "none" in directions.lower():
        raise BadInputError(
            path, "The file does not contain exactly one volume with three axes. Save each volume as a separate file."
        )
    check_size(path, shape, dtype)
    if encoding not in ENCODINGS:
        raise BadInputError(
            path, f"The encoding {encoding} is not supported. Save the file again with the encoding raw or gzip."
        )
    space = fields.get("space", "").lower()
    if space not in SPACES or not directions or "spaceorigin" not in fields:
        raise BadInputError(
            path,
            "The NRRD header does not state the orientation of the patient: it needs a space such as "
            "left-posterior-superior, with space directions and a space origin. Save the image again with 3D Slicer.",
        )
    _check_data_file(path, fields.get("datafile"))


def _check_data_file(path: Path, name: str | None) -> None:
    """Raise if the voxels are in several files, or in a file outside the folder."""
    if name is None:
        return
    if name.upper().startswith("LIST") or "%" in name:
        raise BadInputError(path, "The voxels are in several files. Save the image as one .nrrd file.")
    # The header may come from Windows or from another system, so check the name by the rules of both.
    places = (PurePosixPath(name), PureWindowsPath(name))
    if any(place.anchor or ".." in place.parts for place in places):
        raise BadInputError(path, "The header names a data file in another folder. Put both files into one folder.")
    check_place(path.parent / name)

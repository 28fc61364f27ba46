"""DICOM files made from images, as scanners write them: any plane, order of slices and direction of cosines."""

from __future__ import annotations

from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

PATIENT = {"PatientName": "Muster^Erika", "PatientID": "HX-4711", "PatientBirthDate": "19610203", "PatientSex": "F"}
# Directions of columns' index, rows' index and slices, as letters of nibabel.
PLANES = {
    "transverse": "LPS",
    "transverse from above": "LPI",
    "sagittal": "PIL",
    "sagittal from the right": "PIR",
    "coronal": "LIP",
    "coronal from the back": "LIA",
    "negative cosines": "RAI",
}
# Echo, repetition and inversion time in milliseconds.
TIMES = {
    "t1": (3.0, 2000.0, 900.0),
    "t1c": (3.0, 2000.0, 900.0),
    "t2": (95.0, 4500.0, None),
    "flair": (110.0, 9000.0, 2500.0),
}
LPS = np.diag([-1.0, -1.0, 1.0])
# Compressions that GDCM writes. The extended and the baseline process of JPEG hold 12 and 8 bits.
COMPRESSIONS = {
    "RLE": gdcm.TransferSyntax.RLELossless,
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG lossless, any predictor": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG baseline": gdcm.TransferSyntax.JPEGBaselineProcess1,
    "JPEG extended": gdcm.TransferSyntax.JPEGExtendedProcess2_4,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000 lossless": gdcm.TransferSyntax.JPEG2000Lossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000,
}
BITS = {"JPEG baseline": 8, "JPEG extended": 12}


def in_plane(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    """The image with its axes in the given order and direction; no voxel moves."""
    change = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    return image.as_reoriented(change)


def study(number: int = 1, **patient: str) -> dict[str, str]:
    """Tags that all series of a study share."""
    uid = generate_uid(entropy_srcs=[f"study {number}", *patient.values()])
    return {**PATIENT, **patient, "StudyInstanceUID": uid, "StudyDate": "20260331", "StudyID": str(number)}


def write_series(
    folder: Path,
    image: nib.Nifti1Image,
    sequence: str,
    *,
    number: int,
    shared: dict[str, str],
    descending: bool = False,
    implicit: bool = False,
    leave_out: tuple[int, ...] = (),
    **tags: object,
) -> list[Path]:
    """Write an image as a series, a file for each slice along its third axis.

    Args:
        folder: Made if it does not exist.
        image: Array axes are columns' index, rows' index and slices.
        sequence: Gives the times.
        number: Number of the series.
        shared: Tags of the study and the patient.
        descending: Number the slices from the last to the first.
        implicit: Write no kinds of values.
        leave_out: Indices of slices that are not written.
        tags: Further tags, or other values; `None` leaves a tag out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = np.asarray(image.dataobj, dtype=np.float32)
    stored = np.clip(np.rint(values * (3000 / max(float(values.max()), 1e-6))), 0, 65535).astype(np.uint16)
    matrix = LPS @ image.affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    cosines = matrix / spacing
    uid = generate_uid(entropy_srcs=[shared["StudyInstanceUID"], str(number)])
    frame = generate_uid(entropy_srcs=[shared["StudyInstanceUID"], "frame"])
    count, paths = stored.shape[2], []
    for index in range(count):
        if index in leave_out:
            continue
        position = LPS @ (image.affine @ [0, 0, index, 1])[:3]
        instance = count - index if descending else index + 1
        header = _header(uid, instance, implicit=implicit)
        echo, repetition, inversion = TIMES[sequence]
        content = {
            **shared,
            "Modality": "MR",
            "Manufacturer": "Phantom",
            "SeriesInstanceUID": uid,
            "SeriesNumber": number,
            "SeriesDescription": f"series of {sequence}",
            "FrameOfReferenceUID": frame,
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
            "ScanningSequence": "SE",
            "SequenceVariant": "SK",
            "MRAcquisitionType": "2D",
            "EchoTime": echo,
            "RepetitionTime": repetition,
            "InversionTime": inversion,
            "ContrastBolusAgent": "Gadobutrol" if sequence == "t1c" else None,
            "InstanceNumber": instance,
            "PixelSpacing": [float(f"{spacing[1]:.6f}"), float(f"{spacing[0]:.6f}")],
            "SliceThickness": float(f"{spacing[2]:.6f}"),
            "SpacingBetweenSlices": float(f"{spacing[2]:.6f}"),
            "ImageOrientationPatient": [float(f"{value:.10f}") for value in (*cosines[:, 0], *cosines[:, 1])],
            "ImagePositionPatient": [float(f"{value:.6f}") for value in position],
            "Rows": stored.shape[1],
            "Columns": stored.shape[0],
            **tags,
        }
        for name, value in content.items():
            if value is not None:
                setattr(header, name, value)
        # A private block, as every maker writes.
        header.private_block(0x0029, "PHANTOM MAKER", create=True).add_new(0x10, "LO", str(shared["PatientName"]))
        header.PixelData = np.ascontiguousarray(stored[:, :, index].T).tobytes()
        path = folder / f"IM{number:02d}{instance:04d}"
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    folder: Path, image: nib.Nifti1Image, sequence: str, *, number: int, shared: dict[str, str]
) -> None:
    """Write an image as one enhanced multi-frame file, slices along its third axis."""
    plain = [pydicom.dcmread(path) for path in write_series(folder, image, sequence, number=number, shared=shared)]
    first = plain[0]
    whole = FileDataset("", first, file_meta=first.file_meta, preamble=b"\0" * 128)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    organisation = generate_uid(entropy_srcs=[first.SeriesInstanceUID, "dimension"])
    whole.DimensionOrganizationSequence = [_items(DimensionOrganizationUID=organisation)]
    whole.DimensionIndexSequence = [
        _items(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=pydicom.tag.Tag("InStackPositionNumber"),
            FunctionalGroupPointer=pydicom.tag.Tag("FrameContentSequence"),
        )
    ]
    whole.SharedFunctionalGroupsSequence = [
        _items(
            PlaneOrientationSequence=[_items(ImageOrientationPatient=first.ImageOrientationPatient)],
            PixelMeasuresSequence=[
                _items(
                    PixelSpacing=first.PixelSpacing,
                    SliceThickness=first.SliceThickness,
                    SpacingBetweenSlices=first.SpacingBetweenSlices,
                )
            ],
            MREchoSequence=[_items(EffectiveEchoTime=float(first.EchoTime))],
            MRTimingAndRelatedParametersSequence=[_items(RepetitionTime=first.RepetitionTime, FlipAngle=90.0)],
            MRModifierSequence=[_items(InversionTimes=float(first.get("InversionTime") or 0) or None)],
        )
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        _items(
            PlanePositionSequence=[_items(ImagePositionPatient=part.ImagePositionPatient)],
            FrameContentSequence=[
                _items(StackID="1", InStackPositionNumber=index, DimensionIndexValues=[index], TemporalPositionIndex=1)
            ],
        )
        for index, part in enumerate(plain, start=1)
    ]
    whole.NumberOfFrames = len(plain)
    whole.PixelData = b"".join(part.PixelData for part in plain)
    for name in (
        *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"),
        *("SpacingBetweenSlices", "EchoTime", "RepetitionTime", "InversionTime"),
    ):
        if name in whole:
            delattr(whole, name)
    for path in folder.glob(f"IM{number:02d}*"):
        path.unlink()
    whole.save_as(folder / f"EN{number:02d}", enforce_file_format=True)


def compress(path: Path, name: str) -> None:
    """Compress the pixels of a file in a way of `COMPRESSIONS`, with fewer levels where that holds fewer bits."""
    if name in BITS:
        header = pydicom.dcmread(path)
        bits = BITS[name]
        kind = np.uint8 if bits == 8 else np.uint16
        levels = np.rint(header.pixel_array / 4095.0 * (2**bits - 1)).astype(kind)
        header.BitsAllocated, header.BitsStored, header.HighBit = 8 * levels.itemsize, bits, bits - 1
        header.PixelData = levels.tobytes()
        header["PixelData"].VR = "OB" if bits == 8 else "OW"
        header.save_as(path)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(COMPRESSIONS[name]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def swap_bytes(path: Path) -> None:
    """Write a file again with the largest byte first."""
    header = pydicom.dcmread(path)
    header.PixelData = header.pixel_array.astype(">u2").tobytes()
    header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=False, force_encoding=True)


def deflate(path: Path) -> None:
    """Deflate a file as a whole."""
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path)


def write_media(folder: Path, paths: list[Path]) -> Path:
    """Write files as a medium holds them, below a DICOMDIR; return its path."""
    media = FileSet()
    for path in paths:
        media.add(path)
    media.write(folder)
    return folder / "DICOMDIR"


def _items(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _header(series: str, instance: int, *, implicit: bool) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(instance)])
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.AccessionNumber = "A-99"
    header.ReferringPhysicianName = "Zzyzx^Quark"
    header.StudyTime = "101500"
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.PatientPosition = "HFS"
    return header


def ball(
    shape: tuple[int, int, int] = (20, 24, 16), spacing: tuple[float, float, float] = (6.0, 5.0, 8.0)
) -> nib.Nifti1Image:
    """A head of about 100 mm: a bright ball with a brighter spot at the front left, so that flips show.

    It gets darker from right to left: an image with few values is a label map.
    """
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * np.array(spacing) * (np.array(shape) - 1) + [3.0, -5.0, 11.0]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = grid @ affine[:3, :3] + affine[:3, 3]
    values = 400.0 * (np.linalg.norm(place - [3.0, -5.0, 11.0], axis=-1) < 48)
    values += 600.0 * (np.linalg.norm(place - [-17.0, 15.0, 21.0], axis=-1) < 14)
    values *= 1 + place[..., 0] / 1000
    return nib.Nifti1Image(values.astype(np.float32), affine)


def turned(image: nib.Nifti1Image, degrees: float = 17.0) -> nib.Nifti1Image:
    """The image as an oblique scan would have it: its box is turned about two axes."""
    angle = np.radians(degrees)
    sine, cosine = np.sin(angle), np.cos(angle)
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x
    return nib.Nifti1Image(np.asarray(image.dataobj), matrix @ image.affine)

"""Recognise the MRI sequence of a series by its headers.

Echo, repetition and inversion times decide, because descriptions are in any language and often wrong. The ranges of
these times are textbook values for 1 to 3 T. The description decides if the headers lack times. The description also
decides whether a series is a map or an angiography, or shows a contrast agent, because the times cannot show this.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..files import counted
from ..sequence_names import role_of
from .series import Acquisition, Series

# A stack with fewer slices, or a shorter stack, does not show the complete brain.
LEAST_SLICES = 10
LEAST_COVERAGE_MM = 70.0
NO_AGENT = {"", "no", "none", "0", "n", "without", "n/a", "na", "nil", "ohne", "nein", "non", "sans"}


@dataclass(frozen=True)
class Times:
    """A kind of image, and the ranges of times by which this kind is recognised. `TABLE` lists all kinds.

    Attributes:
        name: Kind of image: `t1`, `t2`, `flair`, or the name of another kind, whose series are not used.
        why: Reason in words. The list of series shows this reason.
        echo_ms: Smallest and largest echo time, in milliseconds.
        repetition_ms: Smallest and largest repetition time, in milliseconds.
        inversion_ms: Smallest and largest inversion time, in milliseconds; `None` if the header must have no
            inversion time.
    """

    name: str
    why: str
    echo_ms: tuple[float, float]
    repetition_ms: tuple[float, float]
    inversion_ms: tuple[float, float] | None

    def fits(self, found: Acquisition) -> bool:
        """Whether the times of a series are in the ranges. An unknown repetition time fits any range."""
        if found.echo_ms is None or not self.echo_ms[0] <= found.echo_ms <= self.echo_ms[1]:
            return False
        repetition = found.repetition_ms
        if repetition is not None and not self.repetition_ms[0] <= repetition <= self.repetition_ms[1]:
            return False
        if self.inversion_ms is None or found.inversion_ms is None:
            return self.inversion_ms is None and found.inversion_ms is None
        return self.inversion_ms[0] <= found.inversion_ms <= self.inversion_ms[1]


# The first row that fits is used. For fast 3-D sequences, the repetition time in the header is that of a single echo
# or of a complete echo train, depending on the maker of the scanner.
TABLE = (
    Times("flair", "long inversion and echo times", (70, 800), (3500, 20_000), (1500, 3000)),
    Times("stir", "a short inversion time suppresses fat", (0, 800), (1500, 20_000), (80, 300)),
    Times("t1", "a gradient echo after an inversion", (0, 12), (0, 3500), (400, 1400)),
    Times("t1", "T1 with an inversion", (0, 35), (1000, 4000), (400, 1400)),
    Times("t2", "a long echo time", (70, 800), (1500, 20_000), None),
    Times("proton density", "long repetition and short echo times", (0, 45), (1500, 20_000), None),
    Times("t1", "short repetition and echo times", (0, 30), (0, 1200), None),
)
TIMES_OF = {"t1": "T1", "t2": "T2", "flair": "FLAIR"}

# Values of the image type (DICOM tag 0008,0008), by the kind of image that they mean.
IMAGE_TYPES = {
    "localiser": {"LOCALIZER", "SCOUT"},
    "diffusion": {"DIFFUSION", "TRACEW", "TRACE", "ADC", "FA", "TENSOR", "EXPONENTIAL", "DWI"},
    "perfusion": {"PERFUSION", "PERFUSION_ASL", "ASL", "TTP", "CBF", "CBV", "MTT", "TMAX", "RCBV", "RCBF"},
    "susceptibility": {"SWI", "MNIP", "SWI_MINIP"},
    "phase": {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "PCA"},
    "angiography": {"TOF", "MRA", "ANGIO", "FLOW_ENCODED"},
    "projection": {"PROJECTION IMAGE", "MIP", "MINIP", "MIN IP", "MAX IP", "VOLUME RENDERING", "VRT"},
    "subtraction": {"SUBTRACTION", "SUB"},
    "screenshot": {"SCREEN SAVE", "SCREENSHOT"},
    "map": {"T1 MAP", "T2 MAP", "T1_MAP", "T2_MAP", "R1", "R2", "ERROR", "FIELD_MAP", "B0 MAP"},
}


@dataclass(frozen=True)
class Recognised:
    """The sequence that a series was recognised as, and the reason.

    Attributes:
        sequence: `t1`, `t1c`, `t2` or `flair`; `None` if the series is left out.
        why: Reason for the decision, in a few words.
    """

    sequence: str | None
    why: str


def recognise(series: Series) -> Recognised:
    """Find the sequence of a series, or the reason why it is left out."""
    found = series.acquisition
    left_out = _left_out(series)
    if left_out:
        return Recognised(None, left_out)
    described = role_of(found.description) if found.description else None
    timed = next((row for row in TABLE if row.fits(found)), None)
    if timed is not None and timed.name not in TIMES_OF:
        return Recognised(None, f"{timed.name}: {timed.why} ({_times(found)})")
    if timed is not None:
        return _with_contrast(timed.name, f"{timed.why} ({_times(found)})", found, described)
    if described == "other":
        return Recognised(None, "left out because of its description")
    if found.echo_ms is not None and found.repetition_ms is not None:
        return Recognised(None, f"no sequence has these times ({_times(found)})")
    if described in ("t1", "t1c", "t2", "flair"):
        return Recognised(described, "recognised by its description, because the headers lack times")
    return Recognised(None, "the headers lack times, and the description names no sequence")


def _left_out(series: Series) -> str | None:
    """Reason to leave out a series whatever its times are; `None` if there is no such reason."""
    found = series.acquisition
    if not series.shape[2]:
        return "no image"
    if found.is_secondary:
        return "secondary capture"
    if found.modality != "MR":
        return f"{found.modality or 'unknown modality'}, not MR"
    for kind, words in IMAGE_TYPES.items():
        if words & set(found.image_type):
            return kind
    if found.diffusion:
        return "diffusion"
    if found.angiography:
        return "angiography"
    if "EP" in found.scanning:
        return "echo planar, as in diffusion and perfusion"
    if series.plane == "none":
        return "no orientation"
    if series.shape[2] < LEAST_SLICES:
        return f"{counted(series.shape[2], 'slice')} only"
    if series.coverage_mm < LEAST_COVERAGE_MM:
        return f"covers {series.coverage_mm:.0f} mm only"
    if series.volumes > 1:
        return f"{series.volumes} images at each slice position, as in perfusion"
    if series.cut_off:
        return f"{series.cut_off} of {counted(len(series.files), 'file')} cut off"
    if found.description and role_of(found.description) == "other":
        return "left out because of its description"
    return None


def _with_contrast(name: str, why: str, found: Acquisition, described: str | None) -> Recognised:
    """Change T1 to T1c if the header names a contrast agent, or if the description says T1c."""
    agent = found.agent.strip().lower() not in NO_AGENT
    if name == "t1" and (agent or described == "t1c"):
        source = "the header names a contrast agent" if agent else "the description says T1c"
        return Recognised("t1c", f"{why}; {source}")
    if described in ("t1", "t1c", "t2", "flair") and described.rstrip("c") != name:
        return Recognised(name, f"{why}; its description says {described}")
    return Recognised(name, why)


def _times(found: Acquisition) -> str:
    values = (("TR", found.repetition_ms), ("TE", found.echo_ms), ("TI", found.inversion_ms))
    return ", ".join(f"{name} {value:.4g} ms" for name, value in values if value is not None)

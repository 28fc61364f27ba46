"""Write the results page of the benchmark from the rows and the published scores.

`python benchmarks/fifteen_subsets/table.py` reads `rows/*.json`, `published_cases.csv` and `published.csv`, and writes
`RESULTS.md`. `--rows FILE...` reads other rows, and `--out-path FILE` writes another page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from definition import FOLDER, NAME, REGIONS, SUBSETS, TRACKS, VERSION, cases_of, read_table, run

from lora_moe_hgd.files import replacing

ALL = SUBSETS[-1]
NOTHING = "-"
METRICS_BESIDE = ("lesion_dice", "hd95_mm", "lesion_hd95_mm")
PER_CASE_SOURCE = "https://github.com/Abdelali-kamil/brats2021"
# Name and training data of each network of `published_cases.csv`.
PER_CASE = {
    "nnunet1000": ("nnU-Net", "1000 cases of BraTS 2021"),
    "segresnet1000": ("SegResNet", "1000 cases of BraTS 2021"),
    # In the cross-validation, each case was scored by a network that was trained on other cases of the track.
    "nnunet_plus64": ("nnU-Net, adapted", "the same and 64 gliomas, cross-validated (breaks rule 1)"),
}
ABOUT = {
    "africa-3": "three gliomas of BraTS-Africa. Three cases are few: the model cards show how wide the intervals are.",
    "africa": "75 gliomas of BraTS-Africa, all but the 20 fit cases.",
    "brats2021": "125 cases of BraTS 2021.",
}
HEAD = """# Results

`python benchmarks/fifteen_subsets/table.py` writes this page. [README.md](README.md) defines the benchmark. Each cell
is the mean Dice of WT / TC / ET over the cases. `-` means that there is no score: a network that needs all four
sequences has a score for only one of the 15 subsets.

We did not run the networks of **published** columns. The authors of these networks scored them with their own code.

**Trained from scratch alike, for half an hour of one processor thread, the network of this package is ahead of
SegResNet, DynUNet, UNETR and SwinUNETR. At equal steps, DynUNet and SwinUNETR are ahead of it**:
[docs/peers.md](../../docs/peers.md).
These three networks have no column here, because nobody has trained them to the end for a row of this benchmark.
"""
OTHER = """## Published, on other data

This table shows means over the 15 subsets, as the authors state them. **We did not run these networks, and the scores
are on other cases**, with other splits, other rules for empty regions and, in some tables, other post-processing. Do
not compare these scores with the tables above or across data sets. `second hand` means that the number was read in
another paper.
"""


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read rows from files that `row.py` wrote.

    Raises:
        ValueError: If a file is not a row of this version, or two rows of a track have the same name or different
            data.
    """
    rows = []
    for path in sorted(paths):
        row = json.loads(path.read_text())
        if (row.get("benchmark"), row.get("version")) != (NAME, VERSION):
            raise ValueError(f"{path} is not a row of version {VERSION} of {NAME}. Make the row again with row.py.")
        for other in rows:
            if other["track"] == row["track"] and other["name"] == row["name"]:
                raise ValueError(f"{path} has the name {row['name']}, like another row. Rename one of the rows.")
            if other["track"] == row["track"] and other["data_sha256"] != row["data_sha256"]:
                raise ValueError(
                    f"{path} was made with other data than {other['name']}. Make both rows with the same files."
                )
        rows.append(row)
    return rows


def published_rows(track: str) -> list[dict[str, Any]]:
    """Published scores on the cases of a track, in the form of rows."""
    rows = [
        _published(row, {row["subset"]: [float(row[region]) for region in REGIONS]})
        for row in read_table("published.csv")
        if row["data"] == track
    ]
    cases = cases_of(*TRACKS[track])
    by_case = {row["case"]: row for row in read_table("published_cases.csv")}
    if set(cases) == set(by_case):
        for key, (name, trained_on) in PER_CASE.items():
            values = [mean(float(by_case[case][f"{key}_{region}"]) for case in cases) for region in REGIONS]
            about = {"name": name, "trained_on": trained_on, "source": PER_CASE_SOURCE}
            rows.append(_published(about, {ALL: values}))
    return rows


def _published(about: Mapping[str, str], dice: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    scores = {subset: dict(zip(REGIONS, values, strict=True)) for subset, values in dice.items()}
    return {**{key: about[key] for key in ("name", "trained_on", "source")}, "scores": {"dice": scores}}


def cell(values: Mapping[str, float | None] | None) -> str:
    """Cell of a table: WT / TC / ET with three decimals."""
    if values is None:
        return NOTHING
    return " / ".join(NOTHING if values[name] is None else f"{values[name]:.3f}" for name in REGIONS)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))


def track_section(track: str, rows: Sequence[dict[str, Any]]) -> str:
    """Tables of one track: Dice by subset, other metrics, and the origin of each column."""
    own = [row for row in rows if row["track"] == track]
    published = published_rows(track)
    columns = [*own, *published]
    heads = [row["name"] if "track" in row else f"{row['name']} (published)" for row in columns]
    lines = [
        [
            "mean over the 15 subsets" if name == "mean" else name,
            *(cell(row["scores"]["dice"].get(name)) for row in columns),
        ]
        for name in (*SUBSETS, "mean")
        # Without rows of our own, show only the subsets with a published score.
        if own or any(name in row["scores"]["dice"] for row in published)
    ]
    parts = [f"## Track {track}", f"On {ABOUT[track]}"]
    if not own:
        parts[1] += " There is no row of the 15 subsets yet."
    if columns:
        parts.append(markdown(["sequences", *heads], lines))
    if own:
        parts += [
            "Other metrics, means over the 15 subsets and the cases: lesion-wise Dice, HD95 in mm (a missed region "
            "counts 373.13 mm), lesion-wise HD95 in mm (a missed or false lesion counts 374 mm).",
            markdown(
                ["row", "lesion-wise Dice", "HD95", "lesion-wise HD95"],
                [
                    [row["name"], *(cell(row["scores"][key]["mean"]) for key in METRICS_BESIDE)]
                    for row in own
                    if row["scores"]["dice"]["mean"]
                ],
            ),
        ]
    origin = [
        [
            row["name"],
            "this project",
            row["trained_on"],
            f"{row['files_confirmed']} of {row['files']} files confirmed, `{row['data_sha256'][:12]}`",
            f"`{(row['checkpoint_sha256'] or 'predictions')[:12]}`, lora-moe-hgd {row['versions']['lora-moe-hgd']}, "
            f"{row['date']}",
        ]
        for row in own
    ]
    origin += [
        [row["name"], f"published, [source]({row['source']})", row["trained_on"], "the authors' copy", NOTHING]
        for row in published
    ]
    if origin:
        parts.append(markdown(["row", "scored by", "trained on", "data", "weights, version, date"], origin))
    return "\n\n".join(parts)


def other_section() -> str:
    """Section with the table of the published means on other data."""
    lines = [
        [
            row["data"],
            row["name"],
            *(f"{float(row[region]):.3f}" for region in REGIONS),
            f"[{row['read']}]({row['source']})",
        ]
        for row in read_table("published.csv")
        if row["data"] not in TRACKS
    ]
    return f"{OTHER}\n{markdown(['data', 'network', 'WT', 'TC', 'ET', 'read'], lines)}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The results page."""
    return "\n".join([HEAD, *(f"{track_section(track, rows)}\n" for track in TRACKS), other_section()]) + "\n"


def main(argv: Sequence[str]) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, nargs="+", help="files that row.py wrote (default: the files in rows/)")
    parser.add_argument(
        "--out-path", type=Path, default=FOLDER / "RESULTS.md", help="results page to write (default: RESULTS.md)"
    )
    args = parser.parse_args(argv)
    text = page(read_rows(args.rows or (FOLDER / "rows").glob("*.json")))
    with replacing(args.out_path) as scratch:
        scratch.write_text(text)
    print(args.out_path)


if __name__ == "__main__":
    run(main)

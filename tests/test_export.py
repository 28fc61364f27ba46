"""Exported networks: equal to their source in every subset, and a program that segments as the package does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small import random_volumes, small_network
from small_runs import shipping

import lora_moe_hgd as lmh
from lora_moe_hgd.cases.layouts import find_case
from lora_moe_hgd.export import run as program
from lora_moe_hgd.export.command import RUN, export, preprocessing
from lora_moe_hgd.export.graph import check_graph
from lora_moe_hgd.masks import dice
from lora_moe_hgd.model.image_processing_lora_moe_hgd import LoraMoeHgdImageProcessor
from lora_moe_hgd.model.task import Task, make_task
from lora_moe_hgd_cli import run

FILES = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}


class Session:
    """Stands for onnxruntime, and runs a network of PyTorch."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def run(self, names: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [self.network(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return small_network(seed=3)


def settings_of(**overrides) -> dict:
    return preprocessing(LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 3.0, 5.0), least_part=0.1, **overrides))


def by_the_package(
    network: torch.nn.Module, images: Mapping[str, nib.Nifti1Image], settings: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The label map, and the distance of the voxel's probabilities from 0.5, where rounding decides."""
    processor = LoraMoeHgdImageProcessor(
        target_spacing_mm=settings["target_spacing_mm"], least_part=settings["least_part"]
    )
    inputs = processor(images)
    logits = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
    ((_, probabilities),) = processor.post_process_regions(logits, inputs["geometry"])
    (labels,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
    return labels, np.abs(probabilities - 0.5).min(axis=0)


@pytest.mark.parametrize("sequences", [("t1", "t1c", "t2", "flair"), ("t2",)], ids=len)
@pytest.mark.parametrize("turned", [False, True])
def test_the_program_segments_as_the_package_does(
    dummy_root: Path, network: torch.nn.Module, sequences: tuple[str, ...], turned: bool
) -> None:
    images = {name: program.read(dummy_root / f"case_000/{FILES[name]}.nii.gz") for name in sequences}
    if turned:
        orientation = nib.orientations.axcodes2ornt("PIL")
        moved = nib.orientations.ornt_transform(nib.io_orientation(images[sequences[0]].affine), orientation)
        images = {name: image.as_reoriented(moved) for name, image in images.items()}
    settings = settings_of()
    expected, distance = by_the_package(network, images, settings)
    found = program.segment(images, Session(network), settings)
    assert len(np.unique(expected)) > 2
    assert np.array_equal(found.affine, images[sequences[0]].affine)
    assert np.array_equal(np.asarray(found.dataobj)[distance > 1e-4], expected[distance > 1e-4])
    assert np.mean(distance <= 1e-4) < 1e-3


def test_the_program_needs_four_packages_and_fits_on_three_pages() -> None:
    source = RUN.read_text()
    assert len(source.splitlines()) < 150
    imported = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    top = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert top == {"numpy", "nibabel", "scipy", "onnxruntime"}


@pytest.mark.parametrize(
    "name", ["sub-01_ce-gadolinium_T1w", "flair_to_t1", "ax_t2_flair", "T1_post_t1"], ids=lambda name: name
)
def test_the_program_refuses_names_that_may_mean_another_sequence(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.nii.gz").touch()
    with pytest.raises(ValueError, match="not clear which sequence"):
        program.find(tmp_path, settings_of())


def test_the_program_finds_the_files_that_the_package_finds(dummy_root: Path) -> None:
    for folder in (dummy_root / "case_000", lmh.example_case()):
        assert program.find(folder, settings_of()) == find_case(folder).images


def spoiled(kind: str, array: np.ndarray) -> np.ndarray:
    brain = array != 0
    if kind == "NaN":
        array[tuple(np.argwhere(brain)[0])] = np.nan
    if kind == "background":
        array[~brain] = -1
    if kind == "labels":
        array = np.digitize(array, [1, 200, 400]).astype(np.float32)
    if kind == "head":
        array[2:-2, 2:-2, 2:-2] = np.random.default_rng(0).uniform(50, 90, array[2:-2, 2:-2, 2:-2].shape)
    if kind == "part":
        array[: array.shape[0] * 3 // 4] = 0
    return array[..., None].repeat(2, axis=3) if kind == "four axes" else array


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("NaN", "NaN or infinite"),
        ("background", "a corner of the image is not zero"),
        ("labels", "too few different values for an image"),
        ("head", "litres of tissue cannot be a brain"),
        ("part", "litres of tissue cannot be a brain"),
        ("four axes", "must be one 3-D volume"),
    ],
)
def test_the_program_refuses_what_the_package_would_repair_or_refuse(
    dummy_root: Path, tmp_path: Path, kind: str, rule: str
) -> None:
    image = nib.load(dummy_root / "case_000/T1.nii.gz")
    array = spoiled(kind, image.get_fdata(dtype=np.float32).copy())
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "T1.nii.gz")
    with pytest.raises(ValueError, match=rule):
        program.read(tmp_path / "T1.nii.gz")


def test_the_program_refuses_sequences_on_two_grids(dummy_root: Path, network: torch.nn.Module) -> None:
    images = {name: program.read(dummy_root / f"case_000/{FILES[name]}.nii.gz") for name in ("t1", "t2")}
    shifted = images["t2"].affine.copy()
    shifted[0, 3] += 3
    images["t2"] = nib.Nifti1Image(images["t2"].get_fdata(dtype=np.float32), shifted)
    with pytest.raises(ValueError, match="t2 has another grid"):
        program.segment(images, Session(network), settings_of())


def own_task(regions: dict[str, list[int]]) -> Task:
    sequences = {"dwi": ["dwi", "b1000"], "flair": []}
    return make_task({"name": "own", "target": "lesion", "sequences": sequences, "regions": regions}, where="test")


def test_a_task_of_ones_own_is_segmented_as_the_package_does(dummy_root: Path, tmp_path: Path) -> None:
    task = own_task({"outer": [1, 2], "beside": [3, 4], "inner": [2]})
    processor = LoraMoeHgdImageProcessor(
        modalities=task.modalities, task=task.to_dict(), target_spacing_mm=(4.0, 4.0, 4.0), least_part=0.1
    )
    settings = json.loads(json.dumps(preprocessing(processor)))
    for name, source in {"case_b1000": "T2", "case_flair": "FLAIR", "case_t1": "T1"}.items():
        (tmp_path / f"{name}.nii.gz").symlink_to(dummy_root / f"case_000/{source}.nii.gz")
    images = {name: program.read(path) for name, path in program.find(tmp_path, settings).items()}
    assert images.keys() == {"dwi", "flair"}
    network = small_network(seed=3, modalities=task.modalities, regions=task.regions)
    inputs = processor(images)
    logits = network.segment_volume(inputs["pixel_values"], inputs["modality_mask"])
    (expected,) = processor.post_process_semantic_segmentation(logits, inputs["geometry"])
    found = np.asarray(program.segment(images, Session(network), settings).dataobj)
    assert len(np.unique(expected)) > 2
    assert np.mean(found != expected) < 1e-5


def test_regions_that_overlap_are_refused_before_the_export(tmp_path: Path) -> None:
    task = own_task({"first": [1, 2], "second": [3, 2]})
    processor = LoraMoeHgdImageProcessor(modalities=task.modalities, task=task.to_dict())
    processor.save_pretrained(tmp_path / "own")
    small_network(modalities=task.modalities, regions=task.regions).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"Label 2 of .* is the overlap of two regions, of which neither"):
        export(tmp_path / "own", tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["one subset", "NaN"])
def test_a_graph_that_differs_from_its_network_is_refused(network: torch.nn.Module, fault: str) -> None:
    def faulty(pixel_values: torch.Tensor, modality_mask: torch.Tensor) -> torch.Tensor:
        if fault == "NaN":
            return network(pixel_values=pixel_values * modality_mask[..., None, None, None]).logits
        logits = network(pixel_values=pixel_values, modality_mask=modality_mask).logits
        return logits + 0.01 * (modality_mask.sum(dim=1) == 1)[:, None, None, None, None]

    assert check_graph(lambda values, mask: network(pixel_values=values, modality_mask=mask).logits, network) == 0
    with pytest.raises(ValueError, match="differs from the checkpoint"):
        check_graph(faulty, network)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_an_adapter_is_merged_and_exported_as_one_graph_for_all_subsets(
    tmp_path: Path, small_weights: Path, form: str, capsys
) -> None:
    # The command compares every subset with the checkpoint, with NaN in absent channels.
    with shipping(small_weights):
        run("export", ["--checkpoint", "glioma", "--out-path", str(tmp_path / "out"), "--format", form])
        source, _ = lmh.load_checkpoint("glioma")
    assert "Its logits differ from those of the checkpoint" in capsys.readouterr().out
    names = (
        {"preprocessing.json", "network.pt2"} if form == "torch" else {"preprocessing.json", "network.onnx", "run.py"}
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out/preprocessing.json").read_text())["checkpoint"] == "glioma"
    if form == "torch":
        volumes, mask = random_volumes(3, (48, 32, 80)), torch.tensor([[False, True, True, False]] * 3)
        graph = torch.export.load(tmp_path / "out/network.pt2").module()
        with torch.no_grad():
            torch.testing.assert_close(graph(volumes, mask), source(volumes, mask).logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_exported_program_segments_a_real_case_as_the_package_does(tmp_path: Path) -> None:
    run("export", ["--checkpoint", "glioma", "--out-path", str(tmp_path / "out"), "--format", "onnx"])
    for sequences in (("t1", "t1c", "t2", "flair"), ("t1c", "flair")):
        expected = lmh.segment(lmh.example_case(), sequences=sequences, device="cpu")
        files = find_case(lmh.example_case()).images
        given = [word for name in sequences for word in (f"--{name}", str(files[name]))]
        # Isolated, so that nothing of this repository is on the path.
        words = [sys.executable, "-I", str(tmp_path / "out/run.py"), str(tmp_path / "seg.nii.gz"), *given]
        subprocess.run(words, check=True, timeout=600, cwd=tmp_path)
        found = nib.load(tmp_path / "seg.nii.gz")
        assert np.allclose(found.affine, expected.label_map.affine)
        for region, labels in zip(expected.regions, ((1, 2, 3), (1, 3), (3,)), strict=True):
            assert dice(np.isin(np.asarray(found.dataobj), labels), region) >= 0.999

"""The borders inside the package, its console script, and its checkpoint names."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from packaging.requirements import Requirement

import lora_moe_hgd
from lora_moe_hgd import load_checkpoint, loading, pretrained_path
from lora_moe_hgd.loading import base_name, checkpoint_folder, checkpoint_task
from lora_moe_hgd.pretrained import shipped_names
from lora_moe_hgd_cli import COMMANDS, main, run

PACKAGE = Path(lora_moe_hgd.__file__).parent
# Each part may import itself and what stands before it.
ORDER = [
    "model",
    "task_files",
    "files",
    "sequence_names",
    "masks",
    "fingerprints",
    "processes",
    "pretrained",
    "subsets",
    "splits",
    "pictures",
    "arguments",
    "loading",
    "info",
    "cases",
    "phantoms",
    "scans",
    "inference",
    "export",
    "evaluation",
    "adapters",
    "training",
    "hub",
    "api",
    "app",
    "completion",
]
ALLOWED_IN_MODEL = {"numpy", "torch", "transformers", "huggingface_hub", "tqdm"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """Level and module of each import outside `try`, where a missing package is allowed for."""
    tree = ast.parse(path.read_text())
    tried = {id(child) for node in ast.walk(tree) if isinstance(node, ast.Try) for child in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in tried:
            continue
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
        elif isinstance(node, ast.Import):
            found.extend((0, alias.name) for alias in node.names)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    depth = len(path.relative_to(PACKAGE).parts)
    for level, module in imports(path):
        if level == depth:
            assert ORDER.index(module.split(".")[0]) <= ORDER.index(part), f"{part} imports {module}"
        assert level <= depth


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=lambda path: path.stem)
def test_the_hub_folder_imports_siblings_and_its_few_packages_only(path: Path) -> None:
    for level, module in imports(path):
        if level:
            assert level == 1
            assert (PACKAGE / "model" / f"{module}.py").is_file()
        else:
            top = module.split(".")[0]
            assert top in ALLOWED_IN_MODEL or top in sys.stdlib_module_names, module


def test_nox_tests_the_floor_that_the_package_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nox")
    monkeypatch.syspath_prepend(str(PACKAGE.parents[1]))
    noxfile = importlib.import_module("noxfile")
    monkeypatch.chdir(PACKAGE.parents[1])
    requirements = [Requirement(text) for text in metadata.requires("lora-moe-hgd") or []]
    for pin in noxfile.floors():
        name, version = pin.split("==")
        (required,) = [requirement for requirement in requirements if requirement.name == name]
        assert f">={version}" in str(required.specifier).split(",")


@pytest.mark.parametrize(
    ("words", "shown"),
    [(["--help"], "usage: lora-moe-hgd COMMAND"), (["segment"], "lora-moe-hgd segment --help lists all options.")],
    ids=["help", "segment without arguments"],
)
def test_what_needs_no_network_waits_for_no_heavy_package(words: list[str], shown: str) -> None:
    code = f"import sys, lora_moe_hgd_cli as cli; sys.argv[1:] = {words}\ntry: cli.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'numpy', 'lora_moe_hgd'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert shown in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_explains_itself(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert capsys.readouterr().out.startswith(f"usage: lora-moe-hgd {command}")


def test_an_unknown_subcommand_lists_the_known_ones() -> None:
    script = Path(sys.executable).with_name("lora-moe-hgd")
    shown = subprocess.run([script, "sgement"], capture_output=True, text=True, check=False, timeout=120)
    assert shown.returncode == 2
    assert "There is no command 'sgement'" in shown.stderr
    assert all(command in shown.stderr for command in COMMANDS)


def test_the_shipped_checkpoint_is_safetensors_of_at_most_sixteen_megabytes() -> None:
    files = {path.name: path.stat().st_size for path in pretrained_path("tiny").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(files.values()) <= 16e6


def test_a_checkpoint_that_is_not_shipped_lists_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"No shipped checkpoint is named 'huge'. The names are: .*tiny"):
        pretrained_path("huge")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("weights.pt", "Pickled files"),
        ("missing.pt", "There is no checkpoint folder missing"),
        ("/nowhere/best", "There is no checkpoint folder /nowhere/best"),
        ("a/b/c", "There is no checkpoint .* shipped name .*tiny.* or a Hub id"),
        ("tinny", "There is no checkpoint .* shipped name .*tiny.* or a Hub id"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=rule):
        checkpoint_folder(name)


def test_an_adapter_names_its_base_so_that_it_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run/best").mkdir(parents=True)
    assert base_name("tiny") == str(pretrained_path("tiny"))
    assert base_name("run/best.pt") == base_name("run/best") == str(tmp_path.resolve() / "run/best")
    assert base_name("someone/network") == "someone/network"


def test_a_folder_without_weights_is_refused_with_its_name(tmp_path: Path) -> None:
    # Settings of the image processor are no checkpoint.
    shutil.copy(pretrained_path("tiny") / "preprocessor_config.json", tmp_path)
    for read in (load_checkpoint, checkpoint_task):
        with pytest.raises(ValueError, match=f"{tmp_path} contains no checkpoint"):
            read(tmp_path)


def test_the_build_rules_include_the_shipped_checkpoints_and_no_others() -> None:
    build = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text())
    rules = build["tool"]["setuptools"]["package-data"][PACKAGE.name]
    names = {Path(rule).parts[1] for rule in rules if rule.startswith("pretrained/")}
    assert sorted(names) == shipped_names()
    included = {path for rule in rules for path in PACKAGE.glob(rule)}
    assert included > {path for name in shipped_names() for path in pretrained_path(name).iterdir()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000 1"),
        ({"GOMP_SPINCOUNT": "7"}, "7 1"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None 1"),
        ({"THP_MEM_ALLOC_ENABLE": "0"}, "1000 0"),
    ],
    ids=["nothing", "a count", "a policy", "small pages"],
)
def test_waiting_threads_give_way_and_tensors_get_large_pages_unless_the_user_wants_otherwise(
    given: dict[str, str], expected: str
) -> None:
    # PyTorch reads the variables when it is imported. So they are printed just before the import.
    code = """
import os, sys
from importlib.abc import MetaPathFinder
class Look(MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("THP_MEM_ALLOC_ENABLE"))
            os._exit(0)
sys.meta_path.insert(0, Look())
from lora_moe_hgd_cli import run
run("info", [])
"""
    variables = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    printed = subprocess.run(
        [sys.executable, "-u", "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == expected


@pytest.mark.parametrize(
    "error",
    [HTTPError("no route"), LocalEntryNotFoundError("not in the cache")],
    ids=["no connection", "offline"],
)
@pytest.mark.parametrize("command", ["segment", "pull"])
def test_a_failed_download_is_an_error_in_a_line(
    command: str, error: Exception, dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, "snapshot_download", fail)
    monkeypatch.setattr("lora_moe_hgd.hub.pull.HfApi.model_info", fail)
    case = ["--in-path", str(dummy_root / "case_000"), "--checkpoint", "runs/best"]
    with pytest.raises(SystemExit) as stopped:
        run(command, [*(case if command == "segment" else ["runs/best"]), "--out-path", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is no folder runs/best here, and the Hub repository of this name could not")
    assert str(error) in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sgement"], "There is no command 'sgement'. Did you mean 'segment'?"),
        (["check", "data", "--no-lables"], "unrecognized arguments: --no-lables. Did you mean '--no-labels'?"),
        (["segment", "--out-path", "o", "--label-scheme", "brats203"], "Did you mean 'brats2023'?"),
        (["evaluate", "--out-path", "o", "--in-path", "{data}", "--checkpoint", "gliom"], "Did you mean 'glioma'?"),
        (["evaluate", "--out-path", "o", "--in-path", "{data}", "--subsets", "t1c+flare"], "Did you mean 'flair'?"),
        (
            ["evaluate", "--out-path", "o", "--in-path", "{data}", "--subsets", "t1gd+t2"],
            "'t1gd' is named 't1c' here.",
        ),
        (["segment", "--out-path", "o", "--t1gd", "a.nii.gz"], "'--t1gd' is named '--t1c' here."),
        (["segment", "--out-path", "o", "--reference", "T1CE"], "'T1CE' is named 't1c' here."),
        (["segment", "--out-path", "o", "--reference", "T1C"], "Write in lower case: 't1c'."),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_mistyped_name_gets_the_most_similar_one(
    words: list[str], message: str, dummy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", *(word.format(data=dummy_root) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "--sequences", "t1c flair"], "Separate sequences by commas: t1c,flair. Got: t1c flair."),
        (["segment", "--sequences", "T1c+flair,t2"], "Separate sequences by commas: t1c,flair,t2."),
        (["segment", "--sequences", "t1c", "flair"], "Write a list with commas and without spaces"),
        (["segment", "--sequences", "t1c,", "flair"], "Write a list with commas and without spaces"),
        (["prepare", "--sequences", "t1c flair"], "Separate sequences by commas: t1c,flair."),
        (
            ["convert", "--layout", "plain", "--channel-order", "flair t1 t1c t2"],
            "Separate sequences by commas: flair,t1,t1c,t2.",
        ),
        (
            ["evaluate", "--subsets", "t1c", "flair"],
            "To use sequences together, join their names by plus signs, such as t1c+flair. To use each sequence "
            "alone, separate the names by commas, such as t1c,flair. Write no spaces.",
        ),
        (
            ["evaluate", "--subsets", "t1c flair"],
            "To use sequences together, join their names by plus signs, such as t1c+flair. To use each sequence "
            "alone, separate the names by commas, such as t1c,flair.",
        ),
        (["evaluate", "--subsets", "t1c+flair t2"], "Separate subsets by commas: t1c+flair,t2. Got: t1c+flair t2."),
        (["evaluate", "--subsets", "[t1+t2,flair]"], "Leave out the brackets, as in t1+t2,flair. Got: [t1+t2,flair]."),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_list_with_spaces_is_answered_with_the_list_to_type(
    words: list[str], message: str, dummy_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    places = ["--in-path", str(dummy_root), "--out-path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", words[0], *places, *words[1:]])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["segment", "--in-path", "c", "--out-path", "o", "quiet"],
        ["segment", "--in-path", "c", "--out-path", "o", "t1"],
        ["segment", "--in-path", "c", "--out-path", "o", "--sequences", "t1c", "html"],
        ["push", "--checkpoint", "tiny", "license"],
        ["check", "DIR", "t1"],
    ],
    ids=" ".join,
)
def test_a_word_that_belongs_to_no_list_gets_no_advice_about_lists(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {words[-1]}\n")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["segment", "my case"], "segment --in-path 'my case' --out-path FOLDER"),
        (["segment", "case", "--html", "--out-path", "o"], "segment --in-path case --html --out-path o"),
        (["segment", "case", "my out", "--html"], "segment --in-path case --out-path 'my out' --html"),
        (["evaluate", "data", "--out=o"], "evaluate --in-path data --out=o"),
        (["evaluate", "data", "o"], "evaluate --in-path data --out-path o"),
        (["export", "tiny", "o"], "export --checkpoint tiny --out-path o --format FORMAT"),
        (["push", "runs/best"], "push --checkpoint runs/best"),
        (["export", "tiny"], "export --checkpoint tiny --out-path FOLDER --format FORMAT"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_a_path_without_its_option_is_answered_with_the_command_to_type(
    words: list[str], command: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    explanation, typed = capsys.readouterr().err.splitlines()
    assert explanation.startswith(f"error: '{words[1]}' must follow an option, such as --")
    assert typed == f"  lora-moe-hgd {command}"


def test_segment_without_options_shows_what_most_people_type(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lora-moe-hgd", "segment"])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "  lora-moe-hgd segment --in-path CASE --out-path OUT\n" in shown
    assert "--help lists all options" in shown
    assert "%" not in shown

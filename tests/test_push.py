"""What is pushed: whole, with its own scores, and nothing that only this machine understands."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hub_server.server import LocalHub
from huggingface_hub import HfApi, ModelCard, SpaceCard, constants
from peft import PeftModel
from safetensors.torch import load_file
from small import small_network

from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint, loading
from lora_moe_hgd.adapters.presets import add_adapter
from lora_moe_hgd.hub import companions, push
from lora_moe_hgd.hub.card import make_card, model_index
from lora_moe_hgd.hub.checksums import check_sums, read_sums
from lora_moe_hgd.hub.licences import licence_warning
from lora_moe_hgd.pretrained import LICENCES, shipped_names
from lora_moe_hgd_cli import run

TOLD = ["--license", "cc-by-4.0", "--training-data", "Made-up cases (doi 10/x)."]
SUBSETS = ("t1", "t1c+flair")
WHEEL = "lora_moe_hgd-0.1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing the weights that are shipped takes seconds."""

    def write(folder: Path) -> Path:
        (folder / WHEEL).write_bytes(b"a wheel")
        return folder / WHEEL

    monkeypatch.setattr(push, "write_wheel", write)


@pytest.fixture(scope="module")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "network"
    small_network().save_pretrained(folder)
    LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(network_folder: Path, dummy_root: Path) -> Path:
    out = network_folder.with_name("evaluation")
    words = ["--checkpoint", str(network_folder), "--data", str(dummy_root), "--out", str(out)]
    run("evaluate", [*words, "--cases", "case_000,case_001", "--subsets", ",".join(SUBSETS)])
    return out


def adapter_over(base: Path, folder: Path, preset: str) -> Path:
    network, _ = load_checkpoint(base)
    adapted: PeftModel = add_adapter(network, preset, options={}, base=str(base))
    adapted.save_pretrained(folder)
    return folder


def staged(folder: Path, into: Path, **options) -> ModelCard:
    defaults = {"repo": "me/net", "base": None, "license": "mit", "training_data": "Made-up cases."}
    defaults |= {"training_cost": None}
    into.mkdir(exist_ok=True)
    return push.stage(folder, into, **{**defaults, "evaluation": None, "max_shard_size": "5GB", **options})


def test_a_network_is_staged_with_code_scores_and_sums(network_folder: Path, evaluation: Path, tmp_path: Path) -> None:
    card = staged(network_folder, tmp_path, evaluation=evaluation)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "pipeline_lora_moe_hgd.py"} < names
    assert {"evaluation/table.json", "evaluation/heat_map.png", "README.md", "SHA256SUMS"} < names
    assert {"notebook.ipynb", WHEEL} < names
    assert set(read_sums(tmp_path / "SHA256SUMS")) == names - {"README.md", "SHA256SUMS"}
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    # What a patient's folder is called is not for the public.
    assert not any(b"case_000" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert card.data.to_dict() == ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_the_card_tells_the_scores_of_every_subset_and_region(network_folder: Path, evaluation: Path) -> None:
    table = json.loads((evaluation / "table.json").read_text())
    card = make_card("me/net", license="mit", training_data="Made-up cases.", evaluation=evaluation)
    results = ModelCard(str(card)).data.eval_results
    found = {(result.dataset_config, result.metric_name): result.metric_value for result in results}
    expected = {
        (row["subset"], f"Dice {row['region'].upper()}"): round(row["mean"], 4)
        for row in table["summary"]
        if row["metric"] == "dice" and row["subset"] in SUBSETS and row["region"] in ("wt", "tc", "et")
    }
    assert len(expected) == 6
    assert expected.items() <= found.items()
    assert ("mean over subsets", "Dice WT") in found
    assert len(model_index(table)) == len(found)
    assert "Made-up cases." in card.text
    assert (evaluation / "table.md").read_text().strip() in card.text


def test_the_card_says_what_a_release_must_say(network_folder: Path, evaluation: Path, tmp_path: Path) -> None:
    card = staged(network_folder, tmp_path, evaluation=evaluation, training_cost="Two minutes on a laptop.")
    heads = [line for line in card.text.splitlines() if line.startswith("## ")]
    wanted = ["Intended use", "Out of scope", "Training data", "Cost of training", "Scores", "Limits"]
    assert heads == [f"## {name}" for name in (*wanted, "Licence and citation")]
    assert "Two minutes on a laptop." in card.text
    assert "Calibration by number of sequences" in card.text
    # The gallery shows pictures that are in the repository.
    assert "<Gallery />" in card.text
    shown = [picture["output"]["url"] for picture in card.data.widget]
    assert len(shown) == 3
    assert all((tmp_path / name).is_file() for name in shown)


def test_weights_are_split_as_asked(network_folder: Path, tmp_path: Path) -> None:
    staged(network_folder, tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 60_000 for path in shards)
    parts = [load_file(path) for path in shards]
    whole = load_file(network_folder / "model.safetensors")
    assert {name for part in parts for name in part} == set(whole)
    assert (tmp_path / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize(("preset", "combines"), [("lora", True), ("lora+decoder", False)])
def test_an_adapter_goes_with_the_name_of_its_base(
    network_folder: Path, tmp_path: Path, preset: str, combines: bool
) -> None:
    adapter = adapter_over(network_folder, tmp_path / "adapter", preset)
    with pytest.raises(ValueError, match=r"is only on this machine\. Push the base too"):
        staged(adapter, tmp_path / "staged")
    card = staged(adapter, tmp_path / "out", base="me/net")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    assert names == weights | {"README.md", "SHA256SUMS", "notebook.ipynb", WHEEL}
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/net"
    assert (card.data.library_name, card.data.base_model) == ("peft", "me/net")
    assert ("can be combined" in card.text) is combines
    assert str(tmp_path) not in str(card)


def test_an_adapter_over_a_repository_keeps_it(network_folder: Path, tmp_path: Path) -> None:
    adapter = adapter_over(network_folder, tmp_path / "adapter", "lora")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "me/net"}))
    assert staged(adapter, tmp_path / "out").data.base_model == "me/net"
    with pytest.raises(ValueError, match="was trained on the base me/net, so --base cannot be me/other"):
        staged(adapter, tmp_path / "out", base="me/other")


def test_another_licence_than_that_of_the_base_is_warned_about(
    network_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base may be known from an adapter, from the run of a network, or from both."""
    run_folder = tmp_path / "run"
    shutil.copytree(network_folder, run_folder / "best")
    (run_folder / "run.json").write_text(json.dumps({"config": {"base": "glioma"}}))
    adapter = adapter_over(run_folder / "best", tmp_path / "adapter", "lora")
    (adapter / "README.md").unlink(missing_ok=True)
    words = ["--dry-run", "--repo", "me/net", "--base", "me/base", "--without-evaluation", "--training-data", "Mine."]
    for license, said in (("cc-by-4.0", ""), ("mit", "warning: The licence of glioma is cc-by-4.0, but --license is")):
        run("push", ["--checkpoint", str(adapter), "--license", license, *words])
        assert capsys.readouterr().err.startswith(said)
        run("push", ["--checkpoint", str(run_folder / "best"), "--license", license, *words[:3], *words[5:]])
        assert capsys.readouterr().err.startswith(said)
    (run_folder / "best/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert "The licence of best is apache-2.0" in str(licence_warning(adapter, "cc-by-4.0"))
    (run_folder / "run.json").write_text(json.dumps({"config": {"base": None}}))
    (run_folder / "best/README.md").unlink()
    assert licence_warning(adapter, "mit") is None


def test_licences_of_shipped_checkpoints_are_those_of_their_cards() -> None:
    cards = Path(__file__).parents[1] / "model_cards"
    assert {name: ModelCard.load(cards / f"{name}.md").data.license for name in shipped_names()} == LICENCES


def test_scores_of_other_weights_are_refused(evaluation: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    small_network(seed=1).save_pretrained(other)
    LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0)).save_pretrained(other)
    with pytest.raises(ValueError, match="was made with other weights or settings"):
        staged(other, tmp_path / "staged", evaluation=evaluation)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repo", "me/net", "--evaluation", "a", "--without-evaluation"], "not allowed with argument"),
        (["--repo", "not a name", "--without-evaluation"], "--repo must be a name such as me/brats-tiny, got not a"),
        (["--repo", "net", "--without-evaluation"], "--repo must be OWNER/NAME, such as me/brats-tiny, got net."),
        (["--repo", "me/net", "--without-evaluation", "--base", "me/x"], "--base is for adapters"),
        (["--repo", "me/net", "--without-evaluation", "--space", "a b"], "--space must be a name such as"),
        (
            ["--repo", "me/net", "--without-evaluation", "--space", "--private"],
            "cannot download from a private repository",
        ),
        (["--repo", "me/net", "--evaluation", "nowhere"], "nowhere contains no table.json"),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_one_line(network_folder: Path, words, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("push", ["--checkpoint", str(network_folder), *TOLD, *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_everything_that_a_push_lacks_is_listed_at_once(
    network_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A dry run shows the files in spite of it."""
    monkeypatch.setattr(push, "HfApi", None)
    adapter = adapter_over(network_folder, tmp_path / "adapter", "lora")
    words = ["--checkpoint", str(adapter), "--training-cost", "An hour."]
    with pytest.raises(SystemExit) as stopped:
        run("push", words)
    assert stopped.value.code == 2
    first, *missing, last = capsys.readouterr().err.splitlines()
    assert first == "error: Options are missing:"
    assert [line.split()[0] for line in missing] == [
        "--repo",
        "--evaluation",
        "--license",
        "--training-data",
        "--base",
    ]
    assert "which is only on this machine. Push the base too" in missing[-1]
    assert last == "To see the files without giving these options, add --dry-run."
    run("push", [*words, "--dry-run"])
    printed = capsys.readouterr().out
    assert "bytes  adapter_model.safetensors" in printed
    assert "Nothing was pushed to OWNER/NAME, because of --dry-run." in printed
    assert printed.splitlines()[-len(missing) :] == missing
    run("push", [*words, *TOLD, "--repo", "me/net", "--base", "me/base", "--without-evaluation", "--dry-run"])
    assert capsys.readouterr().out.endswith("Nothing was pushed to me/net, because of --dry-run.\n")


def test_missing_options_are_listed_before_a_checkpoint_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "snapshot_download", lambda *args, **options: pytest.fail("downloaded"))
    with pytest.raises(SystemExit):
        run("push", ["--checkpoint", "me/net", "--without-evaluation", *TOLD])
    assert capsys.readouterr().err.splitlines()[1:-1] == ["  --repo OWNER/NAME: name of the repository"]


def test_a_dry_run_shows_files_and_sizes_and_asks_nobody(
    network_folder: Path, evaluation: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "HfApi", None)
    words = ["--checkpoint", str(network_folder), "--repo", "me/net", "--evaluation", str(evaluation), "--dry-run"]
    run("push", [*words, *TOLD, "--space", "me/page", "--collection", "Tumours"])
    printed = capsys.readouterr().out
    size = (network_folder / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in printed
    assert f"bytes  {WHEEL}" in printed
    _, _, of_space = printed.partition("Files of the Space me/page:\n")
    assert [line.split("bytes  ")[1] for line in of_space.splitlines()[:3]] == [
        "README.md",
        "app.py",
        "requirements.txt",
    ]
    assert "Nothing was pushed to me/net, the Space me/page, the collection Tumours, because of --dry-run." in printed


def test_sums_find_what_is_absent_or_changed(network_folder: Path, tmp_path: Path) -> None:
    staged(network_folder, tmp_path)
    sums = read_sums(tmp_path / "SHA256SUMS")
    check_sums(tmp_path, sums)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json has the SHA-256"):
        check_sums(tmp_path, sums)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"lists config\.json, but this file is missing"):
        check_sums(tmp_path, sums)
    # A name that leads out of the folder is not looked up on the disk.
    with pytest.raises(ValueError, match="but this file is missing"):
        check_sums(tmp_path, {"../network/config.json": "0" * 64})


@pytest.fixture
def on_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The Hub on loopback, also for the functions that this process has imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.users["me"])
    hub.requests.clear()
    return hub


@pytest.fixture
def pushed(network_folder: Path, on_hub: LocalHub) -> Callable[..., None]:
    """Push the small network with more options."""

    def call(repo: str, *words: str) -> None:
        run("push", ["--checkpoint", str(network_folder), "--repo", repo, "--without-evaluation", *TOLD, *words])

    return call


def content(hub: LocalHub, repo: str, file: str, **options: Any) -> str:
    return Path(HfApi(hub.url).hf_hub_download(repo, file, **options)).read_text()


def written(hub: LocalHub) -> list[str]:
    """What was created and changed on the Hub, in this order."""
    wanted = r'"(?:POST|PUT) /api/(repos/create|collections\S*|\S+/commit/\S+) HTTP'
    return [match[1] for request in hub.requests if (match := re.search(wanted, request))]


def test_the_notebook_on_the_hub_loads_the_checkpoint_of_its_repository(on_hub: LocalHub, pushed) -> None:
    pushed("me/first", "--revision", "old")
    pushed("me/first")
    for revision, checkpoint, more in (("old", "me/first@old", ', revision="old"'), ("main", "me/first", "")):
        cells = json.loads(content(on_hub, "me/first", "notebook.ipynb", revision=revision))["cells"]
        program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert f'\nCHECKPOINT = "{checkpoint}"' in program
        assert "glioma" not in program
        # Every segmentation uses it, after the installation of the package from the same repository.
        assert (
            len(re.findall(r"lmh\.segment\(", program))
            == len(re.findall(r"lmh\.segment\(.*, CHECKPOINT", program))
            > 0
        )
        assert f'hf_hub_download("me/first", "{WHEEL}"{more})' in program
        assert program.index("%pip install") < program.index("import lora_moe_hgd")
        assert content(on_hub, "me/first", WHEEL, revision=revision) == "a wheel"


def test_a_space_and_a_collection_follow_the_repository(on_hub: LocalHub, pushed, capsys) -> None:
    pushed("me/shown", "--space", "--collection", "Brain tumours")
    order = written(on_hub)
    slug = next(line.split("/", 1)[1].removesuffix("/items") for line in order if line.endswith("/items"))
    items = f"collections/{slug}/items"
    assert order == [
        *("repos/create", "models/me/shown/commit/main"),
        *("repos/create", "spaces/me/shown/commit/main"),
        *("collections", items, items),
    ]
    collection = HfApi(on_hub.url).get_collection(slug)
    assert (collection.title, collection.owner) == ("Brain tumours", {"name": "me"})
    found = [(item.item_id, item.item_type) for item in collection.items]
    assert found == [("me/shown", "model"), ("me/shown", "space")]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in printed] == [
        "Pushed me/shown",
        "Pushed the Space me/shown",
        f"Pushed the collection {slug}",
    ]
    on_hub.requests.clear()
    # A second time, nothing is created twice, and a collection may be named by its slug.
    pushed("me/shown", "--space", "--collection", slug)
    assert HfApi(on_hub.url).get_collection(slug).items == collection.items
    assert len(HfApi(on_hub.url).list_repo_commits("me/shown")) == 2


def test_a_space_serves_the_checkpoint_with_the_package_of_the_same_commit(on_hub: LocalHub, pushed) -> None:
    pushed("me/served", "--space", "me/page")
    api = HfApi(on_hub.url)
    files = {*api.list_repo_files("me/page", repo_type="space")} - {".gitattributes"}
    assert files == {"README.md", "app.py", "requirements.txt"}
    assert 'CHECKPOINT = "me/served"\n' in content(on_hub, "me/page", "app.py", repo_type="space")
    needed = content(on_hub, "me/page", "requirements.txt", repo_type="space").splitlines()
    address = f"{on_hub.url}/me/served/resolve/{api.model_info('me/served').sha}/{WHEEL}"
    assert needed[-1] == f"lora-moe-hgd[app,scans] @ {address}"
    card = SpaceCard(content(on_hub, "me/page", "README.md", repo_type="space"))
    assert (card.data.models, card.data.sdk, card.data.app_file) == (["me/served"], "gradio", "app.py")


def test_a_failure_names_what_is_pushed_already_and_what_to_do_without_the_token(
    on_hub: LocalHub, pushed, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            pushed("me/half", *words)
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert on_hub.users["me"] not in captured.out + captured.err
        return captured.err.splitlines()[-1]

    told = message("--space", "guest/page")
    assert told.startswith("error: The upload of the Space guest/page failed: ")
    assert "Pushed before: me/half. Remove the cause and run the same command again." in told
    told = message("--space", "--collection", "guest/others-0123456789abcdef01234567")
    assert "The collection guest/others-0123456789abcdef01234567 failed: " in told
    assert "Pushed before: me/half, the Space me/half. " in told

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError(f"Illegal header value b'Bearer {on_hub.users['me']}'")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    told = message()
    assert "The upload of me/half failed: RuntimeError: Illegal header value b'Bearer [token]'. Nothing was" in told


def test_a_space_of_a_private_repository_is_refused(on_hub: LocalHub, pushed, capsys) -> None:
    HfApi(on_hub.url, token="hf_me").create_repo("me/secret", private=True)
    with pytest.raises(SystemExit):
        pushed("me/secret", "--space")
    assert "A Space cannot download from the private repository me/secret." in capsys.readouterr().err
    assert "models/me/secret/commit/main" not in written(on_hub)


def test_the_wheel_holds_the_package_with_what_a_push_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the weights, which take long to pack.
    monkeypatch.setattr(companions, "PACKAGE", small_package(tmp_path / "clone"))
    wheel = companions.write_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {"lora_moe_hgd_cli.py", "lora_moe_hgd/app/space/app.py", "lora_moe_hgd/hub/segment_your_case.ipynb"} < {
            *names
        }
        record = f"lora_moe_hgd-{metadata.version('lora-moe-hgd')}.dist-info/RECORD"
        assert [row[0] for row in csv.reader(io.StringIO(archive.read(record).decode()))] == names
        archive.extractall(tmp_path / "site")
    (found,) = metadata.distributions(name="lora-moe-hgd", path=[str(tmp_path / "site")])
    assert found.version == metadata.version("lora-moe-hgd")
    assert "app" in found.metadata.get_all("Provides-Extra")
    assert not any("__pycache__" in name for name in names)
    first = wheel.read_bytes()
    assert companions.write_wheel(tmp_path).read_bytes() == first


# Files that lie in the folder of a package but are no part of it.
OWN_FILES = (
    *(f"pretrained/mine/{name}" for name in ("config.json", "model.safetensors", "split.csv")),
    *("pretrained/tiny/optimizer.pt", "pretrained/tiny/resume/a.json"),
)


def test_the_wheel_of_a_clone_holds_what_its_build_rules_include(tmp_path: Path, monkeypatch) -> None:
    package = small_package(tmp_path / "clone")
    for name in ("pretrained/tiny/model.safetensors", "hub/notes.txt", *OWN_FILES):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    monkeypatch.setattr(companions, "PACKAGE", package)
    with zipfile.ZipFile(companions.write_wheel(tmp_path)) as archive:
        names = archive.namelist()
    assert [name for name in names if name.startswith("lora_moe_hgd/pretrained/")] == [
        "lora_moe_hgd/pretrained/__init__.py",
        "lora_moe_hgd/pretrained/tiny/model.safetensors",
    ]
    assert "lora_moe_hgd/hub/notes.txt" not in names


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the small package is installed from its wheel, beside another project's build rules."""
    project = tmp_path / "project"
    site = project / "src"
    monkeypatch.setattr(companions, "PACKAGE", small_package(tmp_path / "clone"))
    with zipfile.ZipFile(companions.write_wheel(tmp_path)) as archive:
        archive.extractall(site)
    (project / "pyproject.toml").write_text('[project]\nname = "other"\n[tool.setuptools]\npy-modules = ["other"]\n')
    monkeypatch.setattr(companions, "PACKAGE", site / "lora_moe_hgd")
    monkeypatch.setattr(companions, "distributions", lambda name: metadata.distributions(name=name, path=[str(site)]))
    return site


@pytest.mark.parametrize("folder", ["src", "vendor"])
def test_the_wheel_of_an_installed_package_holds_what_its_record_lists(
    site: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = site.parent / "pyproject.toml"
    if folder == "vendor":
        # Even our own build rules are those of a clone only if the package is in `src`.
        rules.write_text((tmp_path / "clone/pyproject.toml").read_text())
        site = site.rename(site.with_name(folder))
        monkeypatch.setattr(companions, "PACKAGE", site / "lora_moe_hgd")
        monkeypatch.setattr(
            companions, "distributions", lambda name: metadata.distributions(name=name, path=[str(site)])
        )
    (record,) = site.glob("*.dist-info/RECORD")
    names = [row[0] for row in csv.reader(io.StringIO(record.read_text()))]
    for name in (*OWN_FILES, "own.py"):
        (site / "lora_moe_hgd" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "lora_moe_hgd" / name).touch()
    with zipfile.ZipFile(companions.write_wheel(tmp_path)) as archive:
        assert archive.namelist() == names


@pytest.mark.parametrize("lost", ["the record", "the rows of the package"])
def test_no_wheel_is_made_from_an_installation_without_a_record_of_its_files(
    site: Path, tmp_path: Path, lost: str
) -> None:
    (wheel,) = tmp_path.glob("*.whl")
    wheel.unlink()
    (record,) = site.glob("*.dist-info/RECORD")
    rest = [row for row in record.read_text().splitlines(keepends=True) if ".dist-info/" in row]
    record.unlink() if lost == "the record" else record.write_text("".join(rest))
    with pytest.raises(ValueError, match=rf"lora-moe-hgd in {site} does not record its files \(RECORD\)"):
        companions.write_wheel(tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_recorded_files_that_are_missing_are_named(site: Path, tmp_path: Path) -> None:
    (site / "lora_moe_hgd/api.py").unlink()
    with pytest.raises(ValueError, match=rf"missing in {site}: lora_moe_hgd/api\.py\. Restore them"):
        companions.write_wheel(tmp_path)


def small_package(clone: Path) -> Path:
    """A clone with the Python files of the package and the files that a push needs."""
    package, folder = companions.PACKAGE, clone / "src"
    clone.mkdir()
    shutil.copyfile(package.parents[1] / "pyproject.toml", clone / "pyproject.toml")
    for path in (package.parent / "lora_moe_hgd_cli.py", *package.rglob("*")):
        if path.suffix in (".py", ".ipynb", ".pyc") or (path.parent.name == "space" and path.is_file()):
            target = folder / path.relative_to(package.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder / "lora_moe_hgd"


@pytest.mark.slow
def test_pip_installs_the_wheel(tmp_path: Path) -> None:
    wheel = companions.write_wheel(tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(pip, check=True, timeout=600)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import lora_moe_hgd as lmh; "
    code += "print(lmh.__file__, lmh.example_case(), lmh.pretrained_path('glioma'))"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=300, capture_output=True, text=True)
    assert done.stdout.count(str(tmp_path / "site")) == 3

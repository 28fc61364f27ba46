"""What is pushed with the real clients to a Hub on loopback comes back whole, in new processes."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server.server import MAX_BODY, LocalHub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from small import random_volumes

import lora_moe_hgd

ROOT = Path(__file__).parents[1]
SOURCES = [Path(lora_moe_hgd.__file__).parents[1], Path(__file__).parent]

# argv of all that follow: the folder for what goes from process to process.
PUSH = """
import json, sys
from pathlib import Path
import torch
from datasets import load_dataset
from huggingface_hub import HfApi
from small import small_network
from torch.testing import assert_close
from transformers import AutoModel
from lora_moe_hgd import LoraMoeHgdImageProcessor, load_checkpoint
from lora_moe_hgd.hub.card import make_card
from lora_moe_hgd.adapters.presets import add_adapter

work, api = Path(sys.argv[1]), HfApi()
volumes = torch.load(work / 'volumes.pt', weights_only=True)
processor = LoraMoeHgdImageProcessor(target_spacing_mm=(4.0, 4.0, 4.0))
torch.set_grad_enabled(False)

def saved(seed):
    # Rounding depends on how weights lie in memory, which for those read from a file is how they lie in it.
    small_network(seed).save_pretrained(work / f'seed{seed}')
    return AutoModel.from_pretrained(work / f'seed{seed}').eval()

first, second = saved(0), saved(1)
about = {'license': 'mit', 'training_data': 'Phantoms.'}
first.push_to_hub('me/net', private=False)
processor.push_to_hub('me/net')
make_card('me/net', evaluation=work / 'evaluation', **about).push_to_hub('me/net')
api.create_tag('me/net', tag='v1')
second.push_to_hub('me/net', commit_message='better')
api.create_branch('me/net', branch='old', revision='v1')
logits = {'v1': first(volumes).logits, 'main': second(volumes).logits}

adapted = add_adapter(second, 'lora', options={'r': 2}, base='me/net').eval()
generator = torch.Generator().manual_seed(2)
for name, parameter in adapted.named_parameters():
    if 'lora_B' in name:
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
adapted.save_pretrained(work / 'adapter')
make_card('me/adapter', evaluation=None, adapter=('me/net', 'lora'), **about).save(work / 'adapter/README.md')
api.create_repo('me/adapter')
api.upload_folder(repo_id='me/adapter', folder_path=work / 'adapter')
adapted.push_to_hub('me/adapter-by-peft')
logits['adapter'] = AutoModel.from_pretrained(work / 'adapter').eval()(volumes).logits
logits['merged'] = load_checkpoint(work / 'adapter')[0](volumes).logits
assert_close(logits['adapter'], adapted(volumes).logits)
torch.save(logits, work / 'pushed.pt')

api.create_repo('me/cases', repo_type='dataset')
api.upload_folder(repo_id='me/cases', repo_type='dataset', folder_path=work / 'cases')
load_dataset(str(work / 'cases'), split='train').push_to_hub('me/packed')
"""

HIDE_PACKAGE = """
import sys
sys.modules['lora_moe_hgd'] = None  # as where it is not installed: importing it is an error
"""

PULL = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoImageProcessor, AutoModel

work, answers = Path(sys.argv[1]), Path(sys.argv[2])
volumes = torch.load(work / 'volumes.pt', weights_only=True)
torch.set_grad_enabled(False)

def pull(repo, **options):
    return AutoModel.from_pretrained(repo, **options, **TRUSTED).eval()

networks = {
    'v1': pull('me/net', revision='v1'),
    'old': pull('me/net', revision='old'),
    'main': pull('me/net'),
    'adapter': pull('me/adapter'),
}
logits = {name: network(volumes).logits for name, network in networks.items()}
processor = AutoImageProcessor.from_pretrained('me/net', **TRUSTED)
found = {
    'modules': sorted({type(network).__module__.split('.')[0] for network in (*networks.values(), processor)}),
    'spacing': processor.target_spacing_mm,
}
"""

TRUST = HIDE_PACKAGE + "TRUSTED = {'trust_remote_code': True}\n"
WITH_PACKAGE = "import lora_moe_hgd\nTRUSTED = {}\n"

PULL_AS_USERS_OF_THE_PACKAGE = """
from lora_moe_hgd import load_checkpoint
from lora_moe_hgd.training.data.streams import StreamedCases

for name in ('me/net', 'me/net@v1', 'me/adapter'):
    logits[name] = load_checkpoint(name)[0](volumes).logits
stream = StreamedCases('me/cases', split='train', label_scheme='msd', processor=processor, cache_dir=answers)
stream.prepare_all(num_workers=0, progress=False)
found['masks'] = [stream[index]['modality_mask'].tolist() for index in range(len(stream))]
"""

SAVE = """
torch.save(logits, answers / 'logits.pt')
(answers / 'found.json').write_text(json.dumps(found))
"""

PULL_DATA = """
import numpy as np
from datasets import load_dataset

def contents(case):
    return {name: None if image is None else float(np.asarray(image.dataobj).sum()) for name, image in case.items()}

ways = {'in full': {}, 'streamed': {'streaming': True}}
found['data'] = {
    f'{repo} {way}': [contents(case) for case in load_dataset(repo, split='train', **options)]
    for repo in ('me/cases', 'me/packed') for way, options in ways.items()
}
"""

PULL_CARDS = """
import json
from huggingface_hub import HfApi, ModelCard

cards = {name: ModelCard.load(name).data for name in ('me/net', 'me/adapter', 'me/adapter-by-peft')}
found = {name: {key: data.get(key) for key in ('library_name', 'base_model', 'tags')} for name, data in cards.items()}
found['scores'] = [[result.dataset_config, result.metric_value] for result in cards['me/net'].eval_results]
try:
    HfApi().upload_file(path_or_fileobj=b'---\\nmodel-index: 3\\n---\\n', path_in_repo='README.md', repo_id='me/net')
except ValueError as error:
    found['refusal'] = str(error)
print(json.dumps(found))
"""

MAKE_CLOSED = """
from huggingface_hub import HfApi

api = HfApi()
for name in ('open', 'private', 'gated'):
    api.create_repo(f'me/{name}', private=name == 'private')
    api.upload_file(path_or_fileobj=b'{}', path_in_repo='config.json', repo_id=f'me/{name}')
api.update_repo_settings('me/gated', gated='manual')
"""

LIVE_AND_DIE = """
import json
from huggingface_hub import HfApi

api, seen = HfApi(), []
for _ in range(2):
    api.create_repo('me/short-lived')
    api.create_tag('me/short-lived', tag='v1')
    refs = api.list_repo_refs('me/short-lived')
    seen.append([api.repo_exists('me/short-lived'), [ref.name for ref in (*refs.branches, *refs.tags)]])
    api.delete_repo('me/short-lived')
    seen.append(api.repo_exists('me/short-lived'))
print(json.dumps(seen))
"""

# argv: what to read and then to write, as REPOSITORY@REVISION/FILE.
TRY = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

def outcome(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:
        return type(error).__name__
    return 'done'

outcomes = {}
for name in sys.argv[1:]:
    repo, _, rest = name.partition('@')
    revision, _, file = rest.partition('/')
    where = {'repo_id': repo, 'revision': revision}
    outcomes[name] = (
        outcome(hf_hub_download, filename=file, **where),
        outcome(HfApi().upload_file, path_or_fileobj=b'x', path_in_repo='new.txt', **where),
    )
print(json.dumps(outcomes))
"""

# argv: file to push.
PUSH_LARGE = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo('me/large', exist_ok=True)
HfApi().upload_file(path_or_fileobj=sys.argv[1], path_in_repo='large.bin', repo_id='me/large')
"""

PULL_LARGE = """
import hashlib, json
from pathlib import Path
from huggingface_hub import constants, hf_hub_download

found = {}
try:
    content = Path(hf_hub_download('me/large', 'large.bin')).read_bytes()
    found['sha256'] = hashlib.sha256(content).hexdigest()
except Exception as error:
    found['error'] = type(error).__name__
found['blobs'] = [path.name for path in Path(constants.HF_HUB_CACHE).rglob('blobs/*')]
print(json.dumps(found))
"""

READ_MIDDLE = """
from huggingface_hub import HfFileSystem

with HfFileSystem().open('me/large/large.bin', block_size=1000) as file:
    file.seek(1_500_000)
    print(file.read(20).hex())
"""


def run_alone(
    code: str, *words: object, hub: LocalHub, home: Path, user: str | None = "me", package: bool = False, **more: str
) -> str:
    """Run `code` in a fresh interpreter whose clients use `hub`, and return what it prints."""
    environment = {"HF_HOME": str(home), "PATH": os.environ["PATH"], **hub.environment(user), **more}
    # As many threads as here: sums are split among them, and rounding depends on the split.
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    if package:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, SOURCES))
    start = [sys.executable, *([] if package else ["-I"]), "-c", code]
    done = subprocess.run([*start, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_dataset(cases: Path, root: Path) -> list[dict[str, Any]]:
    """Copy cases to a `datasets` folder; the second lacks T2. Returns its rows."""
    shutil.copytree(cases, root / "train")
    rows = []
    for number, folder in enumerate(sorted((root / "train").iterdir())):
        if number == 1:
            (folder / "T2.nii.gz").unlink()
        files = {name: folder / f"{name}.nii.gz" for name in ("T1", "T1c", "T2", "FLAIR", "seg")}
        names = {name: f"{folder.name}/{path.name}" if path.is_file() else None for name, path in files.items()}
        rows.append({f"{name.lower()}_file_name": value for name, value in names.items()})
    (root / "train/metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return rows


@pytest.fixture(scope="module")
def work(hub: LocalHub, dummy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything pushed; the folder has the logits that are to come back."""
    folder = tmp_path_factory.mktemp("work")
    torch.save(random_volumes(1, (16, 16, 32)), folder / "volumes.pt")
    as_dataset(dummy_root, folder / "cases")
    (folder / "evaluation").mkdir()
    about = {"data": "phantoms", "cases": 3, "mirror": False, "convention": "brats2023", "lesion_rules": "brats2023"}
    rows = [{"subset": "t1+flair", "region": "wt", "metric": "dice", "mean": 0.75}]
    (folder / "evaluation/table.json").write_text(json.dumps({"about": about, "summary": rows}))
    (folder / "evaluation/table.md").write_text("| | |\n")
    run_alone(PUSH, folder, hub=hub, home=folder / "home", package=True)
    return folder


def answers_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return torch.load(folder / "logits.pt", weights_only=True), found


@pytest.fixture(scope="module")
def with_package(hub: LocalHub, work: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    answers = work / "with"
    answers.mkdir()
    code = WITH_PACKAGE + PULL + PULL_AS_USERS_OF_THE_PACKAGE + SAVE
    run_alone(code, work, answers, hub=hub, home=answers / "home", user=None, package=True)
    return answers_of(answers)


@pytest.fixture(scope="module")
def home_without(hub: LocalHub, work: Path) -> Path:
    """The `HF_HOME` of somebody without the package, who has pulled everything."""
    answers = work / "without"
    answers.mkdir()
    # In one process, because importing torch takes longer than all it does.
    run_alone(TRUST + PULL + PULL_DATA + SAVE, work, answers, hub=hub, home=answers / "home", user=None)
    return answers / "home"


@pytest.fixture(scope="module")
def without_package(home_without: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return answers_of(home_without.parent)


@pytest.fixture(scope="module")
def pushed(work: Path) -> dict[str, torch.Tensor]:
    logits: dict[str, torch.Tensor] = torch.load(work / "pushed.pt", weights_only=True)
    # Else the tests that tell them apart would not.
    assert not torch.equal(logits["v1"], logits["main"])
    assert not torch.equal(logits["main"], logits["adapter"])
    return logits


@pytest.mark.parametrize("name", ["main", "adapter"])
def test_with_the_package_a_pulled_network_gives_the_same_bits(with_package, pushed, name: str) -> None:
    logits, found = with_package
    assert torch.equal(logits[name], pushed[name])
    assert found["modules"] == ["lora_moe_hgd"]


@pytest.mark.parametrize("name", ["main", "adapter"])
def test_without_the_package_a_pulled_network_gives_the_same_bits(without_package, pushed, name: str) -> None:
    logits, found = without_package
    assert torch.equal(logits[name], pushed[name])
    assert found["modules"] == ["transformers_modules"]


def test_a_pulled_processor_has_the_settings_that_were_pushed(with_package, without_package) -> None:
    for _, found in (with_package, without_package):
        assert found["spacing"] == [4.0, 4.0, 4.0]


def test_a_tag_and_a_branch_give_what_was_there_before_the_next_commit(with_package, without_package, pushed) -> None:
    for logits, _ in (with_package, without_package):
        assert torch.equal(logits["v1"], pushed["v1"])
        assert torch.equal(logits["old"], pushed["v1"])


@pytest.mark.parametrize(("name", "same"), [("me/net", "main"), ("me/net@v1", "v1"), ("me/adapter", "merged")])
def test_load_checkpoint_takes_what_the_hub_has(with_package, pushed, name: str, same: str) -> None:
    assert torch.equal(with_package[0][name], pushed[same])


def test_training_can_read_a_dataset_of_the_hub(with_package) -> None:
    complete, without_t2 = [True] * 4, [True, True, False, True]
    assert with_package[1]["masks"] == [complete, without_t2, complete]


@pytest.mark.parametrize("repo", ["me/cases", "me/packed"])
@pytest.mark.parametrize("way", ["in full", "streamed"])
def test_a_pulled_dataset_has_the_images_and_still_lacks_what_was_missing(
    without_package, repo: str, way: str
) -> None:
    data = without_package[1]["data"]
    cases = data[f"{repo} {way}"]
    missing = [[name for name, total in case.items() if total is None] for case in cases]
    assert missing == [[], ["t2"], []]
    assert cases == data["me/cases in full"]
    assert len({total for case in cases for total in case.values()}) > len(cases)


@pytest.fixture(scope="module")
def cards(hub: LocalHub, work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_alone(PULL_CARDS, hub=hub, home=work / "home_cards"))
    return found


def test_a_pulled_card_has_the_metadata_and_the_scores(cards) -> None:
    assert cards["me/net"]["library_name"] == "transformers"
    assert (cards["me/adapter"]["library_name"], cards["me/adapter"]["base_model"]) == ("peft", "me/net")
    assert cards["scores"] == [["t1+flair", 0.75]]


def test_a_card_with_malformed_results_is_refused(cards) -> None:
    assert "model-index" in cards["refusal"]


def test_push_to_hub_of_peft_still_spoils_the_card_of_an_adapter(cards) -> None:
    """Why our adapters are pushed as a folder; when this fails, `PeftModel.push_to_hub` has been mended."""
    assert cards["me/adapter-by-peft"] == {"library_name": "transformers", "base_model": None, "tags": []}


def test_offline_everything_loads_from_the_cache(hub: LocalHub, work: Path, home_without: Path, pushed) -> None:
    answers = work / "offline"
    answers.mkdir()
    before = len(hub.requests)
    run_alone(TRUST + PULL + SAVE, work, answers, hub=hub, home=home_without, user=None, HF_HUB_OFFLINE="1")
    assert hub.requests[before:] == []
    logits, _ = answers_of(answers)
    for name in ("v1", "main", "adapter"):
        assert torch.equal(logits[name], pushed[name])


@pytest.fixture(scope="module")
def closed(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_alone(MAKE_CLOSED, hub=hub, home=tmp_path_factory.mktemp("closed"))


DONE, NO_REPO, NO_WAY = "done", "RepositoryNotFoundError", "HfHubHTTPError"
# What reading and writing end in.
OUTCOMES = {
    ("me", "me/private@main/config.json"): (DONE, DONE),
    (None, "me/private@main/config.json"): (NO_REPO, NO_REPO),
    ("guest", "me/private@main/config.json"): (NO_REPO, NO_REPO),
    (None, "me/nothing@main/config.json"): (NO_REPO, NO_REPO),
    ("me", "me/nothing@main/config.json"): (NO_REPO, NO_REPO),
    ("me", "me/gated@main/config.json"): (DONE, DONE),
    (None, "me/gated@main/config.json"): ("GatedRepoError", NO_REPO),
    ("guest", "me/gated@main/config.json"): ("GatedRepoError", NO_WAY),
    ("guest", "me/open@main/config.json"): (DONE, NO_WAY),
    ("me", "me/open@v9/config.json"): ("RevisionNotFoundError", "RevisionNotFoundError"),
    ("me", "me/open@main/nothing.json"): ("RemoteEntryNotFoundError", DONE),
}


@pytest.fixture(scope="module")
def outcomes(hub: LocalHub, closed: None, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[str, str]]:
    found = {}
    for user in {user for user, _ in OUTCOMES}:
        names = [name for asker, name in OUTCOMES if asker == user]
        printed = run_alone(TRY, *names, hub=hub, home=tmp_path_factory.mktemp("home"), user=user)
        found |= {(user, name): tuple(ends) for name, ends in json.loads(printed).items()}
    return found


@pytest.mark.parametrize("attempt", OUTCOMES, ids=str)
def test_clients_raise_the_errors_of_the_hub(outcomes, attempt: tuple[str | None, str]) -> None:
    assert outcomes[attempt] == OUTCOMES[attempt]


def test_a_deleted_repository_is_gone_and_can_be_made_anew(hub: LocalHub, tmp_path: Path) -> None:
    seen = json.loads(run_alone(LIVE_AND_DIE, hub=hub, home=tmp_path))
    assert seen == [[True, ["main", "v1"]], False] * 2


@pytest.fixture(scope="module")
def large(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Content of a file on the Hub, whose upload was cut once."""
    folder = tmp_path_factory.mktemp("large")
    content = torch.randint(256, (12_000_000,), generator=torch.Generator().manual_seed(3)).byte().numpy().tobytes()
    (folder / "large.bin").write_bytes(content)
    hub.cut("/lfs/*", after_bytes=1_000_000)
    run_alone(PUSH_LARGE, folder / "large.bin", hub=hub, home=folder)
    assert hub.cuts.pop()["times"] == 0
    return content


def pull_large(hub: LocalHub, home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_alone(PULL_LARGE, hub=hub, home=home, user=None))
    return found


def test_a_download_cut_once_is_resumed(hub: LocalHub, large: bytes, tmp_path: Path) -> None:
    hub.cut("*/large.bin", after_bytes=11_000_000)  # behind a whole piece, of which clients write 10 MiB at once
    before = len(hub.requests)
    assert pull_large(hub, tmp_path)["sha256"] == hashlib.sha256(large).hexdigest()
    assert any("206" in request for request in hub.requests[before:])


def test_a_download_that_is_always_cut_leaves_nothing_that_could_be_taken_for_it(hub, large, tmp_path) -> None:
    hub.cut("*/large.bin", after_bytes=0, times=math.inf)
    assert pull_large(hub, tmp_path) == {"error": "RemoteProtocolError", "blobs": []}
    hub.mend()
    digest = hashlib.sha256(large).hexdigest()
    assert pull_large(hub, tmp_path) == {"sha256": digest, "blobs": [digest]}


def test_bytes_in_the_middle_are_read_without_the_rest(hub: LocalHub, large: bytes, tmp_path: Path) -> None:
    assert run_alone(READ_MIDDLE, hub=hub, home=tmp_path).strip() == large[1_500_000:1_500_020].hex()


def ask(hub: LocalHub, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_port, timeout=10)
    connection.request(method, path, body, {"Authorization": "Bearer hf_me", **headers})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out", ".git/config", "a\\b", "a//b", "", "a\nb"])
def test_a_commit_cannot_reach_out_of_its_repository(hub: LocalHub, path: str) -> None:
    lines = [
        {"key": "header", "value": {"summary": "out"}},
        {"key": "file", "value": {"path": path, "content": "x", "encoding": "utf-8"}},
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    status, answer = ask(hub, "POST", "/api/models/me/open/commit/main", body)
    assert status == 400
    assert b"Not a path inside a repository" in answer


@pytest.mark.usefixtures("closed")
def test_a_request_that_is_too_large_is_refused_before_it_is_read(hub: LocalHub) -> None:
    status, _ = ask(hub, "POST", "/api/models/me/open/commit/main", b"x", **{"Content-Length": str(MAX_BODY + 1)})
    assert status == 413


@pytest.mark.usefixtures("closed")
def test_an_upload_needs_to_be_asked_for_by_the_owner_and_to_have_the_bytes_announced(hub: LocalHub) -> None:
    content = b"content"
    wanted = {"objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]}
    body, batch = json.dumps(wanted).encode(), "/me/open.git/info/lfs/objects/batch"
    assert ask(hub, "POST", batch, body, Authorization="Bearer hf_guest")[0] == 403
    (answer,) = json.loads(ask(hub, "POST", batch, body)[1])["objects"]
    href = answer["actions"]["upload"]["href"].removeprefix(hub.url)
    forged = href[:-1] + ("0" if href[-1] != "0" else "1")
    assert ask(hub, "PUT", forged, content)[0] == 403
    assert ask(hub, "PUT", href, b"CONTENT")[0] == 400
    assert ask(hub, "PUT", href, content)[0] == 200


@pytest.mark.usefixtures("closed")
def test_an_upload_that_was_cut_is_not_taken_for_the_file(hub: LocalHub) -> None:
    content = b"content that goes through in half"
    wanted = {"objects": [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}]}
    body, batch = json.dumps(wanted).encode(), "/me/private.git/info/lfs/objects/batch"
    (answer,) = json.loads(ask(hub, "POST", batch, body)[1])["objects"]
    before = sorted(hub.root.glob("models/me/private/blobs/*"))
    hub.cut("/lfs/*", after_bytes=10)
    with pytest.raises(ConnectionError):
        ask(hub, "PUT", answer["actions"]["upload"]["href"].removeprefix(hub.url), content)
    hub.mend()
    (again,) = json.loads(ask(hub, "POST", batch, body)[1])["objects"]
    assert "actions" in again
    assert sorted(hub.root.glob("models/me/private/blobs/*")) == before


def test_branches_tags_commits_and_models_are_listed_and_deleted(hub: LocalHub) -> None:
    api = HfApi(hub.url, token=hub.users["me"])
    repo = api.create_repo("me/history", private=True).repo_id
    for number in (1, 2):
        content = json.dumps({"model_type": "toy", "number": number}).encode()
        api.upload_file(
            path_or_fileobj=content, path_in_repo="config.json", repo_id=repo, commit_message=f"no. {number}"
        )
    api.create_branch(repo, branch="old")
    api.create_tag(repo, tag="v1")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["no. 2", "no. 1", "initial commit"]
    assert api.model_info(repo).config == {"model_type": "toy"}
    assert "me/history" in [model.id for model in api.list_models(author="me")]
    assert "me/history" not in [model.id for model in HfApi(hub.url, token=hub.users["guest"]).list_models()]
    api.delete_branch(repo, branch="old")
    api.delete_tag(repo, tag="v1")
    refs = api.list_repo_refs(repo)
    assert ([branch.name for branch in refs.branches], refs.tags) == (["main"], [])
    for delete in (lambda: api.delete_branch(repo, branch="main"), lambda: api.delete_tag(repo, tag="v1")):
        with pytest.raises(HfHubHTTPError):
            delete()


def test_only_this_computer_is_served(hub: LocalHub) -> None:
    assert hub.server_address[0] == "127.0.0.1"


def test_the_script_prints_what_to_export_and_serves_until_ctrl_c(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.hub_server", "--root", str(tmp_path / "hub"), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(4)]
        exported = dict(line.strip().removeprefix("export ").split("=") for line in lines if "export" in line)
        code = "from huggingface_hub import whoami; print(whoami()['name'])"
        environment = {**exported, "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run([sys.executable, "-I", "-c", code], env=environment, capture_output=True, text=True)
        server.send_signal(signal.SIGINT)
        server.stdout.read()
    assert done.stdout.strip() == "me", done.stderr
    assert server.returncode == 0

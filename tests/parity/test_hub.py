"""`palm push` and `palm.from_hub` against a stand-in for the hub, through huggingface_hub's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from cases import assert_same_bits, draw_weights, small
from hub_server import Hub, Repository, serving
from huggingface_hub import constants
from trained_tokenizers import byte_level

import palm
from palm.checkpoint import export as exporting
from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.progress import summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.cli.main import main
from palm.data.tokenizer_file import FileTokenizer
from palm.spec.rounding import rms

# huggingface_hub's own, of how it calls its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "me/my-palm"
CONFIG = small(num_tokens=300)
WEIGHTS = draw_weights(CONFIG, dtype="float32")
TOKENIZER = FileTokenizer("tokenizer.json", byte_level("the cat sat on the mat").to_str().encode())
ALWAYS = {".gitattributes", "README.md", "config.json", "generation_config.json", "modeling_palm.py"}
READ = {"config.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub, a cache of its own, and a token of `me`."""
    with serving(Hub()) as hub:
        at(monkeypatch, hub, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield hub


def at(monkeypatch, hub: Hub, cache: Path) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_DISABLE_XET do when huggingface_hub is imported."""
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(cache / "no token"),
    }.items():
        monkeypatch.setattr(constants, name, value)


def saved(path: Path, tokenizer: FileTokenizer | None = None, seed: int = 0) -> Path:
    return save_arrays(CONFIG, draw_weights(CONFIG, seed, "float32"), path, tokenizer=tokenizer)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("most", [10**9, 9000], ids=["one file", "several"])
def test_what_is_pushed_comes_back_bit_for_bit_and_offline(most, backend, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_BYTES", most)
    done = palm.push_to_hub(saved(tmp_path / "model", TOKENIZER), NAME)
    repository = hub.repositories[NAME]
    assert done == palm.Pushed(f"{hub.address}/{NAME}/commit/{done.commit}", repository.branches["main"])
    assert len(repository.commits) == 2  # one of the hub's own, and one
    files = {name for name in repository.newest if name.endswith(".safetensors")}
    assert (len(files) > 1) == (most == 9000)
    index = {"model.safetensors.index.json"} if len(files) > 1 else set()
    assert {*repository.newest} == {*ALWAYS, "tokenizer.json", "tokenizer_config.json", *files, *index}
    model = palm.from_hub(NAME, backend=backend)
    assert palm.backend_of(model) == backend
    assert_same_bits(palm.to_numpy(model), WEIGHTS)
    assert palm.config_of(model) == CONFIG
    assert palm.tokenizer_of(model).content == TOKENIZER.content
    # No code comes, and nothing that palm does not read.
    assert {*hub.fetched()} <= {"config.json", "tokenizer.json", "tokenizer_config.json", *files, *index}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert_same_bits(palm.to_numpy(palm.from_hub(NAME, backend=backend)), WEIGHTS)
    assert len(hub.asked) == asked
    with pytest.raises(palm.UpstreamError, match="hub:me/other must be reachable or in the cache"):
        palm.from_hub("me/other", backend=backend)


def test_an_import_records_the_commit_and_the_files(hub, tmp_path, capsys):
    done = palm.push_to_hub(saved(tmp_path / "model", TOKENIZER), NAME)
    out = tmp_path / "again"
    assert main(["import", "transformers", f"hub:{NAME}", str(out), "--revision", "main"]) == 0
    assert f"from {NAME} at {done.commit}" in " ".join(capsys.readouterr().out.split())
    origin = summarise(out).origin
    assert origin.pop("source") == "transformers"
    assert (origin.pop("repository"), origin.pop("revision")) == (NAME, done.commit)
    files = {"config.json", "model.safetensors", "tokenizer.json"}
    assert origin.keys() == {f"sha256 of {name}" for name in files}
    [digest] = [key for key, content in hub.large.items() if len(content) > 1000]
    assert origin["sha256 of model.safetensors"] == digest
    assert_same_bits(palm.to_numpy(palm.load(out, backend="torch")), WEIGHTS)
    assert checkpoint_tokenizer(out).content == TOKENIZER.content
    assert main(["import", f"hub:{NAME}", str(tmp_path / "without a source")]) == 0
    assert summarise(tmp_path / "without a source").origin == summarise(out).origin
    # A card of the imported model says where it comes from.
    palm.export(out, tmp_path / "exported", format="transformers")
    assert done.commit in (tmp_path / "exported" / "README.md").read_text()


def test_a_second_push_replaces_the_first_and_leaves_other_files(hub, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "MOST_BYTES", 9000)
        palm.push_to_hub(saved(tmp_path / "first", TOKENIZER), NAME)
    repository = hub.repositories[NAME]
    own = {"notes.txt": b"mine", "adapter/model.safetensors": b"mine"}
    repository.commit("main", {**repository.newest, **own}, "a file of my own")
    done = palm.push_to_hub(saved(tmp_path / "second", seed=1), NAME, message="Better")
    assert repository.messages[done.commit] == "Better"
    assert {*repository.newest} == {*ALWAYS, "model.safetensors", *own}
    model = palm.from_hub(NAME, backend="torch")
    assert_same_bits(palm.to_numpy(model), draw_weights(CONFIG, 1, "float32"))
    assert palm.tokenizer_of(model) is None
    before = len(repository.commits)
    assert palm.push_to_hub(tmp_path / "second", NAME).commit == done.commit
    assert len(repository.commits) == before  # nothing has changed


def test_a_branch_is_made_and_main_stays(hub, tmp_path):
    main_is = palm.push_to_hub(saved(tmp_path / "first"), NAME).commit
    done = palm.push_to_hub(saved(tmp_path / "second", seed=1), NAME, revision="trial")
    assert hub.repositories[NAME].branches == {"main": main_is, "trial": done.commit}
    for revision, seed in ((None, 0), ("trial", 1), (done.commit, 1)):
        model = palm.from_hub(NAME, backend="torch", revision=revision)
        assert_same_bits(palm.to_numpy(model), draw_weights(CONFIG, seed, "float32"))


def test_what_shall_be_private_is_not_uploaded_to_a_public_repository(hub, tmp_path, monkeypatch):
    path = saved(tmp_path / "model")
    palm.push_to_hub(path, NAME, private=True)
    assert hub.repositories[NAME].private
    palm.from_hub(NAME, backend="torch")
    hub.repositories["me/public"] = Repository({})
    with pytest.raises(palm.UpstreamError, match="repository must be private; got me/public"):
        palm.push_to_hub(path, "me/public", private=True)
    assert hub.repositories["me/public"].newest == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(palm.UpstreamError, match="set HF_TOKEN if it is private"):
        palm.from_hub(NAME, backend="torch")


@pytest.mark.parametrize(
    ("repository", "change", "told"),
    [
        ("my-palm", {}, "repository must be OWNER/NAME; got repository='my-palm'"),
        ("me/my/palm", {}, "repository must be OWNER/NAME"),
        ("me/a--b", {}, "got HFValidationError: .* Choose another name"),
        ("you/palm", {}, "403 .* Use a token that may write there"),
        (NAME, {"HF_TOKEN": "hf_wrong"}, "401 .* Set HF_TOKEN to a token that is valid"),
        (NAME, {"HF_TOKEN": None}, "token must be there to upload; got none. Set HF_TOKEN"),
        (NAME, {"HF_HUB_OFFLINE": True}, "OfflineModeIsEnabled: .* Unset HF_HUB_OFFLINE"),
        (NAME, {"ENDPOINT": "http://127.0.0.1:9"}, "Check the network, and try again"),
    ],
)
def test_each_reason_has_one_error_that_says_what_to_do(
    repository, change, told, hub, tmp_path, monkeypatch, capsys
):
    for name, value in change.items():
        if name != "HF_TOKEN":
            monkeypatch.setattr(constants, name, value)
        elif value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    path = saved(tmp_path / "model")
    with pytest.raises(palm.UpstreamError, match=told) as raised:
        palm.push_to_hub(path, repository)
    assert "\n" not in str(raised.value)
    assert main(["push", str(path), repository]) == 2
    assert capsys.readouterr().err == f"palm: {raised.value}\n"
    assert hub.repositories == {}


def test_what_is_no_checkpoint_or_license_makes_no_repository(hub, tmp_path):
    with pytest.raises(palm.CheckpointError, match="path must be a checkpoint"):
        palm.push_to_hub(tmp_path, NAME)
    with pytest.raises(palm.ConfigError, match="license must be a name"):
        palm.push_to_hub(saved(tmp_path / "model"), NAME, license="My License")
    assert hub.asked == []


def test_weights_that_are_damaged_make_no_repository_and_no_branch(hub, tmp_path):
    path = saved(tmp_path / "model")
    [file] = path.glob("weights-*")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(palm.CheckpointError, match=f"{file.name} must be as it was saved"):
        palm.push_to_hub(path, NAME, revision="trial")
    assert hub.asked == []
    content[-5] ^= 1
    file.write_bytes(content)
    palm.push_to_hub(path, NAME, revision="trial")  # the control
    assert "trial" in hub.repositories[NAME].branches


def test_without_the_package_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (
        lambda: palm.push_to_hub(saved(tmp_path / "model"), NAME),
        lambda: palm.from_hub(NAME, backend="torch"),
    ):
        with pytest.raises(palm.MissingFrameworkError, match=r'pip install "palm-dual\[hub\]"'):
            use()


def edited(name: str, **changes):
    """The files with other values in one of JSON; those that are None are left out."""

    def edit(files):
        values = {**json.loads(files[name]), **changes}
        left = {key: value for key, value in values.items() if value is not None}
        return {**files, name: json.dumps(left).encode()}

    return edit


def index_of(change):
    def edit(files):
        index = json.loads(files["model.safetensors.index.json"])
        change(index["weight_map"])
        return {**files, "model.safetensors.index.json": json.dumps(index).encode()}

    return edit


def without(name):
    return lambda files: {key: content for key, content in files.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("config.json"), "No such file .*config.json"),
        (without("model-00001-of-00002.safetensors"), "No such file"),
        (
            edited("config.json", model_type="llama"),
            "must have model_type='palm_dual'; got model_type='llama'",
        ),
        (edited("config.json", palm={**CONFIG.to_dict(), "depth": 3}), "blocks.2"),
        (edited("config.json", palm={**CONFIG.to_dict(), "depth": 10**9}), "must hold 1000000000 blocks"),
        (edited("config.json", palm=None), "a config"),
        (edited("model.safetensors.index.json", weight_map=None), "must be an object"),
        (index_of(lambda listed: listed.pop("norm.weight")), "norm.weight does not fit"),
        (index_of(lambda listed: listed.update({"x": "../x"})), "the name of a file"),
        (index_of(lambda listed: listed.update({"x": min(listed.values())})), "x does not fit"),
    ],
)
def test_a_repository_without_such_a_model_is_refused(change, told, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "MOST_BYTES", 9000)
    palm.push_to_hub(saved(tmp_path / "model"), NAME)
    repository = hub.repositories[NAME]
    assert "model-00001-of-00002.safetensors" in repository.newest
    commit = repository.commit("main", change(repository.newest), "changed")
    with pytest.raises(palm.CheckpointError, match=told) as raised:
        palm.from_hub(NAME, backend="torch")
    assert str(raised.value).startswith(f"hub:{NAME} at {commit} must be a folder that palm wrote")
    assert main(["import", "transformers", f"hub:{NAME}", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("config.json", "SHA-1"), ("model.safetensors", "SHA-256"), ("tokenizer.json", "SHA-1")],
)
def test_a_file_that_was_damaged_in_the_cache_is_refused(name, kind, hub, tmp_path):
    palm.push_to_hub(saved(tmp_path / "model", TOKENIZER), NAME)
    palm.from_hub(NAME, backend="torch")
    [file] = (tmp_path / "cache").glob(f"models--*/snapshots/*/{name}")
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.resolve().write_bytes(content)
    with pytest.raises(palm.UpstreamError, match=f"{name} must have the {kind} that the hub tells") as raised:
        palm.from_hub(NAME, backend="torch")
    assert f"Delete {file.resolve()}" in str(raised.value)
    file.resolve().unlink()
    assert_same_bits(palm.to_numpy(palm.from_hub(NAME, backend="torch")), WEIGHTS)


def test_the_card_is_one_that_the_hub_reads(hub, tmp_path):
    palm.push_to_hub(saved(tmp_path / "model", TOKENIZER), NAME, license="mit")
    card = huggingface_hub.ModelCard(hub.repositories[NAME].newest["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["palm"],
        "license": "mit",
    }
    assert f'AutoModelForCausalLM.from_pretrained("{NAME}", trust_remote_code=True)' in card.text
    assert f'palm.from_hub("{NAME}", backend="torch")' in card.text


def in_a_process(folder: Path, *words: object, **more: str) -> str:
    """What a Python prints that has the variables which a user sets, and nothing patched."""
    variables = {"HF_HOME": str(folder), "HF_TOKEN": "hf_mine", "HF_HUB_DISABLE_XET": "1", **more}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_use_the_variables_of_huggingface_hub(tmp_path):
    path, import_ = saved(tmp_path / "model", TOKENIZER), ("-m", "palm", "import", "transformers")
    with serving(Hub()) as hub:
        endpoint = {"HF_ENDPOINT": hub.address}
        told = in_a_process(tmp_path / "home", "-m", "palm", "push", path, NAME, "--private", **endpoint)
        commit = hub.repositories[NAME].branches["main"]
        assert told == f"{hub.address}/{NAME}/commit/{commit}\ncommit {commit}\n"
        assert hub.repositories[NAME].private
        in_a_process(tmp_path / "home", *import_, f"hub:{NAME}", tmp_path / "one", **endpoint)
    in_a_process(tmp_path / "home", *import_, f"hub:{NAME}", tmp_path / "two", HF_HUB_OFFLINE="1")
    for name in ("one", "two"):
        assert_same_bits(palm.to_numpy(palm.load(tmp_path / name, backend="torch")), WEIGHTS)


TRANSFORMERS = f"""
import sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{NAME}", trust_remote_code=True, dtype=torch.float64).eval()
ids = AutoTokenizer.from_pretrained("{NAME}")("the cat sat", return_tensors="pt").input_ids
with torch.no_grad():
    np.savez(sys.argv[1], ids=ids.numpy(), logits=model(ids).logits.numpy())
"""


@pytest.mark.whole
def test_transformers_loads_what_was_pushed_as_its_card_says(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_BYTES", 9000)
    palm.push_to_hub(saved(tmp_path / "model", TOKENIZER), NAME)
    in_a_process(tmp_path, "-c", TRANSFORMERS, tmp_path / "found.npz", HF_ENDPOINT=hub.address)
    found = np.load(tmp_path / "found.npz", allow_pickle=False)
    model = palm.convert(palm.from_hub(NAME, backend="torch"), backend="torch", dtype="float64")
    assert found["ids"][0].tolist() == palm.tokenizer_of(model).encode("the cat sat").tolist()
    exact = palm.activations(model, found["ids"])["logits"]
    assert rms(found["logits"] - exact) <= 1e-13 * rms(exact)
    other = palm.activations(model, found["ids"][:, ::-1])["logits"]
    assert rms(found["logits"] - other) > 0.01 * rms(exact)

"""A checkpoint keeps the tokenizer's file beside the weights, verified; without one it is as of 0.1.0."""

import json

import numpy as np
import pytest
from cases import ROOT, assert_explains, draw_weights, small

from palm import CheckpointError, DataError
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.manifest import MANIFEST
from palm.checkpoint.progress import MOMENTS, Progress, load_progress
from palm.checkpoint.tokenizer import checkpoint_tokenizer, kept_file
from palm.data.tokenizer import ByteTokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.files.sealed import sealed

WRITTEN = ROOT / "tests" / "fixtures" / "v0_1_0"
CONFIG = small()
# Kept and compared, and not parsed, here.
FILES = {name: FileTokenizer(f"words.{name}", f"content of {name}".encode()) for name in ("json", "model")}


def save(path, tokenizer=None):
    weights = draw_weights(CONFIG)
    moments = {f"{moment}.{name}": np.abs(array) for moment in MOMENTS for name, array in weights.items()}
    progress = Progress({"step": 1, "row": 0, "rewinds": 0, "spike": 0}, moments)
    return save_arrays(CONFIG, weights, path, progress=progress, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", FILES)
def test_a_tokenizer_comes_back_with_the_weights(tmp_path, kind):
    path = save(tmp_path / "checkpoint", FILES[kind])
    found = checkpoint_tokenizer(path)
    assert (found.content, found.digest) == (FILES[kind].content, FILES[kind].digest)
    assert (path / f"tokenizer.{kind}").read_bytes() == FILES[kind].content
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["version"] == 2
    assert manifest["files"][f"tokenizer.{kind}"] == {
        "bytes": len(found.content),
        "sha256": found.digest,
    }
    assert load_arrays(path)[0] == load_progress(path)[0] == CONFIG


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("damage", [lambda good: good[:-1], lambda good: b"C" + good[1:], None])
def test_a_damaged_tokenizer_is_found_by_every_way_of_loading(tmp_path, kind, damage):
    path = save(tmp_path / "checkpoint", FILES[kind])
    file = path / f"tokenizer.{kind}"
    good = file.read_bytes()
    file.unlink() if damage is None else file.write_bytes(damage(good))
    for load in (load_arrays, load_progress, checkpoint_tokenizer):
        with pytest.raises(CheckpointError, match=file.name):
            load(path)
    file.write_bytes(good)
    assert load_arrays(path)[0] == CONFIG


def test_a_checkpoint_without_a_tokenizer_has_none(tmp_path):
    path = save(tmp_path / "checkpoint")
    assert checkpoint_tokenizer(path) is None
    assert json.loads((path / MANIFEST).read_text())["version"] == 1


@pytest.mark.parametrize("name", ["checkpoint-torch", "checkpoint-jax", "checkpoint-bfloat16"])
def test_without_a_tokenizer_the_files_are_those_of_version_0_1_0_to_the_byte(tmp_path, name):
    config, weights = load_arrays(WRITTEN / name)
    again = save_arrays(config, weights, tmp_path / "again")
    files = [file.name for file in (WRITTEN / name).iterdir()]
    assert sorted(file.name for file in again.iterdir()) == sorted(files)
    for file in files:
        assert (again / file).read_bytes() == (WRITTEN / name / file).read_bytes()


def test_a_version_that_knew_no_tokenizers_lists_none(tmp_path):
    path = save(tmp_path / "checkpoint", FILES["json"])
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["seal"]
    (path / MANIFEST).write_text(sealed({**manifest, "version": 1}))
    with pytest.raises(CheckpointError, match=r"files\.tokenizer\.json must name tensors"):
        load_arrays(path)


def test_a_run_of_version_0_1_0_has_its_tokenizer_for_its_checkpoints():
    run = WRITTEN / "run-jax-tokenizer"
    [step] = run.glob("step-*")
    for path in (run, step):
        found = checkpoint_tokenizer(path)
        assert found.content == (run / "tokenizer.json").read_bytes()
    assert isinstance(checkpoint_tokenizer(WRITTEN / "run-torch"), ByteTokenizer)
    assert checkpoint_tokenizer(WRITTEN / "checkpoint-torch") is None


def test_a_tokenizer_without_a_file_cannot_be_kept():
    class Words:
        name, digest, num_tokens = "words", "0", 3

    assert kept_file(None) is kept_file(ByteTokenizer()) is None
    assert kept_file(FILES["json"]) is FILES["json"]
    with pytest.raises(DataError) as raised:
        kept_file(Words())
    assert_explains(raised, "tokenizer must have a file to be kept", "tokenizer=", "Words", "pass the path")

"""Checkpoints whose checksums all hold but whose content does not fit: made by hand, or by others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import assert_explains, draw_weights, small
from safetensors.numpy import save

from palm import CheckpointError
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.manifest import CONFIG, FORMAT, MANIFEST, VERSION, fingerprint
from palm.files.sealed import sealed

MODEL = small()
WEIGHTS = draw_weights(MODEL)
FIRST = dict(list(WEIGHTS.items())[:4])
REST = dict(list(WEIGHTS.items())[4:])


def forge(
    folder: Path,
    *files: dict[str, np.ndarray] | bytes,
    config: str = MODEL.to_json(),
    edit: Callable[[dict[str, Any]], Any] = lambda manifest: None,
) -> Path:
    """A checkpoint directory with these weights files, and a manifest that vouches for every byte."""
    (folder / CONFIG).write_text(config)
    entries: dict[str, Any] = {CONFIG: fingerprint(folder / CONFIG)}
    for i, content in enumerate(files):
        file = folder / f"{i}.safetensors"
        file.write_bytes(content if isinstance(content, bytes) else save(content))
        tensors = dict.fromkeys(WEIGHTS if isinstance(content, bytes) else content, 0)
        entries[file.name] = {**fingerprint(file), "tensors": tensors}
    manifest = {"format": FORMAT, "version": VERSION, "dtype": "float64", "files": entries}
    edit(manifest)
    (folder / MANIFEST).write_text(sealed(manifest))
    return folder


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        load_arrays(folder)
    assert_explains(raised, *parts)


def raw(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_what_fits_is_loaded_whoever_made_it(tmp_path):
    config, arrays = load_arrays(forge(tmp_path, FIRST, REST))
    assert config == MODEL
    assert set(arrays) == set(WEIGHTS)


def spoiled(name: str, spoil: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    return {**REST, name: spoil(REST[name])}


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ({n: a for n, a in REST.items() if n != "norm"}, ["miss norm.", "Check that"]),
        ({**REST, "gamma": REST["norm"]}, ["have unknown gamma.", "Check that"]),
        (spoiled("norm", lambda a: a[:3]), ["1.safetensors: norm must have shape (6,)", "shape=(3,)"]),
        (spoiled("norm", lambda a: a.astype(np.float32)), ["1.safetensors: norm must have dtype", "float32"]),
        (spoiled("norm", lambda a: a.astype(np.int64)), ["1.safetensors: norm must have dtype", "int64"]),
        (spoiled("norm", lambda a: a * np.nan), ["1.safetensors: norm must be finite", "nan at (0,)"]),
        (spoiled("norm", lambda a: -a * np.inf), ["1.safetensors: norm must be finite", "-inf at (0,)"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_tensor_that_does_not_fit_is_named_with_its_file(tmp_path, rest, parts):
    assert_refused(forge(tmp_path, FIRST, rest), str(tmp_path), *parts)


def test_a_tensor_in_two_files_is_named(tmp_path):
    assert_refused(
        forge(tmp_path, FIRST, {**REST, "embedding": WEIGHTS["embedding"]}),
        str(tmp_path / "1.safetensors"),
        "embedding must occur once; got it in two files",
        "Save it again",
    )


def test_a_tensor_twice_in_one_header_is_named(tmp_path):
    """The safetensors library takes the last of the two without a word."""
    content = save(WEIGHTS)
    start = 8 + int.from_bytes(content[:8], "little")
    rows = json.loads(content[8:start])
    again = json.dumps({"norm": rows["norm"]})[1:-1].encode()
    header = content[8:start].rstrip().removesuffix(b"}") + b"," + again + b"}"
    folder = forge(tmp_path, raw(header, content[start:]))
    assert_refused(folder, str(folder / "0.safetensors"), "norm must occur once; got it twice", "Restore")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "must be valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "must name num_tokens"),
        (MODEL.to_json().replace('"dim": 6', '"dim": 0'), "dim=0"),
        (MODEL.to_json().replace('"alibi"', "null"), "config must be resolved"),
        (MODEL.to_json().replace('"init"', '"start"'), "start='paper'"),
    ],
)
def test_a_config_that_is_none_or_is_open_is_refused(tmp_path, config, words):
    folder = forge(tmp_path, WEIGHTS, config=config)
    assert_refused(folder, f"{folder / CONFIG} must hold a resolved config", words)


def test_weights_of_another_config_are_refused(tmp_path):
    endless = MODEL.to_json().replace('"depth": 2', f'"depth": {2**62}')
    assert endless != MODEL.to_json()
    (tmp_path / "endless").mkdir()
    assert_refused(forge(tmp_path / "endless", WEIGHTS, config=endless), f"must hold {2**62} blocks; got ")
    assert_refused(forge(tmp_path, WEIGHTS, config=small(dim=8).to_json()), "must have shape (13, 8)")
    assert_refused(forge(tmp_path, WEIGHTS, config=small(depth=3).to_json()), "miss blocks.2.norm")


@pytest.mark.parametrize(
    ("field", "value"), [("version", 4), ("version", "1"), ("version", None), ("format", "other")]
)
def test_another_format_or_version_is_refused(tmp_path, field, value):
    folder = forge(tmp_path, WEIGHTS, edit=lambda manifest: manifest.update({field: value}))
    assert_refused(folder, f"{folder / MANIFEST} must be of format", f"{field}={value!r}", "Read it with")


def test_a_manifest_that_lists_no_config_is_refused(tmp_path):
    folder = forge(tmp_path, WEIGHTS, edit=lambda manifest: manifest["files"].pop(CONFIG))
    assert_refused(folder, f"{folder / CONFIG} must be listed in {MANIFEST}")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"norm": 3}',
        b'{"norm": {"dtype": "X9", "shape": [6], "data_offsets": [0, 48]}}',
        b'{"norm": {"dtype": "F64", "shape": [6], "data_offsets": [0, 480000]}}',
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, header):
    folder = forge(tmp_path, raw(header, bytes(48)))
    assert_refused(folder, f"{folder / '0.safetensors'} must be a safetensors file", "Restore")


@pytest.mark.parametrize("content", [b"", b"garbage" * 10, raw(b"{{"), raw(b"\xff\xff"), b"\xff" * 20])
def test_a_file_of_anything_is_refused(tmp_path, content):
    folder = forge(tmp_path, content)
    assert_refused(folder, f"{folder / '0.safetensors'} must be a safetensors file", "Restore")


def drop_tensors(manifest: dict[str, Any]) -> None:
    del manifest["files"]["0.safetensors"]["tensors"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.pop("dtype"),
        lambda manifest: manifest.update(files=[CONFIG]),
        lambda manifest: manifest["files"].update({CONFIG: 3}),
        lambda manifest: manifest["files"]["0.safetensors"].pop("sha256"),
        drop_tensors,
    ],
    ids=["no files", "no dtype", "files a list", "an entry a number", "no sha256", "no tensors"],
)
def test_a_manifest_without_what_it_needs_is_refused(tmp_path, edit):
    assert_refused(forge(tmp_path, WEIGHTS, edit=edit), str(tmp_path))

"""Checkpoints that an enemy made: whatever is in them, the answer is a `CheckpointError`, and soon."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
from cases import assert_same_bits, at_most, draw_weights, small
from damage import CONFIG as MODEL
from damage import OLD, save_state
from safetensors.numpy import save

from palm import CheckpointError
from palm.checkpoint import manifest as manifests
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.locate import checkpoint_path, checkpoints_of
from palm.checkpoint.manifest import CONFIG, MANIFEST, RUN_SETTINGS, TRAINING, fingerprint
from palm.checkpoint.progress import load_progress, summarise
from palm.files.sealed import sealed

WEIGHTS = "weights-00001-of-00001.safetensors"
LOADERS = (load_arrays, load_progress, summarise)


@pytest.fixture
def path(tmp_path):
    """A whole checkpoint of a run."""
    return save_arrays(MODEL, OLD[0], tmp_path / "checkpoint", progress=OLD[1])


def reseal(path, edit=lambda manifest: None, **contents):
    """Give files other contents, and have the manifest vouch for them."""
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["seal"]
    for name, content in contents.items():
        (path / name).write_bytes(content)
        manifest["files"][name] |= fingerprint(path / name)
    edit(manifest)
    (path / MANIFEST).write_text(sealed(manifest))


def raw(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def soon(load, path, match, seconds=3.0):
    with at_most(seconds), pytest.raises(CheckpointError, match=match):
        load(path)


def as_fifo(file):
    os.mkfifo(file)


def as_socket(file):
    with socket.socket(socket.AF_UNIX) as listener:
        old = os.getcwd()
        os.chdir(file.parent)  # a socket's name is short
        try:
            listener.bind(file.name)
        finally:
            os.chdir(old)


def as_endless_device(file):
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [as_fifo, as_socket, as_endless_device])
@pytest.mark.parametrize("name", [MANIFEST, CONFIG, TRAINING, WEIGHTS])
def test_what_is_no_regular_file_is_refused_at_once(path, name, make):
    (path / name).unlink()
    make(path / name)
    soon(load_progress, path, "manifest" if name == MANIFEST else name)


@pytest.mark.parametrize("name", [CONFIG, TRAINING, WEIGHTS])
def test_a_file_of_terabytes_is_refused_by_its_size(path, name):
    os.truncate(path / name, 5 << 40)
    soon(load_progress, path, r"bytes long; got 5497558138880")


def test_a_manifest_of_gigabytes_is_not_read(path):
    os.truncate(path / MANIFEST, 1 << 36)
    soon(load_arrays, path, "more than")


GARBAGE = {
    "empty": b"",
    "garbage": b"garbage",
    "no UTF-8": b'{"step": 300, "note": "\xff"}',
    "a mark at the start": b"\xef\xbb\xbf{}",
    "brackets": b"[" * 100_000,
    "a list": b"[300]",
    "a key twice": b'{"step": 300, "step": 300}',
    "a long number": b'{"step": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"step": NaN}',
    "infinity": b'{"step": 1e999}',
}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_sealed_training_file_of_garbage_is_refused(path, content, load):
    reseal(path, **{TRAINING: content})
    soon(load, path, f"{TRAINING} must describe a run")


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_sealed_file_of_garbage_is_refused(path, content, name):
    reseal(path, **{name: raw(content) if name == WEIGHTS else content})
    soon(load_arrays, path, name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("step", value) for value in ("x", -3, 6.0, True, None, 2**70)),
        *(("row", value) for value in ("x", -1, None)),
        *((name, value) for name in ("rewinds", "spike") for value in (None, "1")),
        *(("val_loss", value) for value in ("x", True, [1])),
        ("backend", "numpy"),
        ("recipe", [1]),
    ],
)
@pytest.mark.parametrize("load", LOADERS)
def test_a_sealed_training_file_of_other_types_is_refused(path, key, value, load):
    fields = {**OLD[1].fields, key: value}
    reseal(path, **{TRAINING: json.dumps(fields).encode()})
    soon(load, path, rf"{TRAINING} must describe a run; {key} must be")


@pytest.mark.parametrize("key", ["step", "row", "rewinds", "spike"])
def test_a_sealed_training_file_without_a_key_is_refused(path, key):
    fields = {name: value for name, value in OLD[1].fields.items() if name != key}
    reseal(path, **{TRAINING: json.dumps(fields).encode()})
    soon(load_progress, path, f"it must name {key}")


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        "",
        "a\0b",
        "\ud800",
        "\x1b[2J",
        "x" * 300,
    ],
)
def test_a_name_that_is_none_of_a_file_of_the_folder_is_refused(path, name):
    outside = path.parent / "outside.safetensors"
    shutil.copy(path / WEIGHTS, outside)

    def edit(manifest):
        manifest["files"][name] = manifest["files"].pop(WEIGHTS)

    reseal(path, edit)
    with pytest.raises(CheckpointError, match="must be the name of a file") as raised:
        load_arrays(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", -1),
        ("bytes", True),
        ("bytes", "3"),
        ("sha256", None),
        ("sha256", "x"),
        ("tensors", {"norm": -1}),
    ],
)
def test_an_entry_of_other_types_is_refused(path, key, value):
    reseal(path, lambda manifest: manifest["files"][WEIGHTS].update({key: value}))
    soon(load_arrays, path, f"must describe a checkpoint; .*{key}")


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_version_that_only_equals_one_is_refused(path, version):
    reseal(path, lambda manifest: manifest.update(version=version))
    soon(load_arrays, path, "version must be a whole number")


def test_a_checksum_of_a_tensor_that_no_file_holds_is_refused(path):
    reseal(path, lambda manifest: manifest["files"][WEIGHTS]["tensors"].update(ghost=3))
    soon(load_arrays, path, "ghost does not fit")


def test_a_file_exchanged_between_looks_is_never_loaded(path, monkeypatch):
    """What is read is what was verified: each file is opened once."""
    other = save(draw_weights(MODEL, 1))
    opened = []

    def exchange(file, *, original=manifests.reading):
        opened.append(file.name)
        stream = original(file)
        if file.name == WEIGHTS:
            file.unlink()
            file.write_bytes(other)
        return stream

    right = load_arrays(path)[1]
    monkeypatch.setattr(manifests, "reading", exchange)
    try:
        found = load_arrays(path)[1]
    except CheckpointError:
        found = right
    assert_same_bits(found, right)
    assert opened.count(WEIGHTS) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "got dtype='F8_E4M3'"),
        ({"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}, "got dtype='F4'"),
        ({"dtype": "F64", "shape": [2**63], "data_offsets": [0, 8]}, "must be a whole number"),
        ({"dtype": "F64", "shape": [True], "data_offsets": [0, 8]}, "must be a whole number"),
        ({"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}, "must be a whole number"),
        ({"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}, "the bytes of its shape"),
        ({"dtype": "F64", "shape": [1], "data_offsets": [8, 0]}, "the bytes of its shape"),
        ({"dtype": "F64", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "must be 8 bytes long"),
        ({"dtype": "F64", "shape": [1], "data_offsets": [8, 16]}, "must begin where another tensor ends"),
        ({"dtype": "F64", "shape": [1], "data_offsets": [0, 8, 9]}, "two data_offsets"),
        ({"dtype": "F64", "shape": [1]}, "must name data_offsets"),
    ],
)
def test_a_header_of_strange_tensors_is_refused_before_anything_is_allocated(path, row, told):
    reseal(path, **{WEIGHTS: raw(json.dumps({"norm": row}).encode(), bytes(8))})
    soon(load_arrays, path, told)


def test_a_header_of_twenty_thousand_tensors_takes_a_moment(path):
    rows = {
        f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(20_000)
    }
    header = json.dumps(rows).encode()
    for content in (header, header[:-1] + b"," + json.dumps({"t19999": rows["t19999"]}).encode()[1:]):
        reseal(path, **{WEIGHTS: raw(content, bytes(80_000))})
        soon(load_arrays, path, "does not fit|must occur once", seconds=2)


def test_a_config_of_sixty_thousand_keys_takes_a_moment(path):
    keys = ",".join(f'"k{i}":0' for i in range(60_000))
    reseal(path, **{CONFIG: f'{{{keys},"k59999":0}}'.encode()})
    soon(load_arrays, path, "must occur once", seconds=2)


def test_a_folder_that_is_not_called_after_its_step_is_refused(tmp_path):
    right = save_state(OLD, tmp_path / "step-00000300")
    for load in LOADERS:
        load(right)
    wrong = tmp_path / "step-00000308"
    right.rename(wrong)
    for load in LOADERS:
        soon(load, wrong, r"must be called after its step; got step=300\. Rename it to step-00000300")


@pytest.mark.parametrize("name", ["step-٠٠٠٠٠٠٠١", "step-00000001 ", "step-1"])
def test_digits_of_other_scripts_are_no_step(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "step-00000002").mkdir()
    assert list(checkpoints_of(tmp_path)) == [2]


def test_the_best_checkpoint_is_looked_for_without_waiting(tmp_path):
    (tmp_path / RUN_SETTINGS).write_text("{}")
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-00000002" / TRAINING).write_text('{"step": 2, "val_loss": 1.0}')
    os.mkfifo(tmp_path / "step-00000001" / TRAINING)
    assert checkpoint_path(tmp_path / "best").name == "step-00000002"


def test_names_that_no_file_has_are_no_checkpoint():
    for name in ("a\0b", "\ud800"):
        with pytest.raises(CheckpointError, match="must be a checkpoint directory"):
            load_arrays(name)


def test_a_good_checkpoint_still_loads(path):
    """The twin of all above."""
    reseal(path)
    assert_same_bits(load_arrays(path)[1], OLD[0])
    assert small().depth == MODEL.depth
    assert np.array_equal(load_progress(path)[1]["norm"], OLD[0]["norm"])

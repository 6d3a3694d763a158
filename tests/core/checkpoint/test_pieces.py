"""Checkpoints in pieces: any box comes back bit for bit, from the pieces alone that it overlaps."""

import json
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES, assert_same_bits, at_most, draw_weights, small
from damage import (
    CONFIG,
    FIELDS,
    NEW,
    OLD,
    draw_moments,
    draw_state,
    entry_of_pieces,
    save_state,
    undetected,
)
from safetensors import safe_open
from safetensors.numpy import load as parse
from safetensors.numpy import load_file, save_file
from teams import cut, together

from palm import CheckpointError
from palm.checkpoint import boxes as readers
from palm.checkpoint import read as whole_reader
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.manifest import MANIFEST
from palm.checkpoint.progress import load_progress, summarise
from palm.checkpoint.team import save_pieces
from palm.files.sealed import sealed
from palm.spec.boxes import Box, Piece

STATE = {**OLD[0], **OLD[1].moments}
CONFIG_SHAPE = OLD[0]["embedding"].shape
FILES = [f"pieces-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


def save(path: Path, arrays=STATE, *, config=CONFIG, fields=FIELDS, owners: int = 3, seed: int = 0) -> Path:
    dealt = cut(arrays, owners, seed)
    results = together(
        owners, lambda team: save_pieces(config, dealt[team.process], path, team, fields=fields)
    )
    assert results == [path] * owners
    return path


@pytest.fixture
def path(tmp_path):
    """A whole checkpoint of a run, in pieces."""
    return save(tmp_path / "checkpoint")


def boxes_of(shape: tuple[int, ...], count: int, seed: int = 0):
    rng = random.Random(seed)
    yield (0,) * len(shape), shape
    for _ in range(count):
        start = tuple(rng.randrange(size) for size in shape)
        yield start, tuple(rng.randint(1, size - at) for at, size in zip(start, shape, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_box_of_any_tensor_comes_back_bit_for_bit(tmp_path, dtype):
    config = small(tie_embeddings=False, share_kv=False)
    weights = draw_weights(config, dtype=dtype)
    weights["norm"][:3] = 0.0, -0.0, 1e-40
    state = weights | draw_moments(weights)
    in_pieces = Boxes(save(tmp_path / "pieces", state, config=config))
    assert (in_pieces.config, in_pieces.dtype, in_pieces.fields) == (config, weights["norm"].dtype, FIELDS)
    for name, array in state.items():
        for start, shape in boxes_of(array.shape, 3):
            expected = array[Box(start, shape).within(Box((0,) * array.ndim, array.shape))]
            assert_same_bits({name: in_pieces.read(name, start, shape)}, {name: expected})


def test_a_part_is_read_into_any_room(path):
    tensors = Boxes(path).tensors
    for name, array in STATE.items():
        start, shape = list(boxes_of(array.shape, 1))[-1]
        at = Box(start, shape).within(Box((0,) * array.ndim, array.shape))
        for room in (np.zeros(shape, array.dtype), np.zeros(shape[::-1], array.dtype).T):
            tensors[name].read_into(room, at)
            assert_same_bits({name: room}, {name: array[at]})
    narrow = np.zeros(CONFIG_SHAPE[::-1], np.float32).T
    Boxes(path).as_type("float32")["embedding"].read_into(narrow, (slice(None), slice(None)))
    assert np.array_equal(narrow, STATE["embedding"].astype(np.float32))
    with pytest.raises(ValueError, match="must lie in a tensor"):
        Boxes(path).read_into(np.zeros((2, 2)), "embedding", CONFIG_SHAPE)


@pytest.mark.parametrize("turned", [False, True])
def test_a_part_is_read_without_a_second_copy_of_it(tmp_path, turned):
    config = small(num_tokens=40_000, dim=64)
    weights = draw_weights(config)
    found = Boxes(save(tmp_path / "large", weights, config=config, fields=None, owners=1)).tensors[
        "embedding"
    ]
    shape = weights["embedding"].shape
    room = np.zeros(shape[::-1], weights["embedding"].dtype).T if turned else np.zeros(shape)
    whole = tuple(slice(0, size) for size in shape)
    tracemalloc.start()
    try:
        found.read_into(room, whole)
        straight = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        copied = found[whole]
        assert tracemalloc.get_traced_memory()[1] > room.nbytes
    finally:
        tracemalloc.stop()
    assert straight < room.nbytes / 2
    assert np.array_equal(room, copied)


def test_a_checkpoint_of_whole_tensors_is_read_by_the_same_reader(tmp_path):
    found = Boxes(save_state(OLD, tmp_path / "whole"))
    for name, array in STATE.items():
        start, shape = list(boxes_of(array.shape, 1))[-1]
        expected = array[Box(start, shape).within(Box((0,) * array.ndim, array.shape))]
        assert_same_bits({name: found.read(name, start, shape)}, {name: expected})


def test_the_whole_is_loaded_as_one_of_whole_tensors_is(tmp_path, path):
    config, weights, progress = load_progress(path)
    assert config == CONFIG
    assert_same_bits(weights, OLD[0])
    assert_same_bits(progress.moments, OLD[1].moments)
    assert progress.fields == FIELDS
    assert_same_bits(load_arrays(path)[1], OLD[0])
    found, whole = summarise(path), summarise(save_state((OLD[0], draw_state()[1]), tmp_path / "whole"))
    assert (found.config, found.dtype) == (whole.config, whole.dtype)
    model = save(tmp_path / "model", OLD[0], fields=None)
    assert_same_bits(load_arrays(model)[1], OLD[0])
    with pytest.raises(CheckpointError, match="must be a checkpoint of a run"):
        load_progress(model)


def test_it_is_a_manifest_and_a_safetensors_file_of_each_process(path):
    names = sorted(entry.name for entry in path.iterdir())
    assert names == ["config.json", "manifest.json", *FILES, "training.json"]
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["version"] == 3
    listed = {}
    for file in FILES:
        for key, array in load_file(path / file).items():
            name, _, start = key.partition("@")
            listed.setdefault(name, np.full(STATE[name].shape, np.nan))
            begin = tuple(map(int, start.split(",")))
            listed[name][Box(begin, array.shape).within(Box((0,) * array.ndim, (9**9,) * array.ndim))] = array
    assert_same_bits(listed, STATE)


def test_only_the_files_that_a_box_overlaps_are_opened(path, monkeypatch):
    found, opened = Boxes(path), []
    monkeypatch.setattr(
        readers,
        "open_regular",
        lambda file, original=readers.open_regular: opened.append(file.name) or original(file),
    )
    entries = json.loads((path / MANIFEST).read_text())["files"]
    for file in FILES:
        row = entries[file]["pieces"]["embedding"][0]
        opened.clear()
        found.read("embedding", tuple(row[1:3]), (1, 1))
        assert opened == [file]
    opened.clear()
    found.read("embedding", (0, 0), CONFIG_SHAPE)
    assert {*opened} == {*FILES}


def test_damage_is_found_where_it_is_read_and_only_there(path):
    entries = json.loads((path / MANIFEST).read_text())["files"]
    key = next(iter(load_file(path / FILES[1])))
    name, _, start = key.partition("@")
    content = bytearray((path / FILES[1]).read_bytes())
    header = int.from_bytes(content[:8], "little")
    first = json.loads(content[8 : 8 + header])[key]["data_offsets"][0]
    content[8 + header + first] ^= 1
    (path / FILES[1]).write_bytes(content)
    found = Boxes(path)
    begin = tuple(map(int, start.split(",")))
    with pytest.raises(
        CheckpointError, match=f"{FILES[1]} must be as it was saved; .* damaged in {name} from"
    ):
        found.read(name, begin, (1,) * len(begin))
    with pytest.raises(
        CheckpointError, match=f"{FILES[1]} must be as it was saved; .* damaged in {name} from"
    ):
        load_arrays(path)
    others = [other for file in (FILES[0], FILES[2]) for other in entries[file]["pieces"]]
    for other in others:
        row = next(
            entries[f]["pieces"][other][0] for f in (FILES[0], FILES[2]) if other in entries[f]["pieces"]
        )
        axes = len(row) // 2
        found.read(other, tuple(row[1 : 1 + axes]), tuple(row[1 + axes :]))
    (path / FILES[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{FILES[1]} must be a file that can be read.* {name}"):
        found.read(name, begin, (1,) * len(begin))


def test_a_header_that_says_the_same_in_other_bytes_is_damage(path):
    good = (path / FILES[0]).read_bytes()
    changed = re.sub(rb'("dtype":"F64"),("shape":\[[^]]*\])', rb"\2,\1", good, count=1)
    assert changed != good
    (path / FILES[0]).write_bytes(changed)
    assert_same_bits(load_file(path / FILES[0]), parse(good))
    for read in (load_arrays, load_progress):
        with pytest.raises(CheckpointError, match=f"{FILES[0]} must be .* damaged in its header"):
            read(path)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0"], ids=["cut", "longer"])
def test_a_file_of_another_size_is_refused_before_it_is_read(path, change):
    name = json.loads((path / MANIFEST).read_text())["files"][FILES[0]]["pieces"]
    (path / FILES[0]).write_bytes(change((path / FILES[0]).read_bytes()))
    first = next(iter(name))
    axes = len(name[first][0]) // 2
    with pytest.raises(CheckpointError, match="bytes long; got"):
        Boxes(path).read(first, tuple(name[first][0][1 : 1 + axes]), (1,) * axes)


def test_every_kind_of_damage_is_explained(path):
    rng = random.Random(0)
    assert [missed for _ in range(60) for missed in undetected(path, rng)] == []


def edited(path: Path, edit) -> Path:
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["seal"]
    edit(manifest["files"], manifest)
    (path / MANIFEST).write_text(sealed(manifest))
    return path


def row_of(files, name: str = "embedding", file: str = FILES[0]) -> list[int]:
    return files[file]["pieces"][name][0]


def moved(files, _):
    rows = files[FILES[0]]["pieces"]["embedding"]
    rows.append(list(rows[0]))


EDITS = {
    "a gap": (lambda files, _: files[FILES[0]]["pieces"]["embedding"].pop(), "each element of embedding"),
    "a tensor gone": (
        lambda files, _: [files[file]["pieces"].pop("second.norm", None) for file in FILES],
        r"manifest.json: each element of second.norm must lie in one piece; got \(0,\) in 0",
    ),
    "twice": (moved, r"safetensors: each element of embedding must lie in one piece; got \(\d+, \d+\) in 2"),
    "unknown": (
        lambda files, _: files[FILES[0]]["pieces"].update(ghost=[[0, 0, 1]]),
        "ghost must be a tensor",
    ),
    "beyond": (lambda files, _: row_of(files).__setitem__(3, 10**6), "a piece of embedding must be a CRC-32"),
    "empty": (lambda files, _: row_of(files).__setitem__(3, 0), "a piece of embedding must be a CRC-32"),
    "huge": (lambda files, _: row_of(files).__setitem__(1, 2**62), "a piece of embedding must be a CRC-32"),
    "too long": (lambda files, _: row_of(files).append(1), "a piece of embedding must be a CRC-32"),
    "no row": (lambda files, _: row_of(files).clear(), "a piece of embedding must be a CRC-32"),
    "checksum": (
        lambda files, _: row_of(files).__setitem__(0, 2**32),
        "a piece of embedding must be a CRC-32",
    ),
    "negative": (lambda files, _: row_of(files).__setitem__(1, -1), "must describe a checkpoint"),
    "a text": (lambda files, _: row_of(files).__setitem__(1, "0"), "must describe a checkpoint"),
    "an object": (lambda files, _: files[FILES[0]].update(pieces=[]), "must describe a checkpoint"),
    "no pieces": (lambda files, _: files[FILES[0]].pop("pieces"), "must name pieces"),
    "too small": (lambda files, _: files[FILES[0]].update(bytes=100), "must have room for its pieces"),
    "dtype": (lambda _, manifest: manifest.update(dtype="bfloat16"), "must have .* as bfloat16"),
    "tensors": (lambda _, manifest: manifest.update(version=1), "must name sha256"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_sealed_manifest_that_does_not_fit_is_refused(path, name):
    edit, words = EDITS[name]
    edited(path, edit)
    with at_most(20):
        with pytest.raises(CheckpointError, match=words) as raised:
            Boxes(path).read("embedding", (0, 0), CONFIG_SHAPE)
        assert str(path) in str(raised.value)
        for load in (load_arrays, load_progress):
            with pytest.raises(CheckpointError):
                load(path)


def test_tensors_of_another_shape_or_name_than_listed_are_refused(path):
    arrays = load_file(path / FILES[0])
    key = min(key for key in arrays if key.startswith("embedding"))
    name, _, start = key.partition("@")
    begin = tuple(map(int, start.split(",")))
    wrong = {
        "shape": {**arrays, key: arrays[key].reshape(-1)},
        "name": {key.replace(name, "embeddinG"): arrays.pop(key), **arrays},
    }
    for what, content in wrong.items():
        save_file(content, path / FILES[0])
        edited(path, lambda files, _: files[FILES[0]].update(entry_of_pieces(path / FILES[0])))
        with pytest.raises(CheckpointError, match=rf"{re.escape(FILES[0])} must have {key} as float64\["):
            Boxes(path).read(name, begin, (1, 1))
        with pytest.raises(CheckpointError, match=rf"{re.escape(FILES[0])} must have {key} as float64\["):
            load_arrays(path)
        assert what


def test_numbers_that_are_not_finite_are_never_given_out(path):
    """A file that somebody else made, with checksums that hold."""
    file = path / FILES[0]
    arrays = load_file(file)
    key = min(key for key in arrays if key.startswith("embedding"))
    arrays[key][0, 0] = np.nan
    save_file(arrays, file)

    def edit(files, _):
        row = next(
            row for row in files[FILES[0]]["pieces"]["embedding"] if f"embedding@{row[1]},{row[2]}" == key
        )
        row[0] = zlib.crc32(arrays[key].tobytes())
        files[FILES[0]].update(entry_of_pieces(file))

    edited(path, edit)
    begin = tuple(map(int, key.partition("@")[2].split(",")))
    with pytest.raises(CheckpointError, match=f"{FILES[0]}: embedding from .* must be finite"):
        Boxes(path).read("embedding", begin, (1, 1))
    with pytest.raises(CheckpointError, match=f"{FILES[0]}: embedding from .* must be finite"):
        load_arrays(path)


@pytest.mark.parametrize("load", [load_arrays, load_progress])
def test_a_checkpoint_that_is_exchanged_while_it_is_read_is_never_mixed_with_the_other(
    path, monkeypatch, load
):
    other = save(path.with_name("other"), {**NEW[0], **NEW[1].moments})

    def exchanged(*given):
        path.rename(path.with_name("old"))
        other.rename(path)
        return Boxes(*given)

    monkeypatch.setattr(whole_reader, "Boxes", exchanged)
    with pytest.raises(CheckpointError, match="checksum differs"):
        load(path)


def test_what_is_not_in_a_tensor_cannot_be_asked_for(path):
    for name, start, shape in (("ghost", (0,), (1,)), ("norm", (5,), (2,)), ("norm", (0, 0), (1, 1))):
        with pytest.raises(ValueError, match="box must lie in a tensor"):
            Boxes(path).read(name, start, shape)


def test_a_box_is_read_in_parts_of_any_size(path, monkeypatch):
    monkeypatch.setattr(readers, "rows_of_a_block", lambda *_: 1)
    found = Boxes(path)
    assert_same_bits({"x": found.read("embedding", (0, 0), CONFIG_SHAPE)}, {"x": OLD[0]["embedding"]})


def test_a_manifest_of_many_pieces_is_read_in_linear_time(tmp_path):
    config = small(depth=1, num_tokens=20_000)
    weights = draw_weights(config)
    embedding = weights.pop("embedding")
    pieces = [Piece(name, (0,) * array.ndim, array) for name, array in weights.items()]
    pieces += [Piece("embedding", (row, 0), embedding[row : row + 1]) for row in range(len(embedding))]
    path = tmp_path / "checkpoint"
    assert together(1, lambda team: save_pieces(config, pieces, path, team)) == [path]
    with at_most(20):
        found = Boxes(path).read("embedding", (19_000, 2), (500, 3))
    assert np.array_equal(found, embedding[19_000:19_500, 2:5])


def test_the_library_reads_the_files_too(path):
    with safe_open(path / FILES[0], "np") as file:
        assert all("@" in key for key in file.keys())  # noqa: SIM118 - it is no mapping

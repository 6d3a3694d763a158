"""Pieces that form grids, as a mesh cuts tensors: listed in a few bytes each, and read like all others."""

import json
import random
import re
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import assert_same_bits
from damage import CONFIG, FIELDS, OLD, assert_is_state, entry_of_pieces, undetected
from safetensors.numpy import load_file, save_file
from teams import together

import palm
from palm import CheckpointError
from palm.checkpoint import checkpoint, team
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.grids import cells, gridded, listed
from palm.checkpoint.manifest import FORMAT, MANIFEST, key_of, read_manifest
from palm.checkpoint.pieces import pieces_of, shapes_of
from palm.checkpoint.progress import load_progress
from palm.checkpoint.team import check_listable, save_pieces
from palm.files.objects import MOST_BYTES
from palm.files.sealed import sealed
from palm.recipes import Recipe
from palm.spec.boxes import Box, Piece, miscovered
from palm.spec.mesh import Mesh, cuts
from palm.training.cadence import Cadence
from palm.training.setup import check_fits

STATE = {**OLD[0], **OLD[1].moments}
OWNERS = 3
LARGE = palm.preset("palm-540b").resolve("jax")


def starts_of(shape: tuple[int, ...]) -> list[list[int]]:
    """Two parts of rows and three of columns, of different sizes, where there are so many."""
    parts = ([0, 3], [0, 1, 4])
    return [[at for at in part if at < size] for part, size in zip(parts, shape, strict=False)]


def save(path: Path) -> Path:
    dealt: list[list[Piece]] = [[] for _ in range(OWNERS)]
    for name, array in STATE.items():
        for i, box in enumerate(cells(starts_of(array.shape), array.shape)):
            part = array[box.within(Box((0,) * array.ndim, array.shape))]
            dealt[(i + len(name)) % OWNERS].append(Piece(name, box.start, part))
    action = lambda team: save_pieces(CONFIG, dealt[team.process], path, team, fields=FIELDS)  # noqa: E731
    assert together(OWNERS, action) == [path] * OWNERS
    return path


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "checkpoint")


def with_rows(manifest: dict) -> dict:
    """The same manifest with a row for each piece, as palm wrote it before there were grids."""
    files = {name: dict(entry) for name, entry in manifest["files"].items()}
    for name, array in STATE.items():
        for file, box, checksum in listed(manifest, name, array.shape):
            files[file].setdefault("pieces", {}).setdefault(name, []).append(
                [checksum, *box.start, *box.shape]
            )
    return {key: value for key, value in {**manifest, "files": files}.items() if key in KEYS}


KEYS = ("format", "version", "dtype", "files")


def test_pieces_in_grids_are_listed_without_a_row_for_each(path):
    manifest = read_manifest(path)
    assert manifest["version"] == 3
    for file, entry in manifest["files"].items():
        assert {*entry} == {"bytes", "header" if file.startswith("pieces") else "sha256"}
    assert 1 < len(manifest["grids"]) < len(manifest["tensors"]) / 3  # they are shared
    assert len(sealed(manifest)) < len(sealed(with_rows(manifest))) / 2


def test_they_are_read_as_all_others_are(path):
    assert_is_state(path, (OLD[0], type(OLD[1])(FIELDS, OLD[1].moments)))
    boxes = Boxes(path)
    for name, array in STATE.items():
        at = tuple(slice(1, size) if size > 1 else slice(0, 1) for size in array.shape)
        assert_same_bits({name: boxes.tensors[name][at]}, {name: array[at]})


def test_rows_of_grids_are_still_read(path):
    (path / MANIFEST).write_text(sealed(with_rows(read_manifest(path))))
    assert read_manifest(path)["files"]["pieces-00001-of-00003.safetensors"]["pieces"]
    assert_is_state(path, (OLD[0], type(OLD[1])(FIELDS, OLD[1].moments)))


def test_every_kind_of_damage_is_explained(path):
    rng = random.Random(1)
    assert [missed for _ in range(40) for missed in undetected(path, rng)] == []


def test_damage_is_named_by_its_piece(path):
    name, array = "embedding", STATE["embedding"]
    file, box, _ = list(listed(read_manifest(path), name, array.shape))[-1]
    content = bytearray((path / file).read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    row = json.loads(content[8:length])[key_of(name, box.start)]
    content[length + row["data_offsets"][0]] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} must be .* damaged in embedding from"):
        Boxes(path).read(name, box.start, (1, 1))
    for load in (load_arrays, load_progress):
        with pytest.raises(CheckpointError, match=f"{file} must be .* damaged in embedding from"):
            load(path)


def test_a_weight_that_is_not_finite_is_blamed_on_the_file_of_its_piece(path):
    """A file that somebody else made, with checksums that hold."""
    name, array = "embedding", STATE["embedding"]
    manifest = read_manifest(path)
    pieces = list(listed(manifest, name, array.shape))
    assert len({file for file, *_ in pieces}) > 1
    for i, (file, box, _) in enumerate(pieces):
        changed = path.with_name(f"changed-{i}")
        shutil.copytree(path, changed)
        arrays = load_file(path / file)
        own = arrays[key_of(name, box.start)]
        own[-1, -1] = np.nan
        save_file(arrays, changed / file)
        digits = manifest["tensors"][name]["crc32"]
        digits = f"{digits[: 8 * i]}{zlib.crc32(own.tobytes()):08x}{digits[8 * i + 8 :]}"
        said = {**manifest, "files": {**manifest["files"], file: entry_of_pieces(changed / file)}}
        said["tensors"] = {**manifest["tensors"], name: {**manifest["tensors"][name], "crc32": digits}}
        (changed / MANIFEST).write_text(sealed(said))
        with pytest.raises(CheckpointError, match=f"{changed / file}: embedding from .* must be finite"):
            load_arrays(changed)


def other_files(manifest):
    manifest["grids"][grid_of(manifest)]["files"][0] = 99


def grid_of(manifest, name="embedding"):
    return manifest["tensors"][name]["grid"]


def cut_at(starts):
    return lambda manifest: manifest["grids"][grid_of(manifest)].update(starts=starts)


EDITS = {
    "a tensor gone": (
        lambda m: m["tensors"].pop("second.norm"),
        "second.norm must be a tensor of the config",
    ),
    "unknown": (lambda m: m["tensors"].update(ghost=m["tensors"]["norm"]), "ghost must be a tensor of"),
    "no such grid": (
        lambda m: m["tensors"]["norm"].update(grid=99),
        r"norm must have one of \d+ grids; got 99",
    ),
    "another grid": (
        lambda m: m["tensors"]["norm"].update(grid=grid_of(m)),
        "norm must cut a tensor of",
    ),
    "a gap": (cut_at([[1, 3], [0, 1, 4]]), "must cut a tensor of"),
    "backwards": (cut_at([[0, 3], [0, 4, 1]]), "must cut a tensor of"),
    "twice": (cut_at([[0, 0], [0, 1, 4]]), "must cut a tensor of"),
    "beyond": (cut_at([[0, 3], [0, 1, 10**6]]), "must cut a tensor of"),
    "nowhere": (cut_at([[], [0, 1, 4]]), "must cut a tensor of"),
    "fewer": (cut_at([[0], [0, 1, 4]]), "must have 3 files and CRC-32; got 6"),
    "no such file": (other_files, "must have 6 files"),
    "digits": (lambda m: m["tensors"]["norm"].update(crc32="0" * 7), "norm must have"),
    "letters": (lambda m: m["tensors"]["norm"].update(crc32="x" * 16), "must be hexadecimal digits"),
    "a number": (lambda m: m["tensors"]["norm"].update(crc32=0), "must be hexadecimal digits"),
    "negative": (cut_at([[-1]]), "must be a whole number"),
    "no files": (lambda m: m["grids"][0].pop("files"), "must name files"),
    "both": (
        lambda m: m["files"]["pieces-00001-of-00003.safetensors"].update(pieces={}),
        "pieces must be left out",
    ),
    "no tensors": (lambda m: m.pop("tensors"), "must name tensors"),
    "a list": (lambda m: m.update(tensors=[]), "tensors must be an object"),
    "too small": (
        lambda m: m["files"]["pieces-00001-of-00003.safetensors"].update(bytes=100),
        "must have room for its pieces",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_sealed_manifest_that_does_not_fit_is_refused(path, name):
    edit, words = EDITS[name]
    manifest = read_manifest(path)
    edit(manifest)
    (path / MANIFEST).write_text(sealed(manifest))
    for load in (Boxes, load_arrays, load_progress):
        with pytest.raises(CheckpointError, match=words) as raised:
            load(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("change", ["none", "gap", "twice", "shape", "start", "ghost"])
def test_only_what_covers_each_tensor_as_a_grid_is_one(change):
    shapes = {"a": (6, 5), "b": (4,)}
    files = {
        "one": {"pieces": {"a": [[7, 0, 0, 2, 5], [8, 2, 0, 4, 5]], "b": [[9, 0, 4]]}},
        "beside": {"bytes": 3},
    }
    rows = files["one"]["pieces"]
    {
        "none": lambda: None,
        "gap": lambda: rows["a"].pop(0),
        "twice": lambda: rows["a"].append([8, 2, 0, 4, 5]),
        "shape": lambda: rows["a"][0].__setitem__(3, 3),
        "start": lambda: rows["b"][0].__setitem__(1, 1),
        "ghost": lambda: rows.update(ghost=[[0, 0, 1]]),
    }[change]()
    found = gridded(files, shapes)
    assert (found is None) == (change != "none")
    if found is not None:
        assert found["tensors"]["a"]["crc32"] == "0000000700000008"
        assert found["grids"] == [
            {"starts": [[0, 2], [0]], "files": [0, 0]},
            {"starts": [[0]], "files": [0]},
        ]


def test_the_cells_of_a_grid_make_up_a_tensor():
    for shape in ((7,), (5, 9), (4, 3, 5)):
        starts = [[0, *sorted(random.Random(size).sample(range(1, size), 2))] for size in shape]
        boxes = list(cells(starts, shape))
        assert len(boxes) == 3 ** len(shape)
        assert miscovered(boxes, shape) is None


def test_a_540b_model_and_its_moments_on_2048_devices_fit_into_a_manifest(tmp_path):
    mesh, devices = Mesh(data=128, model=16), 2048
    shapes = shapes_of(LARGE, with_moments=True)
    grids, tensors, pieces = {}, {}, 0
    for name, shape in shapes.items():
        cut = cuts(LARGE, mesh)[re.sub("^(first|second)[.]", "", name)]
        counts = [1 if axis is None else mesh.shape[axis] for axis in cut]
        starts = tuple(
            tuple(range(0, size, size // count)) for size, count in zip(shape, counts, strict=True)
        )
        count = int(np.prod(counts))
        pieces += count
        grid = grids.setdefault((starts, tuple(range(devices - count, devices))), len(grids))
        tensors[name] = {"grid": grid, "crc32": "89abcdef" * count}
    entry, other = ({"bytes": 2**60, kind: "0" * 64} for kind in ("header", "sha256"))
    manifest = {
        "format": FORMAT,
        "version": 3,
        "dtype": "float32",
        "files": {f"pieces-{i + 1:05d}-of-{devices:05d}.safetensors": entry for i in range(devices)}
        | dict.fromkeys(("training.json", "config.json"), other),
        "grids": [{"starts": starts, "files": files} for starts, files in grids],
        "tensors": tensors,
    }
    text = sealed(manifest)
    assert pieces > 3_500_000
    assert len(text) < MOST_BYTES / 2
    (tmp_path / MANIFEST).write_text(text)
    found = pieces_of(tmp_path, read_manifest(tmp_path), LARGE)
    assert list(found) == list(shapes)
    for name in ("embedding", "second.blocks.117.attention.query"):
        own = found[name]
        assert len(own) == 2048
        assert miscovered((piece.box for piece in own), shapes[name]) is None
    check_listable(LARGE, mesh, with_moments=True)


def test_more_pieces_than_can_be_listed_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    mesh, words = (
        Mesh(data=1024, model=16),
        r"at most 7,000,000 pieces, .* got mesh=data=1024,model=16, which",
    )
    device = SimpleNamespace(is_on_host=lambda device: False)
    wing = SimpleNamespace(weights=device, several=lambda: True, mesh_of_model=lambda model: mesh)
    with pytest.raises(CheckpointError, match=words):
        check_fits(wing, LARGE, Recipe(batch=1024), Cadence(), None, mesh)
    check_fits(wing, LARGE, Recipe(batch=1024), Cadence(), None, Mesh(pod=8, data=128, model=16))
    monkeypatch.setattr(checkpoint, "wing_of", lambda model: wing)
    monkeypatch.setattr(checkpoint, "model_of", lambda model: model)
    monkeypatch.setattr(checkpoint, "tokenizer_of", lambda model: None)
    monkeypatch.setattr(checkpoint, "kept_file", lambda tokenizer: None)
    monkeypatch.setattr(checkpoint, "config_of", lambda model: LARGE)
    monkeypatch.setattr(team, "MOST_PIECES", 1_000_000)
    with pytest.raises(CheckpointError, match="at most 1,000,000 pieces"):
        palm.save(object(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []

"""Bundles: a recording goes through a folder unchanged, and what is not whole is refused, never believed."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from cases import assert_explains, assert_same_bits, small
from mutations import MUTATIONS, mutate
from recordings import scaled, side

from palm import BundleError, ConfigError, compare
from palm.files.read import reading
from palm.files.tensors import read_header
from palm.parity.recording.bundle import ARRAYS, HEADER, read_bundle, write_bundle
from palm.parity.recording.excerpt import excerpt_of

GROUPS = ("taps", "sketches", "exact_sketches")


def test_an_excerpt_goes_through_a_folder_unchanged(tmp_path):
    excerpt = excerpt_of(side("a"))
    write_bundle(excerpt, tmp_path / "a")
    again = read_bundle(tmp_path / "a")
    for group in GROUPS:
        before, after = getattr(excerpt, group), getattr(again, group)
        assert list(before) == list(after)
        assert_same_bits(before, after)
    for field in dataclasses.fields(excerpt):
        if field.name not in (*GROUPS, "tokens", "weights"):
            assert getattr(again, field.name) == getattr(excerpt, field.name), field.name
    assert np.array_equal(again.tokens, excerpt.tokens)
    assert again.weights is None


def test_a_loss_that_is_not_finite_goes_through_a_folder(tmp_path):
    write_bundle(dataclasses.replace(side("a"), loss=float("nan")), tmp_path / "a")
    assert np.isnan(read_bundle(tmp_path / "a").loss)
    json.loads((tmp_path / "a" / HEADER).read_text(), parse_constant=pytest.fail)


def test_each_array_begins_at_a_multiple_of_its_width(tmp_path):
    """So that a file can be mapped into memory, whatever is in front of an array."""
    recording = side("a")
    odd = {**recording.weights, "odd": np.zeros(3, np.float32)}
    write_bundle(dataclasses.replace(recording, weights=odd), tmp_path / "a")
    with reading(tmp_path / "a" / ARRAYS) as reader:
        rows = read_header(reader)
        begin = reader.at
    assert {row.dtype.itemsize for row in rows.values()} == {4, 8}
    assert [name for name, row in rows.items() if (begin + row.first) % row.dtype.itemsize] == []


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path):
    write_bundle(side("a"), tmp_path / "a")
    write_bundle(side("b"), tmp_path / "a")
    assert read_bundle(tmp_path / "a").label == "b"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"], "no litter"


@pytest.mark.parametrize("beside", [(), (HEADER,), (HEADER, ARRAYS)])
def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path, beside):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in beside:
        (folder / name).write_text("{}")
    if len(beside) < 2:
        (folder / "thesis.tex").write_text("years")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    with pytest.raises(BundleError) as raised:
        write_bundle(side("a"), folder)
    assert_explains(
        raised,
        "out must be a new folder, an empty folder, or a folder that contains only a bundle",
        "mine",
        "Choose another",
    )
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_a_bundle_with_a_stray_file_and_a_link_to_one_are_left_alone(tmp_path):
    write_bundle(side("a"), tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    for path in (tmp_path / "a", tmp_path / "link"):
        with pytest.raises(BundleError):
            write_bundle(side("b"), path)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert read_bundle(tmp_path / "a").label == "a"


def test_two_bundles_are_compared_by_their_paths(tmp_path):
    write_bundle(side("a"), tmp_path / "complete")
    write_bundle(excerpt_of(side("b")), tmp_path / "excerpt")
    assert compare(tmp_path / "complete", str(tmp_path / "excerpt")).agree
    faulty = side("b", change=scaled("blocks.1.k", 1.001))
    write_bundle(excerpt_of(faulty), tmp_path / "faulty")
    assert compare(tmp_path / "complete", tmp_path / "faulty").first_divergence == "blocks.1.k"


def test_bundles_of_other_tokens_or_shapes_are_refused():
    other = excerpt_of(side("b"))
    with pytest.raises(ConfigError, match="tokens must be the same"):
        compare(side("a"), dataclasses.replace(other, tokens=1 - other.tokens % 2))
    with pytest.raises(ConfigError, match="depth must be the same"):
        compare(side("a"), excerpt_of(side("b", config=small(depth=3))))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / HEADER).unlink(), r"bundle must be a folder with bundle\.json"),
        (lambda path: (path / ARRAYS).unlink(), r"arrays\.safetensors must exist"),
        (lambda path: (path / HEADER).write_text("{}"), "must be of format palm-bundle version 1"),
        (lambda path: (path / HEADER).write_bytes(b"\xff"), "must be as it was written"),
        (lambda path: (path / ARRAYS).write_bytes(b"12345678"), r"must be \d+ bytes long; got 8"),
        (
            lambda path: (path / HEADER).write_text(
                (path / HEADER).read_text().replace("float32", "float64")
            ),
            "its checksum differs",
        ),
    ],
)
def test_what_is_no_whole_bundle_is_refused(tmp_path, damage, told):
    write_bundle(excerpt_of(side("a")), tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(BundleError, match=told):
        read_bundle(tmp_path / "a")


@pytest.mark.parametrize("kind", MUTATIONS)
@pytest.mark.parametrize("is_complete", [True, False])
def test_a_mutated_bundle_is_refused_or_differs(tmp_path, kind, is_complete):
    rng = random.Random(f"{kind} {is_complete}")
    for trial in range(6):
        mutate(tmp_path / f"{trial}", kind, is_complete, rng)


def test_bundles_are_compared_without_a_framework(tmp_path):
    write_bundle(side("a"), tmp_path / "a")
    write_bundle(excerpt_of(side("b")), tmp_path / "b")
    code = (
        "import sys\n"
        "from palm.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'jax', 'equinox'} & sys.modules.keys()\n"
        "sys.exit(status)"
    )
    command = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["outcome"] == "agree"

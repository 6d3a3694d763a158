"""No byte of a checkpoint can change without the damage being found and named."""

import json
from pathlib import Path

import pytest
from cases import assert_explains, draw_weights, small

from palm import CheckpointError
from palm.checkpoint import checkpoint
from palm.checkpoint.checkpoint import load_arrays, save_arrays

WEIGHTS = [f"weights-0000{i}-of-00002.safetensors" for i in (1, 2)]
FILES = ["config.json", "manifest.json", *WEIGHTS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good checkpoint in two files of weights. Each test puts back what it breaks."""
    config = small()
    path = tmp_path_factory.mktemp("damage") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "MAX_FILE_BYTES", 5000)
        save_arrays(config, draw_weights(config), path)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    return path


@pytest.fixture
def damaged(whole, request):
    """(the file, its bytes), restored afterwards; and the checkpoint is good again then."""
    file = whole / request.param
    good = file.read_bytes()
    yield file, good
    file.write_bytes(good)
    load_arrays(whole)


in_every_file = pytest.mark.parametrize("damaged", FILES, indirect=True)
in_weights = pytest.mark.parametrize("damaged", WEIGHTS, indirect=True)


def complaint(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        load_arrays(file.parent)
    return str(raised.value)


def flip(content: bytes, position: int) -> bytes:
    """`content` with one bit the other way, a different one at each position."""
    return content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]


def tensor_at(content: bytes, position: int) -> str | None:
    """The tensor whose data lies at that byte of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    for name, row in json.loads(content[8:start]).items():
        first, last = row["data_offsets"]
        if first <= position - start < last:
            return name
    return None


@in_every_file
def test_a_flipped_bit_is_found_wherever_it_is(damaged):
    file, good = damaged
    positions = {*range(0, len(good), max(1, len(good) // 150)), len(good) - 1}
    for position in sorted(positions):
        assert str(file) in complaint(file, flip(good, position)), position


@in_weights
def test_a_flipped_bit_of_a_weight_is_found_in_its_tensor(damaged):
    file, good = damaged
    start = 8 + int.from_bytes(good[:8], "little")
    tensors = json.loads(good[8:start])
    firsts = {start + row["data_offsets"][0] for row in tensors.values()}
    named = set()
    for position in sorted({*range(8, len(good), 61), *firsts}):
        name = tensor_at(good, position)
        words = complaint(file, flip(good, position))
        assert words.startswith(f"{file} must be as it was saved; its checksum differs"), position
        assert f", damaged in {name or 'its header'}. " in words, position
        named.add(name)
    assert named == {None, *tensors}


@in_weights
@pytest.mark.parametrize("position", range(8))
def test_a_flipped_bit_of_the_headers_length_is_found(damaged, position):
    file, good = damaged
    for bit in (0, 6):
        flipped = good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :]
        assert ", damaged in its header." in complaint(file, flipped)


@in_every_file
def test_a_file_cut_short_at_any_length_is_found(damaged):
    file, good = damaged
    for length in {0, 1, 7, 8, 9, len(good) - 1, *range(10, len(good), max(1, len(good) // 40))}:
        words = complaint(file, good[:length])
        assert str(file) in words
        if file.name != "manifest.json":
            assert f"must be {len(good)} bytes long; got {length}" in words


@in_weights
def test_a_cut_file_names_the_first_tensor_that_is_gone(damaged):
    file, good = damaged
    for position in range(8 + int.from_bytes(good[:8], "little") + 1, len(good), 97):
        assert f", damaged in {tensor_at(good, position)}. " in complaint(file, good[:position])


@in_every_file
def test_bytes_added_at_the_end_are_found(damaged):
    file, good = damaged
    for extra in (b"\0", b"\n", b" " * 100):
        assert str(file) in complaint(file, good + extra)


@in_weights
def test_two_tensors_exchanged_are_found(damaged):
    """Right size, right names, right numbers: in the wrong places."""
    file, good = damaged
    start = 8 + int.from_bytes(good[:8], "little")
    spans = sorted(tuple(row["data_offsets"]) for row in json.loads(good[8:start]).values())
    (one, end_of_one), (other, end_of_other) = spans[:2]
    width = min(end_of_one - one, end_of_other - other)
    data = bytearray(good[start:])
    first, second = slice(one, one + width), slice(other, other + width)
    data[first], data[second] = data[second], data[first]
    assert ", damaged in blocks." in complaint(file, good[:start] + data)


@in_every_file
def test_a_missing_file_is_named(damaged):
    file, _ = damaged
    file.unlink()
    with pytest.raises(CheckpointError) as raised:
        load_arrays(file.parent)
    if file.name == "manifest.json":
        parts = ["path must be a checkpoint directory with manifest.json", f"path={file.parent}", "Pass what"]
    else:
        parts = [f"{file} must exist", "No such file", "Restore another copy"]
    assert_explains(raised, *parts)


@in_every_file
def test_a_folder_in_a_files_place_is_named(damaged):
    file, _ = damaged
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        load_arrays(file.parent)
    file.rmdir()


@pytest.mark.parametrize("damaged", ["manifest.json"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_a_manifest_that_is_no_json_object_is_damaged(damaged, content):
    file, _ = damaged
    assert complaint(file, content).startswith(f"{file} must be")


@pytest.mark.parametrize("damaged", ["manifest.json"], indirect=True)
def test_a_manifest_that_says_the_same_in_other_bytes_is_damaged(damaged):
    file, good = damaged
    assert "its checksum differs" in complaint(file, json.dumps(json.loads(good)).encode())


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("nowhere", ": No such file or directory."),
        ("checkpoint/config.json", ", a file."),
        ("notes", ", a folder without manifest.json."),
    ],
)
def test_a_path_that_is_no_checkpoint_is_refused(whole, where, what):
    path = whole.parent / where
    (whole.parent / "notes").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError) as raised:
        load_arrays(path)
    assert_explains(
        raised,
        "path must be a checkpoint directory",
        f"path={path}{what}",
        "Pass what palm.save",
        "from_numpy",
    )


def test_files_that_are_not_the_checkpoints_are_ignored(whole):
    note = whole / "notes.txt"
    note.write_text("a good run")
    assert load_arrays(whole)[0] == small()
    note.unlink()

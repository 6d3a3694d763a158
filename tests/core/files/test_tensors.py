"""safetensors files with a header that the format does not have."""

import json

import pytest
from safetensors import SafetensorError, deserialize

from palm.files.objects import MalformedError
from palm.files.read import reading
from palm.files.tensors import read_tensors

ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(tmp_path, header):
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    return path


def read(path):
    with reading(path) as reader:
        return read_tensors(reader)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**ROW, "\ud800": 1}},
        {"a": ROW, "__metadata__": {"\ud800": "x"}},
        {"a": ROW, "__metadata__": {"x": "\ud800"}},
    ],
    ids=["a row", "a name", "a text"],
)
def test_half_of_a_character_is_refused_as_by_the_formats_own_package(tmp_path, header):
    path = file_of(tmp_path, header)
    with pytest.raises(SafetensorError):
        deserialize(path.read_bytes())
    with pytest.raises(MalformedError):
        read(path)


def test_what_a_row_does_not_have_is_refused(tmp_path):
    with pytest.raises(MalformedError, match=r"a\.strides must be left out; got \[1\]"):
        read(file_of(tmp_path, {"a": {**ROW, "strides": [1]}}))


def test_metadata_may_be_any_text(tmp_path):
    path = file_of(tmp_path, {"a": ROW, "__metadata__": {"license": "first line\n\U0001f334 second"}})
    assert read(path)["a"].shape == (2,)

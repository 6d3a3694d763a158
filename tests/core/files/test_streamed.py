"""Files that are written one tensor after the other are what the library reads."""

import hashlib
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest
from cases import assert_same_bits
from safetensors import safe_open
from safetensors.numpy import load_file

from palm.files import streamed
from palm.files.read import reading
from palm.files.streamed import blocks, write_streamed
from palm.files.tensors import read_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a@0,3": RNG.standard_normal((5, 7)),
    "é": RNG.standard_normal((3, 4, 5)).astype(np.float32),
    "b": RNG.standard_normal(9).astype(ml_dtypes.bfloat16),
    "turned": RNG.standard_normal((6, 4)).T,
    "turned and wide": RNG.standard_normal((70, 41)).astype(np.float32).T,
    "turned and narrow": RNG.standard_normal((70, 41)).astype(ml_dtypes.bfloat16).T,
    "every second": RNG.standard_normal((6, 8))[::2, ::-2],
    "one": np.ones((1, 1), np.float32),
    "none": np.ones((0, 3)),
    "a matrix": RNG.standard_normal((3, 4)).view(np.matrix),
    "a number": np.array(7.5),
}


def write(file, arrays=ARRAYS, about=None, *, hashed=False):
    rows = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    return write_streamed(file, rows, iter(arrays.values()), about, hashed=hashed)


def test_what_is_written_is_read_by_the_library_and_by_palm(tmp_path):
    file = tmp_path / "x.safetensors"
    found = write(file, about={"note": "naïve"})
    assert_same_bits(load_file(file), ARRAYS)
    with reading(file) as reader:
        own = read_tensors(reader)
    assert list(own) == list(ARRAYS)
    assert_same_bits(own, ARRAYS)
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"note": "naïve"}
    content = file.read_bytes()
    assert found.size == len(content)
    length = 8 + int.from_bytes(content[:8], "little")
    assert found.header == hashlib.sha256(content[:length]).hexdigest()
    assert found.sha256 is None
    again = write(tmp_path / "again", about={"note": "naïve"}, hashed=True)
    assert again == found._replace(sha256=hashlib.sha256(content).hexdigest())
    assert found.checksums == [zlib.crc32(array.tobytes()) for array in ARRAYS.values()]


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_the_size_of_a_block_changes_nothing(tmp_path, monkeypatch, block):
    first = write(tmp_path / "x")
    monkeypatch.setattr(streamed, "_BLOCK", block)
    assert write(tmp_path / "y") == first
    parts = [part.copy() for part in blocks(ARRAYS["turned"])]
    assert np.array_equal(np.concatenate(parts), ARRAYS["turned"])
    assert len(parts) == {1: 4, 50: 4, 10**6: 1}[block]


def test_no_tensor_is_copied_as_a_whole(tmp_path):
    turned = np.zeros((4000, 2000), np.float32).T
    tracemalloc.start()
    try:
        write(tmp_path / "x", {"turned": turned})
        assert tracemalloc.get_traced_memory()[1] < turned.nbytes / 2
        np.ascontiguousarray(turned)  # the twin: a copy would be seen
        assert tracemalloc.get_traced_memory()[1] >= turned.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float32), np.zeros((3, 2))])
def test_an_array_that_is_not_what_the_header_says_is_refused(tmp_path, array):
    with pytest.raises(ValueError, match="x must be"):
        write_streamed(tmp_path / "x", {"x": (np.dtype(np.float64), (2, 3))}, [array])


def test_a_tensor_too_few_or_too_many_is_refused(tmp_path):
    rows = {"x": (np.dtype(np.float64), (2,))}
    for arrays in ([], [np.zeros(2), np.zeros(2)]):
        with pytest.raises(ValueError, match="argument 2"):
            write_streamed(tmp_path / "x", rows, arrays)

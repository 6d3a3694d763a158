"""NumPy files that an enemy made: refused before anything is allocated, with the error of who reads them."""

import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import at_most

from palm import BundleError, DataError, UpstreamError
from palm.data.corpus import open_corpus
from palm.files import arrays
from palm.files.arrays import read_npy, read_npz
from palm.files.objects import MalformedError, parse
from palm.parity.programs.trace import read_trace
from palm.upstream.tensors import read_tensors


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def said(shape: str, descr: str = "'<i4'", more: str = "") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{more}, }}\n"


STRANGE = {
    "empty": b"",
    "garbage": b"garbage" * 10,
    "beyond memory": npy(said("(2**63,)".replace("2**63", str(2**63))), bytes(8)),
    "beyond the file": npy(said("(2147483648,)"), bytes(8)),
    "beyond memory beside none": npy(said(f"(0, {2**62}, {2**62})"), bytes(8)),
    "a truth": npy(said("(True,)"), bytes(8)),
    "negative": npy(said("(-1,)"), bytes(8)),
    "a real": npy(said("(2.0,)"), bytes(8)),
    "no tuple": npy(said("2"), bytes(8)),
    "objects": npy(said("(1,)", "'|O'"), bytes(8)),
    "fields": npy(said("(1,)", "[('a', '<i4')]"), bytes(8)),
    "no dtype": npy(said("(1,)", "'<q99'"), bytes(8)),
    "nested": npy("(" * 9000, bytes(8)),
    "a call": npy(said("(exit(),)"), bytes(8)),
    "a blank that is no space": npy(said("(2,)") + "\x1d \n", bytes(8)),
    "another version": npy(said("(2,)"), bytes(8)).replace(b"Y\1\0", b"Y\1\x20"),
    "no UTF-8": b"\x93NUMPY\x01\x00\x02\x00\xff\xff",
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_a_strange_array_is_refused(tmp_path, content):
    with pytest.raises(MalformedError):
        read_npy(io.BytesIO(content), len(content))
    (tmp_path / "ids.npy").write_bytes(content)
    with pytest.raises(DataError, match="must be a NumPy file of ids"):
        open_corpus(tmp_path / "ids.npy")
    if content:  # no leaves at all are refused elsewhere
        (tmp_path / "model.eqx").write_bytes(content)
        with pytest.raises(UpstreamError, match=r"must be a readable \.eqx file"):
            read_tensors(tmp_path / "model.eqx", "palm_jax.palm")
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(UpstreamError, match=r"must be a readable \.npz file"):
        read_tensors(tmp_path / "model.npz", "palm_jax.palm")


def test_any_flipped_bit_of_a_header_is_refused_or_harmless(tmp_path):
    rng = random.Random(0)
    file = tmp_path / "ids.npy"
    np.save(file, np.arange(1000, dtype=np.int32))
    good = file.read_bytes()
    for _ in range(300):
        at = rng.randrange(128)
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
        try:
            assert len(open_corpus(file).read(0, 1)) == 1
        except DataError as error:
            assert str(error).startswith("data must be ")  # noqa: PT017 - what is harmless raises nothing


@pytest.mark.parametrize("dtype", ["?", "<i2", ">i4", "<u8", "<f4", ">f8", "<c8", "V2"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 2)])
def test_what_numpy_writes_is_read(dtype, shape):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype("u2" if dtype == "V2" else dtype)
    array = array.view(dtype) if dtype == "V2" else array
    for order in (array, np.asfortranarray(array)):
        held = io.BytesIO()
        np.save(held, order)
        found = read_npy(io.BytesIO(held.getvalue()), len(held.getvalue()))
        assert (found.dtype, found.shape) == (order.dtype, order.shape)
        assert found.tobytes() == array.tobytes()


def test_an_archive_of_two_arrays_of_one_name_is_refused():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.npy", npy(said("(1,)"), bytes(4)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(said("(1,)"), bytes(4)))
    with pytest.raises(MalformedError, match="two have the same"):
        read_npz(io.BytesIO(held.getvalue()))


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: Path(file).symlink_to("/dev/zero")])
@pytest.mark.parametrize("suffix", [".pt", ".npz", ".eqx", ".safetensors"])
def test_a_file_of_weights_that_is_no_regular_file_is_refused_at_once(tmp_path, make, suffix):
    pytest.importorskip("torch")
    file = tmp_path / f"model{suffix}"
    make(file)
    with at_most(5), pytest.raises(UpstreamError, match="no regular file"):
        read_tensors(file, "palm_jax.palm")


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: Path(file).symlink_to("/dev/zero")])
def test_a_trace_that_is_no_regular_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "a.trace")
    with pytest.raises(BundleError, match="no regular file"):
        read_trace(tmp_path / "a.trace")


def test_json_is_bounded_and_linear():
    with at_most(2):
        keys = ",".join(f'"k{i}":0' for i in range(60_000))
        for text in (
            f'{{{keys},"k59999":1}}',
            '{"a": "' + '\\"' * 200_000,
            '"' + "[" * 200_000,
            "[" * 200_000,
        ):
            with pytest.raises(MalformedError):
                parse(text.encode())
    assert parse(b'{"a": ["[[[", "\\"", 1, -2.5e3, null, true]}') == {
        "a": ["[[[", '"', 1, -2500.0, None, True]
    }


def archive_of(size: int) -> bytes:
    """An archive of one array of so many zeros, deflated."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(said(f"({size},)", "'|u1'"), bytes(size)))
    return content.getvalue()


def with_directory(content: bytes, change: Callable[[bytearray], bytes]) -> bytes:
    """The archive with another central directory: `change` gets that of its one array."""
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entries = change(bytearray(content[start:end]))
    count = entries.count(b"PK\1\2").to_bytes(2, "little")
    tail = bytearray(content[end:])
    tail[8:12], tail[12:16] = count * 2, len(entries).to_bytes(4, "little")
    return content[:start] + entries + bytes(tail)


def declares(size: int) -> Callable[[bytearray], bytes]:
    def change(entry: bytearray) -> bytes:
        entry[24:28] = size.to_bytes(4, "little")
        return bytes(entry)

    return change


def four_times(entry: bytearray) -> bytes:
    entries = b""
    for letter in b"abcd":
        entry[46] = letter
        entries += bytes(entry)
    return entries


BOMBS = {
    "more than can come out": (
        with_directory(archive_of(9000), declares(2**31)),
        "must come of what is stored",
    ),
    "one array under four names": (
        with_directory(archive_of(9000), four_times),
        "must lie beside one another",
    ),
    "more than memory holds": (archive_of(2**20), "do not fit into memory"),
}


@pytest.mark.parametrize(("content", "says"), BOMBS.values(), ids=BOMBS)
def test_an_archive_that_is_a_bomb_is_refused_before_it_is_inflated(content, says, monkeypatch):
    monkeypatch.setattr(arrays, "free_memory", lambda: 100_000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it is inflated"))
    with pytest.raises(MalformedError, match=says):
        read_npz(io.BytesIO(content))


def test_an_archive_may_be_as_dense_as_deflate_makes_it():
    size = 10**7
    assert len(archive_of(size)) < size / 900
    assert read_npz(io.BytesIO(archive_of(size)))["a"].shape == (size,)

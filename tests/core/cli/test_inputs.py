"""The arrays that programs are called with: a file of NumPy's, or a `ConfigError`."""

import io
import os
import zipfile

import numpy as np
import pytest

from palm import ConfigError
from palm.cli.program_files import read_inputs


def npz():
    written = io.BytesIO()
    np.savez(written, a=np.arange(5), b=np.ones((2, 3)))
    return written.getvalue()


def npy(header):
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64)


def twice():
    written = io.BytesIO(npz())
    with zipfile.ZipFile(written, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.npy", b"x")
    return written.getvalue()


DAMAGED = {
    "cut archive": lambda: npz()[:-9],
    "changed archive": lambda: npz().replace(b"descr", b"descs"),
    "no shape": lambda: npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }"),
    "brackets": lambda: npy(b"(" * 100),
    "huge": lambda: npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**40,), }"),
    "twice": twice,
    "empty": lambda: b"",
}


def test_all_arrays_of_either_kind_are_read(tmp_path):
    (tmp_path / "i.npz").write_bytes(npz())
    np.save(tmp_path / "i.npy", np.ones((2, 3)))
    assert [x.shape for x in read_inputs(tmp_path / "i.npz")] == [(5,), (2, 3)]
    assert [x.shape for x in read_inputs(tmp_path / "i.npy")] == [(2, 3)]


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_config_error(tmp_path, make):
    (tmp_path / "i").write_bytes(make())
    with pytest.raises(ConfigError, match="inputs must be a file of NumPy's"):
        read_inputs(tmp_path / "i")


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "i.npy")
    with pytest.raises(ConfigError, match="no regular file"):
        read_inputs(tmp_path / "i.npy")

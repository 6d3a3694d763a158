"""Reading at a place of a file: all bytes, past the page cache where the system can, and its errors."""

import errno
import os
import sys
from io import FileIO

import pytest

from palm.files import read
from palm.files.read import open_regular, read_at

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    with open_regular(tmp_path / "file") as stream:
        yield stream


def filled(stream, count: int, at: int, *, once: bool) -> bytes:
    target = memoryview(bytearray(count))
    return bytes(target[: read_at(stream, target, at, once=once)])


def without_flag(*_):
    raise OSError(errno.EOPNOTSUPP, "an older Linux")


def without_function(*_):
    raise NotImplementedError


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("lacking", [None, without_flag, without_function])
def test_it_gives_the_bytes_from_there_and_says_how_many_there_are(file, monkeypatch, once, lacking):
    if lacking is not None:
        monkeypatch.setattr(os, "preadv", lacking, raising=False)
    for at, count in ((5000, 3000), (0, len(CONTENT)), (1, 1), (len(CONTENT) - 7, 100), (10**6, 5)):
        assert filled(file, count, at, once=once) == CONTENT[at : at + count]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reads past its page cache")
def test_only_what_nobody_else_needs_is_read_past_the_cache(file, monkeypatch):
    flags = []

    def spy(descriptor, targets, at, flag):
        flags.append(flag)
        return os.readv(descriptor, [targets[0][:1000]]) if flags[1:] else 0

    monkeypatch.setattr(os, "preadv", spy)
    assert filled(file, 10, 0, once=False) == CONTENT[:10]
    assert flags == []
    assert filled(file, 10, 0, once=True) == b""  # nothing is there, as it seems
    file.raw.seek(0)
    assert filled(file, 2500, 0, once=True) == CONTENT[:2500]  # in parts
    assert flags == [0x80] * 4


def test_an_error_of_the_disk_is_raised(file, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    class Broken(FileIO):
        def readinto(self, target):
            broken()

    monkeypatch.setattr(os, "preadv", broken, raising=False)
    assert filled(file, 10, 0, once=True) == CONTENT[:10]  # the disk is well
    monkeypatch.setattr(read, "FileIO", Broken)
    with open_regular(tmp_path / "file") as stream, pytest.raises(OSError, match="Input/output error"):
        filled(stream, 10, 0, once=True)

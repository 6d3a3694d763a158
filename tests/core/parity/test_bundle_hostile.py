"""Bundles that an enemy sealed: every read ends in a `BundleError`, and soon."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cases import at_most
from recordings import side

from palm import BundleError
from palm.checkpoint.manifest import fingerprint
from palm.files.sealed import sealed
from palm.parity.recording.bundle import ARRAYS, HEADER, read_bundle, write_bundle
from palm.parity.recording.excerpt import excerpt_of


@pytest.fixture
def bundle(tmp_path):
    """A whole one."""
    write_bundle(excerpt_of(side("a")), tmp_path / "a")
    return tmp_path / "a"


def reseal(bundle, edit):
    header = json.loads((bundle / HEADER).read_text())
    del header["seal"]
    edit(header)
    (bundle / HEADER).write_text(sealed(header))


def soon(bundle, match, seconds=3.0):
    with at_most(seconds), pytest.raises(BundleError, match=match) as raised:
        read_bundle(bundle)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: Path(file).symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", [HEADER, ARRAYS])
def test_what_is_no_regular_file_is_refused_at_once(bundle, name, make):
    (bundle / name).unlink()
    make(bundle / name)
    soon(bundle, "regular file|directory")


def test_arrays_of_terabytes_are_refused_by_their_size(bundle):
    os.truncate(bundle / ARRAYS, 5 << 40)
    soon(bundle, "bytes long")


def test_an_order_that_names_arrays_again_and_again_is_refused(bundle):
    reseal(bundle, lambda header: header.update(order=header["order"] * 2000))
    soon(bundle, "must list exactly the arrays it has")


@pytest.mark.parametrize("value", ["", "x", "\ud800" * 64, "A" * 64, 7], ids=ascii)
def test_digests_that_are_none_are_refused(bundle, value):
    reseal(bundle, lambda header: header["digests"].update(norm=value))
    soon(bundle, "digests that are SHA-256")
    write_bundle(excerpt_of(side("a")), bundle)
    reseal(bundle, lambda header: header["statistics"]["embed"].update(sha256=value))
    soon(bundle, "whole statistics of embed")


@pytest.mark.parametrize("key", ["arrays", "order", "config", "label", "environment"])
@pytest.mark.parametrize("value", [None, 7, [7], {"x": 7}, "\x1b[2J", "\ud800"], ids=ascii)
def test_a_sealed_header_of_other_types_is_refused(bundle, key, value):
    reseal(bundle, lambda header: header.update({key: value}))
    soon(bundle, "must ")


@pytest.mark.parametrize("name", ["\x1b[2Jtaps", "taps/\ud800", "taps/a\0b"])
def test_a_name_of_an_array_that_no_terminal_should_see_is_refused(bundle, name):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(bundle / ARRAYS)
    if name.isascii():
        arrays[name] = np.zeros(1)
        save_file(arrays, bundle / ARRAYS)
    reseal(
        bundle,
        lambda header: header.update(order=[*header["order"], name], arrays=fingerprint(bundle / ARRAYS)),
    )
    soon(bundle, "can be printed")


def test_a_good_bundle_is_read(bundle):
    reseal(bundle, lambda header: None)
    assert read_bundle(bundle).label == "a"

"""Sides of a comparison as the command line has them."""

from pathlib import Path
from typing import Any

import pytest
from cases import ROOT, assert_explains

from palm import ConfigError
from palm.cli.sides import parse_side, parse_sides, plain_and_served
from palm.parity.run.sides import Bundle, Original, Side, labels
from palm.upstream.tensors import SOURCES

RUN = ROOT / "tests/fixtures/v0_1_0/run-torch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch", Side("torch")),
        ("jax:RUN/step-00000100", Side("jax", "RUN/step-00000100")),
        (
            "torch@dtype=bfloat16,compile=on,remat=on",
            Side("torch", dtype="bfloat16", compile="on", remat="on"),
        ),
        ("jax:a:b@device=cuda:1", Side("jax", "a:b", device="cuda:1")),
        ("jax:me@home/run@matmul=tensorfloat32", Side("jax", "me@home/run", matmul="tensorfloat32")),
        ("torch:me@home/run", Side("torch", "me@home/run")),
        ("torch@attention=textbook", Side("torch", attention="textbook")),
        ("torch:RUN@decode=on,rows=alone", Side("torch", "RUN", decode="on", rows="alone")),
        ("jax@padding=left,dtype=bfloat16", Side("jax", padding="left", dtype="bfloat16")),
        ("palm_jax.palm", Original("palm_jax.palm", None)),
        ("palm_pytorch.palm_lite:weights.pt", Original("palm_pytorch.palm_lite", "weights.pt")),
    ],
)
def test_a_side_is_what_its_text_says(text, expected):
    assert parse_side(text) == expected


def test_defaults_give_way_to_what_a_side_says():
    defaults = {"dtype": "float64", "checkpoint": "c", "device": "cpu"}
    assert parse_side("jax", **defaults) == Side("jax", "c", dtype="float64", device="cpu")
    assert parse_side("jax:d@dtype=bfloat16", **defaults) == Side("jax", "d", dtype="bfloat16", device="cpu")


def test_the_folder_of_a_bundle_is_a_side(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    assert parse_side(str(tmp_path)) == Bundle(tmp_path)


def test_a_file_and_a_folder_that_are_no_side_are_called_what_they_are(tmp_path):
    (tmp_path / "text").write_text("no bundle")
    with pytest.raises(ConfigError, match=r"got side=.*text, a file\. "):
        parse_side(str(tmp_path / "text"))
    with pytest.raises(ConfigError, match=r"a folder without bundle\.json\. "):
        parse_side(str(tmp_path))


@pytest.mark.parametrize("which", ["", "/best", "/last", "/step-00000004"])
def test_a_run_is_its_newest_or_its_best_checkpoint(which):
    checkpoint = str(RUN / "step-00000004")
    assert parse_side(f"jax:{RUN}{which}") == Side("jax", checkpoint)
    default: dict[str, Any] = {"dtype": None, "device": None, "attention": "auto"}
    one, other = parse_sides("torch", "jax:c", checkpoint=Path(f"{RUN}{which}"), **default)
    assert (one, other) == (Side("torch", checkpoint), Side("jax", "c"))


@pytest.mark.parametrize(
    ("folder", "what"), [(RUN, "a run"), (RUN / "step-00000004", "a checkpoint"), (RUN.parent, "a folder")]
)
def test_a_folder_that_is_no_side_by_itself_is_told_how_to_be_one(folder, what):
    with pytest.raises(ConfigError) as raised:
        parse_side(str(folder))
    assert_explains(raised, f"side={folder}, {what}", "torch:")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tourch", ("side must be backend[:checkpoint]", "side=tourch", "Backends: torch, jax")),
        ("torch@dtyp=float32", ("has no key 'dtyp'", "Keys: dtype, device")),
        ("torch@dtype=float32,compile", ("has 'compile', which is no key=value",)),
        ("torch@dtype=float32,dtype=float64", ("a key once", "dtype twice")),
        ("torch@backend=jax", ("has no key 'backend'",)),
        ("torch:", ("nothing after the colon",)),
        ("torch@dtype=float8", ("dtype must be one of", "dtype='float8'")),
        ("jax@compile=yes", ("compile must be one of on, off, or left out", "'yes'")),
        ("torch@attention=cudnn", ('the paths of backend="torch"', 'which only backend="jax" has')),
        ("torch@remat=blocks", ("remat must be one of on, off, feedforward", "'blocks'")),
        ("jax@matmul=tf32", ("matmul must be one of float32, tensorfloat32, bfloat16",)),
        ("torch@decode=yes", ("decode must be one of on, off", "'yes'")),
        ("torch@rows=1", ("rows must be one of together, alone", "'1'")),
        ("torch@padding=right", ("padding must be one of none, left", "'right'")),
        ("torch@padding=left,decode=on", ("padding must be none with decode", "Leave one of the two out")),
        ("torch@decode=on,compile=on", ("must not set compile, remat or mesh", "Leave it out")),
        ("torch@rows=alone,mesh=data:2", ("must not set compile, remat or mesh", "Leave it out")),
        ("palm_jax.palm@dtype=float64", ("an original takes no options", "Leave dtype=float64 out")),
        ("", ("side must be backend[:checkpoint]",)),
    ],
)
def test_what_is_no_side_is_refused(text, parts):
    with pytest.raises(ConfigError) as raised:
        parse_side(text)
    assert_explains(raised, *parts)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("torch", "jax", ("torch", "jax")),
        ("torch", "torch", ("torch", "torch")),
        ("torch", "torch@dtype=bfloat16", ("torch float32", "torch bfloat16")),
        ("torch", "jax@compile=off", ("torch", "jax compile off")),
        ("jax:run/step-1", "jax:run/step-2", ("jax step-1", "jax step-2")),
        ("torch@matmul=bfloat16", "jax", ("torch matmul bfloat16", "jax")),
        ("torch@decode=on,rows=alone", "torch", ("torch decode on rows alone", "torch")),
        ("torch", "jax@padding=left", ("torch", "jax padding left")),
    ],
)
def test_sides_are_called_by_what_they_differ_in(a, b, expected):
    one, other = parse_side(a), parse_side(b)
    assert labels(one, other) == expected


def test_the_plain_side_is_told_from_the_one_that_is_served():
    plain, served = Side("torch"), Side("jax", decode="on")
    assert plain_and_served((plain, served)) == plain_and_served((served, plain)) == (plain, served)


@pytest.mark.parametrize(
    ("other", "got"),
    [
        (Side("torch", rows="alone"), "two such sides"),
        (Original("palm_jax.palm", None), "a side that is not live"),
        (Bundle(Path("bundle")), "a side that is not live"),
    ],
)
def test_a_side_that_is_served_goes_with_a_plain_one(other, got):
    for sides in ((Side("jax", decode="on"), other), (other, Side("jax", decode="on"))):
        with pytest.raises(ConfigError) as raised:
            plain_and_served(sides)
        assert_explains(raised, "must be compared with a plain one", f"got {got}.", "Compare each")


def test_every_source_of_an_original_is_a_side():
    for source in SOURCES:
        assert parse_side(source) == Original(source, None)

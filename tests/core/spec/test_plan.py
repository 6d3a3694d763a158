"""The mesh that a plan proposes, why, and what would fit."""

import dataclasses
import json

import pytest
from cases import assert_explains

import palm
from palm.memory import in_units
from palm.spec.mesh import Mesh
from palm.spec.plan import USABLE


def test_the_smallest_model_axis_that_fits_is_proposed():
    short = {"batch": 8, "length": 16}  # the output matrix, whole in data, is most of it
    alone = palm.plan("palm-8b", devices=8, **short)
    assert alone.mesh == Mesh(data=8)
    assert alone.fits is None
    assert alone.reasons == ()
    size = int(alone.bytes_per_device / USABLE)
    assert palm.plan("palm-8b", devices=8, **short, memory=size + 1).fits
    less = palm.plan("palm-8b", devices=8, **short, memory=size - 1)
    assert less.mesh == Mesh(data=4, model=2)
    assert less.fits
    assert less.reasons == (f"data=8 takes {in_units(alone.bytes_per_device)}",)


def test_a_batch_that_cannot_be_shared_out_needs_a_larger_model_axis():
    found = palm.plan("palm-540b", devices=2048, batch=1024, memory="64GiB")
    assert found.mesh == Mesh(data=1024, model=2)
    assert found.reasons == ("data=2048 cannot share out 1024 sequences evenly",)
    assert palm.plan("palm-540b", devices=2048, batch=1024, accumulate=2).mesh == Mesh(data=512, model=4)


def test_every_batch_of_a_ramp_is_shared_out():
    assert palm.plan("tiny", devices=1024).mesh.data == 512  # and not the last one's 1,024


def test_a_mesh_that_cuts_everything_is_preferred():
    config = palm.preset("palm-8b", dim=4096 + 2)
    found = palm.plan(config, devices=4, batch=64)
    assert found.mesh == Mesh(data=2, model=2)
    assert found.left_whole == ()
    assert found.reasons == ("data=4 leaves whole what it should cut",)
    assert palm.plan(config, mesh="data=4", batch=64).left_whole == (
        "dim=4098 is not a multiple of data=4, so each device has all of it",
    )


def test_if_no_mesh_cuts_everything_one_that_fits_is_proposed():
    found = palm.plan("palm-8b", devices=3, batch=63)
    assert found.mesh == Mesh(data=3)
    assert found.left_whole
    assert found.reasons[-1] == "no other mesh of these devices would do better"


def test_what_does_not_fit_says_what_would():
    found = palm.plan("palm-8b", devices=8, batch=64, remat=False, memory="45GiB")
    assert found.fits is False
    words = [line.split(" takes ")[0] for line in found.remedies]
    assert words == ["remat=True", "accumulate=16", "devices=32"]
    again = palm.plan("palm-8b", devices=8, batch=64, memory="45GiB", remat=True)
    assert again.fits
    assert found.remedies[0].startswith(f"remat=True takes {again.bytes_per_device / 2**30:.4g} GiB")
    more = palm.plan("palm-8b", devices=32, batch=64, remat=False, memory="45GiB")
    assert more.fits
    assert not palm.plan("palm-8b", devices=16, batch=64, remat=False, memory="45GiB").fits
    both = palm.plan("palm-8b", devices=8, batch=64, length=65536, remat=False, memory="80GiB")
    assert both.remedies[0].startswith("remat=True with accumulate=16 takes ")


def test_another_mesh_may_be_the_remedy():
    given = palm.plan("palm-8b", mesh="model=8", batch=64, memory="40GiB")
    assert given.fits is False
    proposed = palm.plan("palm-8b", devices=8, batch=64, memory="40GiB")
    assert proposed.fits
    assert given.remedies[0].startswith("the same takes ")
    assert given.remedies[0].endswith(f"on the mesh {proposed.mesh}")
    assert [line.split("=")[0] for line in given.remedies[1:]] == ["accumulate", "devices"]  # no remat: it is


def test_nothing_that_would_fit_is_invented():
    assert palm.plan("palm-540b", devices=8, memory="1MiB", batch=8).remedies == ()


def test_a_given_mesh_is_taken():
    found = palm.plan("palm-540b", mesh={"data": 128, "model": 16}, batch=1024, memory="30.75GiB")
    assert found.mesh == Mesh(data=128, model=16)
    assert found.fits
    assert found == palm.plan(
        "palm-540b", mesh="data=128,model=16", devices=2048, batch=1024, memory=33017561088
    )


def test_a_plan_as_json():
    found = palm.plan("tiny", devices=2, memory="1GiB", recipe="bytes")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["bytes_per_device"] == found.bytes_per_device == found.footprint.total
    assert told["fits"] is True
    assert told["mesh"] == {"pod": 1, "data": 2, "model": 1}
    assert palm.PaLMConfig.from_dict(told["config"]) == found.config == palm.preset("tiny").resolve("jax")
    assert palm.Recipe.from_dict(told["recipe"]) == found.recipe == palm.recipe("bytes")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.memory = 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "palm-9b"}, ["preset must be one of tiny"]),
        ({"recipe": "novel"}, ["recipe must be one of bytes"]),
        ({"lr": 1.0}, ["learning_rate"]),
        ({"devices": 0}, ["devices must be a whole number of at least 1"]),
        ({"devices": 1 << 40}, ["devices must be a whole number below", "Use a smaller one"]),
        ({"devices": 3, "mesh": "data=2"}, ["devices must be the mesh's 2; got devices=3", "Leave one out"]),
        ({"mesh": "data=3", "batch": 16}, ["batch must be a multiple of", "got batch=16"]),
        ({"mesh": "seq=3"}, ["mesh must name"]),
        ({"memory": "80"}, ["memory must be bytes or a size in B", "got memory='80'", "Write 80GiB"]),
        ({"memory": 0}, ["memory must be"]),
        ({"dtype": "bfloat16"}, ["dtype must be one of float64, float32"]),
        ({"architecture": "tf"}, ["backend must be one of"]),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, words):
    with pytest.raises(palm.PalmError) as raised:
        palm.plan(**{"model": "tiny", **changes})
    assert_explains(raised, *words)

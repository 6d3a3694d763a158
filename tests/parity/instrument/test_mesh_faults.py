"""A side on a mesh whose processes do not put their parts together as they should: found, and named."""

import pytest
from mesh_faults import FAULTS
from processes import run_processes


@pytest.fixture(scope="module")
def told():
    return run_processes(2, "mesh_faults", list(FAULTS))


@pytest.mark.parametrize("name", ["none", "none, model"])
def test_a_right_mesh_agrees(told, name):
    assert told[name]["outcome"] == "agree"
    assert told[name]["causes"] == []


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("k/v gradients partial", "grad:blocks.2.attention.key_value"),
        ("gradient not summed", "grad:norm"),
        ("gradient summed twice", "grad:norm"),
    ],
)
def test_gradients_that_are_not_put_together_are_named(told, name, first):
    assert told[name]["outcome"] == "differ"
    assert told[name]["first"] == first
    assert {(side, cause) for side, cause, _ in told[name]["causes"]} == {("mesh", name)}


def test_slopes_of_the_heads_of_another_process_are_named(told):
    found = told["slopes of other heads"]
    assert found["outcome"] == "differ"
    assert found["first"] == "blocks.0.attention"
    assert {(side, cause) for side, cause, _ in found["causes"]} == {("mesh", "ALiBi slopes")}

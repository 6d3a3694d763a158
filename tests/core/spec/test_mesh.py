"""The mesh, and the table of what is cut along it."""

import pytest

import palm
from palm.errors import ConfigError
from palm.spec.mesh import Mesh, check_batch, cuts, left_whole, mesh_of, piece, ways
from palm.spec.parameters import parameters

SMALL = palm.PaLMConfig(num_tokens=32, dim=16, depth=2, heads=4, dim_head=4)


@pytest.mark.parametrize(
    "given", ["data=4,model=2", " data=4, model=2", {"model": 2, "data": 4}, Mesh(data=4, model=2)]
)
def test_a_mesh_is_written_in_several_ways(given):
    assert mesh_of(given) == Mesh(1, 4, 2)
    assert mesh_of(str(mesh_of(given))) == mesh_of(given)


def test_no_mesh_is_one_device():
    assert mesh_of(None) == Mesh()
    assert mesh_of(None).size == 1


@pytest.mark.parametrize(
    "given",
    [
        "",
        "4",
        "data",
        "data=",
        "data=0",
        "data=-1",
        "data=1.5",
        "data=²",
        "data=2,data=2",
        "rows=2",
        "data=" + "9" * 30,
        {"data": 0},
        {"data": 2.5},
        {"data": True},
        {"rows": 2},
        {1: 2},
    ],
)
def test_what_is_no_mesh_is_refused(given):
    with pytest.raises(ConfigError, match="mesh"):
        mesh_of(given)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_every_matrix_is_cut_along_both_axes_that_divide_it(backend):
    config, mesh = SMALL.resolve(backend), Mesh(data=2, model=4)
    found = cuts(config, mesh)
    assert list(found) == list(parameters(config))
    assert found["embedding"] == ("model", "data")
    assert found["blocks.1.attention.query"] == ("data", "model")
    assert found["blocks.1.attention.out"] == ("model", "data")
    assert found["blocks.0.feedforward.down"] == ("model", "data")
    assert found["blocks.0.norm"] == found["norm"] == (None,)
    keys = [cut for name, cut in found.items() if name.split(".")[-1] in ("key", "value", "key_value")]
    assert set(keys) == {("data", None)}
    assert left_whole(config, mesh) == ()


def test_one_device_cuts_nothing():
    config = SMALL.resolve("jax")
    assert {axis for cut in cuts(config, Mesh()).values() for axis in cut} == {None}
    assert left_whole(config, Mesh()) == ()


def test_what_does_not_divide_stays_whole_and_is_told():
    config = palm.PaLMConfig(num_tokens=33, dim=15, depth=1, heads=3, dim_head=4).resolve("jax")
    mesh = Mesh(data=2, model=2)
    found = cuts(config, mesh)
    assert found["embedding"] == (None, None)
    # Three heads of four numbers are twelve, which divide, but a head is not cut.
    assert found["blocks.0.attention.query"] == (None, None)
    assert ways(config, mesh, "heads") == 1
    assert found["blocks.0.feedforward.up"] == (None, "model")
    assert [line.split()[0] for line in left_whole(config, mesh)] == ["num_tokens=33", "heads=3", "dim=15"]


def test_a_pod_has_all_weights():
    config = SMALL.resolve("jax")
    assert cuts(config, Mesh(pod=2)) == cuts(config, Mesh())


def test_pieces_of_all_devices_are_the_whole():
    config, mesh = SMALL.resolve("jax"), Mesh(data=2, model=4)
    for name, row in parameters(config).items():
        cut = cuts(config, mesh)[name]
        ways = [1 if axis is None else mesh.shape[axis] for axis in cut]
        assert tuple(n * k for n, k in zip(piece(cut, row.shape, mesh), ways, strict=True)) == row.shape


def test_a_batch_is_shared_out_evenly_or_refused():
    check_batch(8, 2, Mesh(pod=2, data=2))
    with pytest.raises(ConfigError, match=r"a multiple of accumulate · pod · data = 8 .* got batch=12"):
        check_batch(12, 2, Mesh(pod=2, data=2))

"""A model on a mesh of devices is the model on one device, and each device holds its part of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from cases import ROOT, assert_explains
from peaks import RESET
from started import assert_started

import palm
from palm import jax_impl
from palm.jax_impl import sharding
from palm.jax_impl.sharding import _grid
from palm.spec.mesh import Mesh

EXACT, WEIGHTS = 1e-13, 1e-12
MESHES = ("data=4", "model=2", "data=2,model=2", "pod=2,data=2")
OTHER = {"positions": "rotary", "share_kv": False, "tie_embeddings": False}
# Sizes that nothing divides: heads and vocabulary are left whole, and the loss fills up the vocabulary.
ODD = {"num_tokens": 23, "heads": 3}
TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"config": OTHER, "recipe": {"optimizer": "adafactor", "remat": True}},
    "in micro-batches": {"recipe": {"accumulate": 2}},
    "in parts": {"most": 60, "recipe": {"remat": "feedforward"}},
    "odd": {"config": {**ODD, "tie_embeddings": False}, "most": 60, "recipe": {"optimizer": "adafactor"}},
    "odd xPos": {
        "config": {**OTHER, **ODD, "positions": "xpos", "qk_norm": True},
        "recipe": {"accumulate": 2, "remat": True},
    },
    "untied": {"config": {"share_kv": False, "tie_embeddings": False}, "recipe": {"remat": "feedforward"}},
    "tied xPos": {
        "config": {"positions": "xpos", "qk_norm": True},
        "most": 60,
        "recipe": {"accumulate": 2},
    },
    "frozen": {"recipe": {"freeze": r"embedding|blocks\.0\..*|.*\.up", "optimizer": "adafactor"}},
}


def cells(what: str, mesh: str, name: str = "plain", **more: Any) -> dict[str, Any]:
    return {"what": what, "mesh": mesh, **TRAININGS[name], **more}


def run(*asked: dict[str, Any], processes: int = 1, timeout: float = 1800) -> list[Any]:
    """What `mesh_cells.py` finds, of each process."""
    command = [
        sys.executable,
        "-W",
        "error",
        str(ROOT / "tests" / "jax_impl" / "mesh_cells.py"),
        json.dumps(asked),
    ]
    several: list[list[str]] = [[]]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        several = [[str(rank), port] for rank in range(processes)]
    # XLA ends a process whose devices wait for one another for more than 40 seconds: a busy machine is slow.
    flags = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=900"
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(
            [*command, *own], env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths}, **pipes
        )
        for own in several
    ]
    try:
        told = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), told[0][1] + told[-1][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def is_right(found: dict[str, Any]) -> bool:
    """Whether a training on a mesh is that on one device."""
    return (
        max(found["outcomes"], found["validation"]) <= EXACT
        and max(found["weights"], found["moments"]) <= WEIGHTS
    )


def is_compiled_once(found: dict[str, Any]) -> bool:
    return found["compiled"] == [1] + [0] * (len(found["compiled"]) - 1)


def test_a_training_on_a_mesh_is_that_on_one_device():
    meshes = {"plain": "data=2,model=2", "odd xPos": "pod=2,data=2", "tied xPos": "model=2"}
    asked = [cells("training", mesh, name) for name, mesh in meshes.items()]
    controls = [cells("training", "data=2,model=2", "plain", fault="slopes")]
    [[*found, wrong]] = run(*asked, *controls)
    for cell, figures in zip(asked, found, strict=True):
        assert is_right(figures), (cell, figures)
        assert is_compiled_once(figures), (cell, figures)
    assert not is_right(wrong)


@pytest.mark.whole
def test_every_kind_of_training_on_every_mesh():
    asked = [cells("training", mesh, name) for name in TRAININGS for mesh in MESHES]
    [found] = run(*asked)
    for cell, figures in zip(asked, found, strict=True):
        assert is_right(figures), (cell, figures)
        assert is_compiled_once(figures), (cell, figures)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "mesh", "fault"),
    [
        ("plain", "model=2", "slopes"),
        ("plain", "data=2,model=2", "rows"),
        ("odd", "model=2", "padding"),
    ],
)
def test_a_fault_on_a_mesh_is_noticed(name, mesh, fault):
    [[found]] = run(cells("training", mesh, name, fault=fault))
    assert not is_right(found)


@pytest.mark.whole
def test_weights_placed_otherwise_than_a_step_leaves_them_are_compiled_for_twice():
    """The control of what is compiled once: here they are whole on each device at first."""
    [[found]] = run(cells("training", "data=4", fault="placement"))
    assert is_right(found)
    assert not is_compiled_once(found)


@pytest.mark.whole
def test_each_device_holds_its_part():
    [[quarter, whole]] = run(cells("training", "data=4", config={"dim": 64}), cells("training", "pod=4"))
    assert quarter["share"] <= 1.02 / 4
    assert whole["share"] == 1  # the control: each pod has all weights


@pytest.mark.whole
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "odd xPos"])
def test_narrow_precisions_differ_by_rounding(name, precision):
    asked = [cells("rounding", mesh, name, precision=precision) for mesh in ("data=4", "data=2,model=2")]
    [[*found, wrong]] = run(*asked, cells("rounding", "data=4", name, precision=precision, fault="rows"))
    for figures in found:
        assert figures["ratio"] <= 1.5
        assert figures["of bound"] <= 1
    assert wrong["ratio"] > 1.5


@pytest.mark.whole
def test_what_a_user_does_with_a_model_on_a_mesh():
    asked = [cells("uses", mesh, name) for name in ("plain", "odd xPos") for mesh in MESHES]
    [[*found, control]] = run(*asked, cells("uses", "data=4", seed=4))
    for cell, figures in zip(asked, found, strict=True):
        assert figures["generate None"], (cell, figures)
        assert figures["generate int8"], (cell, figures)
        assert max(figures[what] for what in ("activations", "value_and_grad", "one sequence")) <= 1e-12
        assert max(figures["vmap"], figures["one operation at a time"]) <= 1e-12
        uneven = "" if cell["mesh"] == "model=2" else "ConfigError: batch must be a multiple of"
        assert all(words.startswith(uneven) and bool(words) == bool(uneven) for words in figures["uneven"])
        assert figures["whole"] == 0
        assert figures["mesh"] == cell["mesh"]
        assert figures["of one"] == "data=1"
        sizes = dict(pair.split("=") for pair in cell["mesh"].split(","))
        assert figures["placement"] == [
            str({axis: int(sizes.get(axis, 1)) for axis in ("pod", "data", "model")}),
            "blockwise",
        ]
    assert not control["generate None"]


@pytest.mark.whole
@pytest.mark.parametrize("mesh", ["data=4", "data=2,model=2"])
def test_a_training_goes_on_on_its_mesh_and_compiles_nothing(mesh):
    [[found]] = run(cells("resumed", mesh))
    assert found == {"same": True, "compiled": 0, "first": True}


@pytest.mark.whole
@pytest.mark.parametrize("mesh", ["data=4", "data=2,model=2"])
def test_two_processes_are_one_device(mesh):
    asked = [cells("training", mesh, name) for name in ("plain", "odd xPos")]
    first, second = run(*asked, cells("resumed", mesh), processes=2)
    for mine, other in zip(first[:2], second[:2], strict=True):
        assert is_right(mine), mine
        assert is_compiled_once(mine)
        assert mine == {**other, "first": True}
    assert first[2] == {"same": True, "compiled": 0, "first": True}
    assert [found["first"] for found in second] == [False] * 3


def test_two_processes_save_and_read_their_own_pieces(tmp_path):
    cell = cells("pieces", "data=2,model=2", "plain", then="data=4", folder=str(tmp_path))
    found = [of_one for [of_one] in run(cell, processes=2)]
    for figures in found:
        assert figures["whole"]
        assert figures["again"]
        assert figures["plain"]
        assert 0.4 < figures["owned"] < 0.6
        assert 0.4 < figures["read"] < 0.6  # of two devices each
    assert sum(figures["owned"] for figures in found) == pytest.approx(1)


def test_two_processes_start_from_a_checkpoint_of_which_each_reads_its_part(tmp_path):
    found = [of_one for [of_one] in run(cells("start", "data=4", folder=str(tmp_path)), processes=2)]
    for figures in found:
        assert_started(figures)
    assert found[0]["losses"] == found[1]["losses"]
    assert max(figures["read"] for figures in found) < 1.2  # half of it for its devices, half for the digest


@pytest.mark.skipif(not RESET.exists(), reason="the peak of a process is what Linux says")
def test_no_process_needs_more_memory_than_its_pieces_and_a_little(tmp_path):
    for [figures] in run(cells("memory", "data=2,model=2", folder=str(tmp_path)), processes=2):
        assert figures["same"]
        assert figures["share"] == pytest.approx(0.5, abs=0.03)
        assert max(figures[name] for name in ("build", "save", "load")) <= 1.3, figures
        assert (figures["drawn"], figures["largest"]) == (pytest.approx(1, abs=0.06), 1)
        assert figures["control"] > 2  # the negative control: whole weights would be seen
        assert max(figures["held"]) <= 0.26  # of four devices


def test_each_process_reads_the_rows_of_its_own_devices_once():
    asked = cells("rows", "data=4", "in micro-batches"), cells("rows", "data=2,model=2")
    for first, second in zip(*run(*asked, processes=2), strict=True):
        assert first["same"]
        assert second["same"]
        assert len(first["read"]) == len(second["read"]) == 4
        assert sorted(first["read"] + second["read"]) == list(range(8))


@pytest.mark.whole
@pytest.mark.parametrize("then", ["model=2", "pod=4"])
def test_one_process_owns_the_pieces_of_all_its_devices(tmp_path, then):
    [[found]] = run(cells("pieces", "pod=2,data=2", "odd xPos", then=then, folder=str(tmp_path)))
    assert found == {"whole": True, "again": True, "plain": True, "owned": 1, "read": 1, "first": True}


@pytest.mark.whole
def test_two_processes_with_a_fault_are_noticed():
    for found in run(cells("training", "data=4", fault="rows"), processes=2):
        assert not is_right(found[0])


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(palm.BackendError) as raised:
        jax_impl.device_mesh(Mesh(data=64, model=2))
    assert_explains(raised, "mesh must be of at most", "got mesh=data=64,model=2", "Change the mesh")


class Chip:
    """A device as `mesh_utils` sees it, in one of several slices."""

    platform = device_kind = "cpu"
    process_index = 0

    def __init__(self, number: int, slice_index: int) -> None:
        self.id, self.slice_index = number, slice_index


def test_each_slice_of_several_is_a_pod():
    chips = [Chip(number, number % 2) for number in range(8)]
    grid = _grid(Mesh(pod=2, data=2, model=2), chips)
    assert grid.shape == (2, 2, 2)
    for pod in grid:
        assert len({chip.slice_index for chip in pod.flat}) == 1
    near = _grid(Mesh(pod=2, data=2, model=2), [Chip(number, 0) for number in range(8)])
    assert [chip.id for chip in near.flat] == list(range(8))  # the control: one slice, in JAX's order


@pytest.mark.parametrize(("columns", "parts", "filled"), [(100, 12, 1536), (100, 10, 100), (100, 1, 100)])
def test_a_part_of_what_does_not_divide_is_whole_registers_of_a_tpu(monkeypatch, columns, parts, filled):
    monkeypatch.setattr(sharding, "ways", lambda x: parts)
    weight = np.ones((3, columns), np.float32)
    found = np.asarray(sharding.in_columns(weight))
    assert found.shape == (3, filled)
    assert (found[:, :columns] == 1).all()
    assert not found[:, columns:].any()


def test_a_mesh_of_one_device_is_that_device():
    config = palm.preset("tiny").resolve("jax")
    one = palm.build(config, backend="jax", device=jax_impl.device_mesh(Mesh()))
    assert jax_impl.mesh_of_model(one) == Mesh()
    assert not hasattr(one.embedding.weight.sharding, "mesh")

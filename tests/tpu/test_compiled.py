"""The TPU's own compiler, for a host of four v4 chips: `nox -s tpu_compile`. There need be no TPU."""

import os
import signal
import subprocess
import sys
import time
from functools import cache

import pytest

import palm
from palm.errors import BackendError, ConfigError
from palm.spec.plan import Plan

CONFIG = palm.preset("palm-8b", num_tokens=8192, dim=512, depth=3, heads=4, dim_head=128)
CHIPS = "v4:2x2x1"


@cache
def plan(mesh: str, topology: str = CHIPS, **changes) -> Plan:
    return palm.plan(CONFIG, **{"mesh": mesh, "topology": topology, "batch": 8, "length": 512, **changes})


@pytest.mark.parametrize("mesh", ["data=4", "data=2,model=2", "pod=2,data=2"])
def test_the_compiler_gives_each_chip_what_the_table_says(mesh):
    found = plan(mesh)
    assert found.compiled.sizes["arguments"] == pytest.approx(found.footprint.state, rel=0.02)
    assert found.fits
    assert found.memory == int(30.75 * 2**30)
    assert found.bytes_per_device == sum(found.compiled.sizes.values())


@pytest.mark.parametrize("mesh", ["data=4", "data=2,model=2"])
def test_all_gathers_are_those_that_there_must_be(mesh):
    found = plan(mesh)
    assert 0.7 < found.compiled.collectives["all-gather"].bytes / found.traffic.gathered < 1.3
    deeper = palm.plan(
        palm.preset("palm-8b", num_tokens=8192, dim=512, depth=5, heads=4, dim_head=128),
        **{"mesh": mesh, "topology": CHIPS, "batch": 8, "length": 512},
    )
    grown = deeper.compiled.collectives["all-gather"].bytes - found.compiled.collectives["all-gather"].bytes
    assert grown == pytest.approx(deeper.traffic.gathered - found.traffic.gathered, rel=0.05)


def test_what_model_cuts_is_reduced_once_in_each_direction():
    """The outputs of both branches in one sum, and so the gradients of a block's input, in the precision."""

    def reduced(depth: int) -> tuple[int, int]:
        config = palm.preset("palm-8b", num_tokens=8192, dim=512, depth=depth, heads=4, dim_head=128)
        found = palm.plan(config, mesh="data=2,model=2", topology=CHIPS, batch=8, length=512)
        kinds = ("reduce-scatter", "all-reduce")
        return sum(found.compiled.collectives[kind].bytes for kind in kinds), found.traffic.reduced

    (small, must), (large, must_more) = reduced(3), reduced(5)
    # Gradients of weights are summed in float32, and those of keys and values over `model`, too.
    assert (large - small) / (must_more - must) < 2


def test_a_step_that_is_too_large_says_what_it_needs():
    found = palm.plan("palm-8b", mesh="data=4", topology=CHIPS, batch=64)
    assert found.fits is False
    assert found.bytes_per_device > found.memory == int(30.75 * 2**30)
    assert found.compiled.collectives == {}
    # The state counts also where the compiler speaks of nothing else because that is too much by itself.
    assert found.bytes_per_device > found.memory + found.footprint.state
    found = palm.plan("palm-8b", mesh="data=4", topology=CHIPS, batch=4)
    assert found.fits is False


@pytest.mark.parametrize(
    ("mesh", "topology", "words"),
    [
        (
            "data=2",
            CHIPS,
            "mesh must be of the 4 chips of the topology v4:2x2x1; got mesh=data=2, which is 2",
        ),
        ("data=4", "v99:2x2x1", "topology must be one that the TPU's compiler knows"),
        ("data=4", "v4:nothing", "topology must be one that the TPU's compiler knows"),
    ],
)
def test_what_there_is_not_is_refused(mesh, topology, words):
    with pytest.raises(ConfigError, match=words):
        plan(mesh, topology)


def test_a_compiler_that_is_not_done_in_time_is_ended():
    with pytest.raises(BackendError, match="compiling must be done in 2 seconds"):
        plan("data=4", timeout=2)


def test_the_compiler_ends_with_the_process_that_asked():
    ask = (
        "import palm, sys; print(flush=True); "
        "palm.plan('palm-540b', mesh='data=2,model=2', topology='v4:2x2x1', batch=4)"
    )
    with subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE) as asking:
        asking.stdout.readline()
        child = _child_of(asking.pid)
        os.kill(asking.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _runs(child)


def _child_of(parent: int) -> int:
    while True:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            children = file.read().split()
        if children:
            return int(children[0])
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False

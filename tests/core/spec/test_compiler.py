"""Asking the TPU's compiler: what is asked, and what comes of an answer, of none and of a wrong one.

The compiler itself is asked in tests/tpu, by `nox -s tpu_compile`.
"""

import json
import os
import sys

import pytest
from cases import assert_explains

import palm
from palm.cli.main import main
from palm.errors import BackendError, ConfigError, MissingFrameworkError
from palm.process import tell
from palm.spec import compiler

ANSWER = {
    "total": 3 * 2**30,
    "memory": 4 * 2**30,
    "seconds": 2.5,
    "sizes": {"arguments": 2**30, "temporary": 2 * 2**30, "outputs": 0, "program": 0},
    "collectives": {"all-gather": {"count": 12, "bytes": 2**20}},
}
MESH = "data=2,model=2"
STUB = "import palm\nfrom palm.process import refuse\nfrom palm.spec.compiler import answer\n"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The requests to a child that answers as `answers` says: with a program of Python."""
    requests_of = {"program": f"print('noise'); print({json.dumps(ANSWER)!r})", "requests": []}
    start = compiler.start_python

    def started(module, *, env, **pipes):
        assert module == "palm.jax_impl.compiled"
        requests_of["env"] = env
        (tmp_path / "stub.py").write_text(STUB + requests_of["program"])
        path = os.pathsep.join([str(tmp_path), *sys.path])
        requests_of["process"] = start("stub", env={**env, "PYTHONPATH": path}, **pipes)
        return requests_of["process"]

    def told(process, request):
        requests_of["requests"].append(json.loads(json.dumps(request)))
        tell(process, request)

    monkeypatch.setattr(compiler, "find_spec", lambda name: True)
    monkeypatch.setattr(compiler, "start_python", started)
    monkeypatch.setattr(compiler, "tell", told)
    return requests_of


def plan(**changes):
    return palm.plan("tiny", **{"mesh": MESH, "topology": "v4:2x2x1", "batch": 8, **changes})


def test_what_the_compiler_says_counts(asked):
    found = plan()
    [request] = asked["requests"]
    assert palm.PaLMConfig.from_dict(request["config"]) == found.config
    assert palm.Recipe.from_dict(request["recipe"]) == found.recipe
    assert request["mesh"] == {"pod": 1, "data": 2, "model": 2}
    assert request["topology"] == "v4:2x2x1"
    assert asked["env"]["JAX_PLATFORMS"] == "cpu"
    assert found.bytes_per_device == 3 * 2**30
    assert found.memory == 4 * 2**30
    assert found.fits
    told = json.loads(json.dumps(found.to_dict()))
    assert told["bytes_per_device"] == 3 * 2**30
    assert told["compiled"] == {"topology": "v4:2x2x1", **ANSWER}
    assert told["bytes"] == palm.plan("tiny", mesh=MESH, batch=8).to_dict()["bytes"]


def test_what_is_too_large_does_not_fit(asked, capsys):
    large = {**ANSWER, "total": 5 * 2**30, "sizes": {}, "collectives": {}}
    asked["program"] = f"print({json.dumps(large)!r})"
    assert plan().fits is False
    assert main(["plan", "tiny", "--mesh", MESH, "--topology", "v4:2x2x1", "--batch", "8"]) == 1
    assert "5 GiB a device; does not fit 4 GiB, compiled for v4:2x2x1" in capsys.readouterr().out


def test_the_command_shows_collectives(asked, capsys):
    assert main(["plan", "tiny", "--mesh", MESH, "--topology", "v4:2x2x1", "--batch", "8"]) == 0
    out = capsys.readouterr().out
    assert "3 GiB a device; fits 4 GiB" in out
    assert "all-gather, 12 a step" in out
    assert "temporary" in out
    assert "compiled in" in out


def test_what_the_compiler_refuses_is_an_error(asked):
    asked["program"] = "refuse(palm.ConfigError('mesh must be of 4 chips;\\n got 3.'))"
    with pytest.raises(ConfigError, match=r"^mesh must be of 4 chips; got 3\.$"):
        plan()


def test_an_exit_with_the_same_status_is_no_refusal(asked):
    asked["program"] = "raise SystemExit(3)"
    with pytest.raises(BackendError, match="got status 3"):
        plan()


def test_the_child_says_what_the_parent_reads(asked):
    asked["program"] = f"answer(lambda request: {ANSWER!r} | {{'seconds': float(request['mesh']['data'])}})"
    assert plan().compiled.seconds == 2
    asked["program"] = "def main(request): raise palm.TokenError('no\\n'); \nanswer(main)"
    with pytest.raises(palm.TokenError, match=r"^no$"):
        plan()


def test_a_compiler_that_dies_is_an_error(asked):
    asked["program"] = "import os, sys; print('half', file=sys.stderr, flush=True); os.abort()"
    with pytest.raises(BackendError) as raised:
        plan()
    assert_explains(raised, "the compiler must finish", "got status -6", "half")


def test_a_compiler_that_takes_too_long_is_ended(asked):
    asked["program"] = "import time; time.sleep(600)"
    with pytest.raises(BackendError) as raised:
        plan(timeout=0.5)
    assert_explains(raised, "compiling must be done in 0.5 seconds", "Give it more")
    assert asked["process"].poll() is not None


@pytest.mark.parametrize("missing", ["jax", "equinox", "libtpu"])
def test_a_missing_package_is_named(missing, monkeypatch):
    monkeypatch.setattr(compiler, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(MissingFrameworkError) as raised:
        plan()
    assert_explains(raised, f"{missing} must be installed to compile for a TPU", "Run: pip install")


@pytest.mark.parametrize("changes", [{"mesh": None}, {"memory": "8GiB"}, {"dtype": "float64"}])
def test_a_topology_has_its_own_memory_and_needs_a_mesh(changes, asked):
    with pytest.raises(ConfigError, match="topology must be given with a mesh, and without memory"):
        plan(**changes)
    assert asked["requests"] == []

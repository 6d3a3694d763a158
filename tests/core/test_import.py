"""Which frameworks palm loads, and what it says where one is missing."""

import json
import os
from itertools import product

import pytest
from cases import FRAMEWORKS, ROOT, python

import palm
from palm import BackendError, MissingFrameworkError, build

LOADED = f"""
import sys
print(sorted(name for name in {FRAMEWORKS} if name in sys.modules))
"""
USE = """
from palm import PRESETS, compare, load, preset, save
import palm.checkpoint.checkpoint, palm.parity.compare, palm.data.windows, palm.spec.backward
preset("tiny").resolve("torch").to_json()
palm.available_backends()
"""


def loaded_by(code: str) -> str:
    run = python(code + LOADED)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Make Python see exactly these frameworks, as empty packages, whatever is really installed."""

    def install(*names: str) -> str:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").touch()
        path = [str(tmp_path), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        # Python takes a module that is None for one that cannot be found.
        missing = [name for name in FRAMEWORKS if name not in names]
        return f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n"

    return install


def test_importing_palm_loads_neither_framework():
    assert loaded_by("import palm") == "[]"


def test_using_what_needs_no_framework_loads_neither(installed):
    assert loaded_by(installed(*FRAMEWORKS) + USE) == "[]"


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_import_of_a_framework_would_be_seen(installed, name):
    """The twin of the two tests above: the same question with another answer."""
    assert loaded_by(installed(*FRAMEWORKS) + f"import palm, {name}") == f"['{name}']"


EACH_COMBINATION = """
import itertools, json, palm
for there in itertools.product([True, False], repeat=3):
    for name, found in zip(FRAMEWORKS, there):
        if found:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = None
    print(json.dumps([there, palm.available_backends()]))
"""


def test_available_backends_are_those_whose_frameworks_are_all_there(installed):
    run = python(installed(*FRAMEWORKS) + f"FRAMEWORKS = {FRAMEWORKS}" + EACH_COMBINATION)
    found = {tuple(there): backends for there, backends in map(json.loads, run.stdout.splitlines())}
    assert found == {
        (torch, jax, equinox): ["torch"] * torch + ["jax"] * (jax and equinox)
        for torch, jax, equinox in product([True, False], repeat=3)
    }


MISSING = """
import palm
config = palm.preset("tiny").resolve("torch")
calls = [
    lambda: palm.build(config, backend="{backend}"),
    lambda: palm.from_numpy(config, {{}}, backend="{backend}"),
]
for call in calls:
    try:
        call()
    except palm.MissingFrameworkError as error:
        assert isinstance(error, ImportError) and isinstance(error, palm.PalmError)
        print(error)
"""


@pytest.mark.parametrize(
    ("backend", "there", "needs", "missing"),
    [
        ("torch", [], "torch", "torch"),
        ("torch", ["jax", "equinox"], "torch", "torch"),
        ("jax", [], "jax and equinox", "jax"),
        ("jax", ["torch"], "jax and equinox", "jax"),
        ("jax", ["torch", "jax"], "jax and equinox", "equinox"),
    ],
)
def test_a_missing_framework_is_named_with_the_command_that_installs_it(
    installed, backend, there, needs, missing
):
    run = python(installed(*there) + MISSING.format(backend=backend))
    words = (
        f'backend="{backend}" needs {needs}; {missing} is not installed. '
        f'Run: pip install "palm-dual[{backend}]".'
    )
    assert run.stdout.splitlines() == [words, words], run.stderr


def test_a_saved_model_whose_framework_is_missing_is_still_read_as_arrays(installed, tmp_path):
    code = (
        installed()
        + """
import numpy as np
from cases import draw_weights, small
from palm.checkpoint.checkpoint import load_arrays, save_arrays
path = save_arrays(small(), draw_weights(small()), sys.argv[1])
print(len(load_arrays(path)[1]))
"""
    )
    run = python(code, str(tmp_path / "checkpoint"))
    assert run.stdout.strip() == "16", run.stderr


@pytest.mark.parametrize("backend", ["tensorflow", "TORCH", "", None])
def test_an_unknown_backend_is_no_missing_framework(backend):
    with pytest.raises(BackendError, match="backend must be one of torch, jax") as raised:
        build(palm.PaLMConfig(num_tokens=3, dim=2, depth=1), backend=backend)
    assert not isinstance(raised.value, MissingFrameworkError)


def test_every_error_is_caught_as_a_palm_error_and_as_its_builtin():
    errors = [getattr(palm, name) for name in palm.__all__ if name.endswith("Error")]
    assert len(errors) == 13
    for error in errors:
        assert issubclass(error, palm.PalmError)
        builtin = (ValueError, ImportError, RuntimeError, ArithmeticError)
        assert error is palm.PalmError or issubclass(error, builtin)


def test_the_public_names_are_there_and_sorted_for_reading():
    assert all(hasattr(palm, name) for name in palm.__all__)
    assert len(set(palm.__all__)) == len(palm.__all__)
    assert not {name for name in palm.__all__ if name.startswith("_")}

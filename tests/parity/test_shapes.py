"""The shapes in signatures are checked where `--shapes` asks for it: wrong ones are caught, in both wings."""

import inspect
import json
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

import pytest
from cases import python
from conftest import SHAPED
from jaxtyping import AbstractArray

CODE = f"""
import json, sys
from jaxtyping import TypeCheckError, install_import_hook
if sys.argv[1] == "hooked":
    install_import_hook({[f"palm.{module}" for module in SHAPED]}, "beartype.beartype")
import jax.numpy as jnp, numpy as np, torch
from palm import jax_impl, preset, torch_impl
from palm.spec.functions import normalise

def caught(call):
    try:
        call()
    except TypeCheckError:
        return True
    except Exception:
        return False
    return False

def attend(wing, ones, keys):
    return wing.textbook_attention(ones((4, 2, 8)), ones((4, 8)), ones((keys, 8)), None)

config = preset("tiny").resolve("torch")
print(json.dumps([
    [caught(lambda: attend(torch_impl, torch.ones, keys)), caught(lambda: attend(jax_impl, jnp.ones, keys)),
     caught(lambda: normalise(np.ones((2, keys)), np.ones(4), config))]
    for keys in (5, 4)
]))
"""


def found(mode: str) -> list[list[bool]]:
    run = python(CODE, mode)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_wrong_shape_is_caught_and_a_right_one_is_not():
    assert found("hooked") == [[True] * 3, [False] * 3]


@pytest.mark.whole
def test_nothing_is_checked_without_being_asked():
    assert found("plain") == [[False] * 3] * 2


def functions_of(module: ModuleType) -> Iterator[Any]:
    """The functions of a module and the methods of its classes; of a package, what it hands on too."""
    for thing in vars(module).values():
        if not getattr(thing, "__module__", "").startswith(module.__name__):
            continue
        members = vars(thing).values() if inspect.isclass(thing) else [thing]
        for member in members:
            yield getattr(member, "fget", None) or inspect.unwrap(getattr(member, "__wrapped__", member))


def has_shape(annotation: Any) -> bool:
    is_shape = inspect.isclass(annotation) and issubclass(annotation, AbstractArray)
    return is_shape or any(has_shape(part) for part in get_args(annotation))


def shaped(module: ModuleType) -> list[str]:
    """The functions of which a shape in the signature is checked."""
    found = []
    for function in functions_of(module):
        if inspect.isfunction(function):
            annotations = inspect.get_annotations(function, eval_str=True)
            found += [function.__name__] if any(map(has_shape, annotations.values())) else []
    return found


@pytest.mark.parametrize("module", SHAPED)
def test_each_module_that_is_checked_has_a_shape_to_check(module):
    assert shaped(import_module(f"palm.{module}"))


def test_a_module_without_shapes_is_seen():
    assert shaped(import_module("palm.spec.taps")) == []
    assert "normalise" in shaped(import_module("palm.spec.functions"))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("", ["beartype", "jaxtyping"]),
        ("palm.build(palm.preset('tiny'), backend='torch')", ["beartype"]),
        ("palm.build(palm.preset('tiny'), backend='jax')", ["beartype"]),
    ],
)
def test_nothing_that_checks_shapes_is_imported_for_users(code, absent):
    run = python(f"import sys, palm\n{code}\nprint([n for n in {absent} if n in sys.modules])")
    assert run.stdout.strip() == "[]", run.stdout + run.stderr

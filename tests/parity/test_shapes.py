"""The shapes in signatures are checked where `--shapes` asks for it: wrong ones are caught, in both wings."""

import json

from cases import python
from conftest import SHAPED

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


def test_nothing_is_checked_without_being_asked():
    assert found("plain") == [[False] * 3] * 2

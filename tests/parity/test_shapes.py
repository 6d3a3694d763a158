"""The shapes in signatures are checked where `--shapes` asks for it: wrong ones are caught, in both wings."""

import pytest
from cases import python

WRONG = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from conftest import SHAPED
from jaxtyping import TypeCheckError, install_import_hook
if {hooked}:
    install_import_hook([f"palm.{{module}}" for module in SHAPED], "beartype.beartype")
import numpy as np
try:
    {call}
except TypeCheckError:
    print("caught")
except Exception as error:
    print("missed:", type(error).__name__)
else:
    print("missed")
"""
CALLS = {
    "torch": """import torch
    from palm.torch_impl import textbook_attention
    textbook_attention(torch.ones(4, 2, 8), torch.ones(4, 8), torch.ones({keys}, 8), None)""",
    "jax": """import jax.numpy as jnp
    from palm.jax_impl import textbook_attention
    textbook_attention(jnp.ones((4, 2, 8)), jnp.ones((4, 8)), jnp.ones(({keys}, 8)), None)""",
    "referee": """from palm.spec.functions import normalise
    from palm import preset
    normalise(np.ones((4, {keys})), np.ones(4), preset("tiny").resolve("torch"))""",
}


def run(call: str, keys: int, *, hooked: bool) -> str:
    done = python(WRONG.format(call=CALLS[call].format(keys=keys), hooked=hooked))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_shape_is_caught_and_a_right_one_is_not(call):
    assert run(call, 5, hooked=True) == "caught"
    assert run(call, 4, hooked=True) == "missed"


def test_nothing_is_checked_without_being_asked():
    assert run("referee", 5, hooked=False) != "caught"

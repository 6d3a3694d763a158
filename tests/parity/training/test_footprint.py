"""What `palm plan` says of memory, against what JAX's compiler allocates and what PyTorch keeps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch

import palm
from palm.jax_impl.model import PaLM
from palm.jax_impl.train import _State, _step
from palm.recipes import Rates, Recipe, Remat
from palm.spec.footprint import Footprint, footprint
from palm.spec.mesh import Mesh
from palm.torch_impl import Trainer

REMAT: tuple[Remat, ...] = (False, "feedforward", True)


def recipe(**changes: Any) -> Recipe:
    return palm.recipe("bytes", **{"batch": 8, "length": 128, **changes})


def planned(config: palm.PaLMConfig, training: Recipe) -> Footprint:
    return footprint(config, training, Mesh())


def compiled(config: palm.PaLMConfig, training: Recipe) -> Any:
    """What the compiler says of a whole training step on one device."""
    model = jax.eval_shape(lambda: PaLM(config, key=jax.random.key(0)))
    windows = jax.ShapeDtypeStruct((training.batch, training.length + 1), jnp.int32)
    rates = Rates(*[jax.ShapeDtypeStruct((), jnp.float32)] * len(Rates._fields))

    def step(windows: Any, rates: Rates, state: _State) -> Any:
        return _step.__wrapped__((windows, rates, training), state)

    lowered = jax.jit(step, donate_argnums=2).lower(windows, rates, _State(model, model, model))
    return lowered.compile().memory_analysis()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_step_takes_what_is_planned(name, precision, remat):
    """The state exactly; the rest within a factor of 1.5, in bfloat16 1.9.

    On a CPU XLA computes in float32 what is asked for in bfloat16, and keeps both.
    """
    config, training = palm.preset(name).resolve("jax"), recipe(precision=precision, remat=remat)
    told, found = planned(config, training), compiled(config, training)
    assert found.argument_size_in_bytes == pytest.approx(told.state, rel=0.02)
    factor = (told.total - told.state) / found.temp_size_in_bytes
    assert 1 / (1.5 if precision == "float32" else 1.9) < factor < 1.5


@pytest.mark.whole
def test_another_batch_or_model_is_not_what_is_planned():
    config = palm.preset("tiny").resolve("jax")
    told, found = planned(config, recipe(remat=True)), compiled(config, recipe(remat=True, batch=16))
    assert (told.total - told.state) / found.temp_size_in_bytes < 0.7
    wider = planned(palm.preset("tiny", dim=72).resolve("jax"), recipe())
    assert found.argument_size_in_bytes != pytest.approx(wider.state, rel=0.02)


def kept(depth: int, batch: int, precision: str, remat: Remat) -> int:
    """Bytes that the forward pass of the torch wing leaves for the backward pass."""
    config = palm.preset("tiny", depth=depth).resolve("torch")
    learner = Trainer(palm.build(config, backend="torch"), recipe(precision=precision, remat=remat))
    sizes: dict[int, int] = {}
    held = []  # or another tensor would get its place

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner._program._losses(torch.zeros((batch, 129), dtype=torch.int64), None)
    return sum(sizes.values())


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pytorch_keeps_what_is_planned(precision, remat):
    """Of two blocks and four sequences: what else is kept does not depend on both."""

    def of(depth: int, batch: int) -> int:
        return kept(depth, batch, precision, remat)

    told = planned(
        palm.preset("tiny", depth=2).resolve("torch"), recipe(batch=4, precision=precision, remat=remat)
    ).stored
    found = (of(4, 8) - of(2, 8)) - (of(4, 4) - of(2, 4))
    assert 1 <= told / found < 1.35

"""One training step of the JAX wing. Mirror: palm.torch_impl.train.

Letters: b batch, n sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from palm.jax_impl.loss import output_loss, packed, per_counted
from palm.jax_impl.model import PaLM, full_precision
from palm.jax_impl.norm import Norm, widen
from palm.jax_impl.optimizer import OPTIMIZERS
from palm.jax_impl.sharding import everywhere, in_place, kind_of, mesh_on, own_rows, share_out
from palm.jax_impl.weights import Place, canonical, dtype_of, from_arrays, owned, pieces
from palm.recipes import Outcome, Rates, Recipe
from palm.spec.boxes import Piece, Rows, Sliceable
from palm.spec.parameters import Parameter, frozen, numpy_dtype
from palm.tracing.turns import shared

Arrays = dict[str, np.ndarray]


class _State(eqx.Module):
    """What a step changes: the weights and the two moments, each shaped like the model."""

    model: PaLM
    first: PaLM
    second: PaLM


class Trainer:
    """A model that learns, and its optimiser's moments.

    The model's own weights are the master copy, float32 or wider; the computation runs in
    `recipe.precision` on copies of the matrices (norm scales stay as they are). The step is one compiled
    program that takes over the buffers of the state before it, so the model given is copied first.
    """

    def __init__(self, model: PaLM, recipe: Recipe) -> None:
        self.recipe = recipe
        self._begun = False  # the last step has come to its update
        first, second = (jax.tree.map(jnp.zeros_like, model) for _ in range(2))
        self._state = _State(jax.tree.map(jnp.copy, model), first, second)

    @property
    def model(self) -> PaLM:
        """The model as it is now; the next step takes its buffers over."""
        return self._state.model

    @property
    def placement(self) -> tuple[Place, str]:
        """The device or mesh the model was put on, None if it is JAX's own choice, and its attention path."""
        weight = self.model.embedding.weight
        device = next(iter(weight.devices())) if weight.committed else None
        return mesh_on(weight) or device, self.model.blocks.attention.path

    @property
    def intact(self) -> bool:
        """Whether a step that raised an error has changed nothing."""
        return not self._begun and not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._state))

    @shared()
    def step(self, windows: Rows, rates: Rates) -> Outcome:
        """Learn from windows (b, n + 1). Where loss or gradient is not finite, nothing changes.

        On a mesh each process reads the rows of its own devices.
        """
        self._begun = False
        dtype = numpy_dtype(dtype_of(self.model))
        scalars = jax.tree.map(lambda rate: np.asarray(rate, dtype), rates)
        own = own_rows(windows, self.recipe.accumulate, self.model.embedding.weight)
        batch = (own, scalars, self.recipe)
        state, mean_loss, global_norm, squares = _step(batch, self._state)
        self._state, self._begun = state, True
        loss, norm = float(mean_loss), float(global_norm)
        bad: list[str] = []
        if not np.isfinite(norm):
            bad = [name for name, square in canonical(self.model, squares).items() if not np.isfinite(square)]
        return Outcome(loss, norm, bad)

    @shared()
    def evaluate(self, windows: np.ndarray) -> float:
        """Mean cross-entropy of windows (b, n + 1), in nats."""
        ids = share_out(windows.astype(np.int32), self.model.embedding.weight)
        return float(_evaluate(self.model, ids, self.recipe))

    def moments(self) -> Arrays:
        """The optimiser's state under canonical names: `first.NAME` and `second.NAME`."""
        return {
            f"{moment}.{name}": array
            for moment in ("first", "second")
            for name, array in canonical(self.model, getattr(self._state, moment)).items()
        }

    def pieces(self) -> Iterator[Piece]:
        """The pieces of weights and moments that this process owns, seen where they are."""
        yield from pieces(self.model)
        for moment in ("first", "second"):
            for piece in owned(self.model, getattr(self._state, moment)):
                yield piece._replace(name=f"{moment}.{piece.name}")

    def set_moments(self, arrays: Mapping[str, Sliceable]) -> None:
        """Inverse of `moments`, of an optimiser that has run. Takes of each what this process has."""
        model = self.model
        # Placed like the weights: a program is compiled anew for arguments that are not all placed alike.
        device, attention = self.placement

        def read(moment: str) -> PaLM:
            def fetch(parameter: Parameter) -> Sliceable:
                return arrays[f"{moment}.{parameter.name}"]

            return from_arrays(model.config, fetch, dtype=dtype_of(model), device=device, attention=attention)

        self._state = _State(model, read("first"), read("second"))


def _losses(model: PaLM, windows: Any, recipe: Recipe, per_counted: Array | None) -> tuple[Array, Array]:
    """What is minimised, and the cross-entropy in it."""
    model = _learnt(model, lax.stop_gradient(model), recipe)
    config, computing = model.config, _computing(model, recipe)
    segments, targets = packed(jnp.asarray(windows), recipe.pack)
    features = computing(windows[:, :-1], segments=segments, remat=recipe.remat, features=True)
    output = computing.unembedding
    weight = computing.embedding.weight.T if output is None else output.weight
    scale, z_loss = config.logit_scale, recipe.z_loss
    with full_precision(computing):
        return output_loss(features, weight, targets, scale=scale, z_loss=z_loss, per_counted=per_counted)


def _per_counted(model: PaLM, windows: Any, recipe: Recipe) -> Array | None:
    if recipe.pack is None:
        return None
    return per_counted(packed(jnp.asarray(windows), recipe.pack)[1], widen(model.norm.weight))


def _computing(model: PaLM, recipe: Recipe) -> PaLM:
    def cast(node: Any) -> Any:
        return node if isinstance(node, Norm) else node.astype(recipe.precision)

    return jax.tree.map(cast, model, is_leaf=lambda node: isinstance(node, Norm))


_gradient = eqx.filter_value_and_grad(_losses, has_aux=True)


@eqx.filter_jit(donate="all-except-first")
def _step(
    batch: tuple[np.ndarray | Array, Rates, Recipe], state: _State
) -> tuple[_State, Array, Array, PaLM]:
    windows, rates, recipe = batch
    loss, grads = _mean_gradient(state.model, windows, recipe)
    grads = in_place(grads, state.model.config)
    squares = everywhere(_each(lambda g: jnp.square(g).sum(), grads))
    norm = jnp.sqrt(sum(square.sum() for square in jax.tree.leaves(squares)))
    factor = jnp.minimum(1.0, recipe.clip / norm) if recipe.clip else 1.0
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    def update(p: Array, g: Array, m: Array, s: Array) -> tuple[Array, Array, Array]:
        step, new_m, new_s = OPTIMIZERS[recipe.optimizer](p, g * factor, m, s, rates, recipe.eps)
        return jnp.where(finite, p - step, p), jnp.where(finite, new_m, m), jnp.where(finite, new_s, s)

    updated = _each(update, state.model, grads, state.first, state.second)
    new = jax.tree.transpose(jax.tree.structure(state.model), jax.tree.structure((0, 0, 0)), updated)
    old = (state.model, state.first, state.second)
    kept = (_learnt(*trees, recipe) for trees in zip(new, old, strict=True))
    new_state = _State(*(in_place(tree, state.model.config) for tree in kept))
    return new_state, loss, norm, squares


def _mean_gradient(model: PaLM, windows: np.ndarray | Array, recipe: Recipe) -> tuple[Array, PaLM]:
    """Mean cross-entropy, and the mean gradient of `recipe.accumulate` micro-batches of one size."""

    def add(total: tuple[Array, PaLM], micro: Any) -> tuple[tuple[Array, PaLM], None]:
        (_, loss), grads = _gradient(model, micro, recipe, of_all)
        return jax.tree.map(lambda t, x: t + x / recipe.accumulate, total, (loss, grads)), None

    of_all = _per_counted(model, windows, recipe)
    if recipe.accumulate == 1:
        (_, loss), grads = _gradient(model, windows, recipe, of_all)
        return loss, grads
    start = (jnp.zeros((), model.embedding.weight.dtype), jax.tree.map(jnp.zeros_like, model))
    return lax.scan(add, start, windows)[0]


def _learnt(new: PaLM, old: PaLM, recipe: Recipe) -> PaLM:
    """The leaves of `new`, but those of `old` where the weight is frozen; of a stack, layer by layer."""
    names = frozen(new.config, recipe.freeze)
    layers = range(new.config.depth)

    def choose(where: tuple[Any, ...], of_new: Array, of_old: Array) -> Array:
        kind = kind_of(where)
        stay = np.array([kind.replace("blocks", f"blocks.{i}", 1) in names for i in layers])
        if not stay.any():
            return of_new
        if stay.all():
            return of_old
        return jnp.where(stay.reshape(-1, *[1] * (of_new.ndim - 1)), of_old, of_new)

    return jax.tree_util.tree_map_with_path(choose, new, old) if names else new


def _each(function: Any, *trees: PaLM) -> PaLM:
    """`function` of each parameter of the table: the leaves of the blocks are stacks of them."""
    blocks = jax.tree.map(jax.vmap(function), *(tree.blocks for tree in trees))
    whole = jax.tree.map(function, *(eqx.tree_at(lambda t: t.blocks, tree, None) for tree in trees))
    return eqx.tree_at(lambda t: t.blocks, whole, blocks, is_leaf=lambda node: node is None)


@eqx.filter_jit
def _evaluate(model: PaLM, windows: Any, recipe: Recipe) -> Array:
    return _losses(model, windows, recipe, _per_counted(model, windows, recipe))[1]

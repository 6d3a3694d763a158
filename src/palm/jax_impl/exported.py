"""Programs of the JAX wing that run without palm, by jax.export: the forward pass, and a decoding step.

Attention is the textbook's: exact, of operations that every compiler knows, and for any length.
Letters: l layers, b batch, n sequence, s cached positions, e dim_head, v num_tokens.
Mirror: palm.torch_impl.exported; differs in that the programs take their weights as an argument here: as
constants they could not have more than 2 GB.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.tree_util import GetAttrKey, tree_map_with_path

from palm.errors import ConfigError, MissingFrameworkError
from palm.jax_impl.block import Block
from palm.jax_impl.model import PaLM, full_precision
from palm.jax_impl.norm import widen
from palm.jax_impl.position import Rotations, masked_scores
from palm.jax_impl.sharding import kind_of
from palm.spec.arrays import Named
from palm.spec.parameters import parameters
from palm.tracing.turns import shared

PLATFORMS = ("cpu", "cuda", "tpu")
Weights = Mapping[str, Array]


class _Traced:
    """A model that is called with weights of its own, and its programs."""

    def __init__(self, model: PaLM, length: int) -> None:
        self.model, self.length = model, length

    def _filled(self, weights: Weights) -> tuple[PaLM, list[Block]]:
        """The model, and its blocks one by one: stacked, they would be copied in each run."""
        model = tree_map_with_path(
            lambda where, leaf: leaf if where[0].name == "blocks" else weights[kind_of(where)], self.model
        )
        return model, [
            tree_map_with_path(
                lambda where, _, i=i: weights[kind_of((GetAttrKey(f"blocks.{i}"), *where))], self.model.blocks
            )
            for i in range(model.config.depth)
        ]

    def _positions(self, at: Array, x: Array) -> tuple[Rotations | None, Array | None]:
        """What the blocks need of these positions."""
        rotations, slopes = self.model.positions(self.length, x)
        if rotations is not None:
            (cos, sin), (of_keys, too) = rotations
            rotations = (cos[at], sin[at]), (of_keys[at], too[at])
        return rotations, slopes

    def forward(self, weights: Weights, tokens: Array) -> Array:
        """Shapes: (b, n) -> (b, n, v)."""
        with full_precision(self.model):
            model, blocks = self._filled(weights)
            x = model.embedding(tokens)
            rotations, slopes = self._positions(jnp.arange(tokens.shape[1]), x)
            for block in blocks:
                x = block(x, rotations, slopes)
            return model.logits(model.norm(x))

    def decode(
        self, weights: Weights, tokens: Array, positions: Array, caches: tuple[Array, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """The next token of each sequence goes through the model, its keys and values into the caches.

        Shapes: tokens and positions (b,), caches (l, b, s, e) -> logits (b, v), caches.
        """
        with full_precision(self.model):
            model, blocks = self._filled(weights)
            x = model.embedding(tokens)
            rotations, slopes = self._positions(positions, x)
            rows = jnp.arange(tokens.shape[0])
            distance = positions[:, None] - jnp.arange(self.length)
            for i, block in enumerate(blocks):
                y = block.norm(x)
                # The sequences stand in a row, each at a position of its own, as else the tokens of one do.
                q, k, v = block.attention.projected(y, y, rotations)
                caches = tuple(
                    cache.at[i, rows, positions].set(new) for cache, new in zip(caches, (k, v), strict=False)
                )
                keys, values = widen(caches[0][i]), widen(caches[-1][i])
                scores = jnp.einsum("bhe,bje->bhj", widen(q) * q.shape[-1] ** -0.5, keys)
                attending = jax.nn.softmax(masked_scores(scores, slopes, distance), -1)
                attended = jnp.einsum("bhj,bje->bhe", attending, values).astype(x.dtype)
                merged = attended.reshape(x.shape[0], model.config.inner_dim)
                x = x + block.attention.out(merged) + block.feedforward(y)
            return model.logits(model.norm(x)), caches


@shared()
def make_programs(model: PaLM, length: int) -> dict[str, bytes]:
    """The programs "forward" and "decode" of a model with textbook attention, as jax.export serialises them.

    forward: weights by canonical name, tokens (b, n) -> logits (b, n, v), n at most `length`. decode:
    weights, tokens (b,), their positions (b,) and the caches of keys and of values (l, b, length, e), where
    keys are values only one -> logits (b, v), the caches. Any b. Ids and positions are int32.
    Raises `TokenError` for more positions than xPos has, and `MissingFrameworkError` without flatbuffers.
    """
    _check_flatbuffers()
    config, dtype = model.config, model.embedding.weight.dtype
    weights = {name: jax.ShapeDtypeStruct(row.shape, dtype) for name, row in parameters(config).items()}
    traced = _Traced(model, length)
    tokens = _ids("b, n", [f"n <= {length}"])
    forward = _saved(traced.forward, weights, tokens)
    ids = _ids("b")  # the b of another program is another
    cache = jax.ShapeDtypeStruct((config.depth, *ids.shape, length, config.dim_head), dtype)
    caches = (cache,) if config.keys_are_values else (cache, cache)
    return {"forward": forward, "decode": _saved(traced.decode, weights, ids, ids, caches)}


class Programs:
    """Programs that `make_programs` made, read back, and run on NumPy's arrays on JAX's default device."""

    def __init__(self, contents: Mapping[str, bytes], weights: Named) -> None:
        """`contents` by program. Raises what jax.export.deserialize does, `MissingFrameworkError` without
        flatbuffers, and `ConfigError` for float64 without JAX's x64 mode."""
        _check_flatbuffers()
        is_wide = any(array.dtype == np.float64 for array in weights.values())
        if is_wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise ConfigError(
                'programs must be of float32 or bfloat16 while jax_enable_x64 is off; got dtype="float64". '
                'Call jax.config.update("jax_enable_x64", True) first, or set JAX_ENABLE_X64=1.'
            )
        self._weights = {name: jnp.asarray(array) for name, array in weights.items()}
        self._forward, self._decode = (
            jax.jit(export.deserialize(bytearray(contents[name])).call) for name in ("forward", "decode")
        )

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """Shapes: (b, n) -> (b, n, v)."""
        return np.asarray(self._forward(self._weights, tokens.astype(np.int32)))

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, caches: tuple[Any, ...]
    ) -> tuple[np.ndarray, tuple[Any, ...]]:
        """Shapes: tokens and positions (b,), caches (l, b, s, e) -> logits (b, v), caches, JAX's."""
        ids, at = tokens.astype(np.int32), positions.astype(np.int32)
        logits, held = self._decode(self._weights, ids, at, caches)
        return np.asarray(logits), held


def _ids(shape: str, constraints: Sequence[str] = ()) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(export.symbolic_shape(shape, constraints=constraints), jnp.int32)


def _saved(program: Callable[..., Any], *inputs: Any) -> bytes:
    return bytes(export.export(jax.jit(program), platforms=PLATFORMS)(*inputs).serialize())


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingFrameworkError(
            "jax.export needs flatbuffers to save and load programs; it is not installed. "
            "Run: pip install flatbuffers."
        )

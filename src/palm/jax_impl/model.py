"""The PaLM model of the JAX wing.

Letters: n sequence, d dim, v num_tokens. Mirror: palm.torch_impl.model; differs in that blocks are a stack
here and a list there, and that the constructor draws weights here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from palm.config import PaLMConfig
from palm.errors import TokenError
from palm.jax_impl.attention import check_path
from palm.jax_impl.block import Block, recomputed
from palm.jax_impl.linear import Linear, linear, normal
from palm.jax_impl.norm import Norm
from palm.jax_impl.position import Rotations, alibi_slopes, rotation_tables
from palm.jax_impl.shapes import Features, Hidden, Logits, Scores, Segments, Tokens
from palm.jax_impl.sharding import gathered, laid, share_out
from palm.recipes import Remat, check_remat
from palm.spec.parameters import parameters
from palm.spec.taps import BLOCK_TAPS, tap_names
from palm.spec.tokens import check_range, check_segments, check_shape

# So many blocks are compiled one after the other, which runs a fifth faster than a loop over the stack: that
# copies every layer's weights and results out of it and into it. More of them would take long to compile.
UNROLLED = 12
T = TypeVar("T")
Step = Callable[[Array, Block], tuple[Array, dict[str, Array]]]


class Embedding(eqx.Module):
    """A row of `weight` for each id; of NaN for ids that there are none of."""

    weight: Array

    def __init__(self, num_tokens: int, dim: int, *, std: float, dtype: DTypeLike, key: Array) -> None:
        self.weight = normal((num_tokens, dim), std, dtype=dtype, key=key)

    def __call__(self, tokens: Array) -> Array:
        """Shapes: (...) -> (..., d)."""
        # JAX's plain indexing clamps ids that are too large and wraps negative ones, without a word.
        return self.weight.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


class PaLM(eqx.Module):
    """PaLM as an `eqx.Module`: tokens (..., n) -> logits (..., n, v).

    embed; `depth` parallel blocks; norm; times the transposed embedding (or the untied matrix), times
    `config.logit_scale`. Source: PaLM (arXiv:2204.02311) §2.

    `palm.build` draws the weights that the torch wing has for the same seed; `PaLM(config, key=key)` draws
    from the same distributions by `jax.random`. The arrays of all blocks are stacked along a first axis,
    `layers`. Deep models run as one scan over them, so that compile time does not grow with depth. Every leaf
    is a parameter of `spec.parameters`; what is derived is formed while tracing. A call outside jit is
    compiled and cached.
    """

    embedding: Embedding
    blocks: Block
    norm: Norm
    unembedding: Linear | None
    config: PaLMConfig = eqx.field(static=True)

    def __init__(
        self,
        config: PaLMConfig,
        *,
        attention: str = "blockwise",
        dtype: DTypeLike = jnp.float32,
        key: Array,
    ) -> None:
        """`attention` is a path of `palm.jax_impl.ATTENTION`.

        Raises `ConfigError` for another path, one that lacks ALiBi where the config has it, and unless the
        config is resolved.
        """
        std = parameters(config)["embedding"].std
        assert std is not None
        check_path(attention, config)
        for_embedding, for_blocks, for_output = jax.random.split(key, 3)

        def block(key: Array) -> Block:
            return Block(config, attention, dtype=dtype, key=key)

        self.config = config
        self.embedding = Embedding(config.num_tokens, config.dim, std=std, dtype=dtype, key=for_embedding)
        self.blocks = eqx.filter_vmap(block)(jax.random.split(for_blocks, config.depth))
        self.norm = Norm(config, dtype=dtype)
        self.unembedding = None
        if not config.tie_embeddings:
            self.unembedding = Linear(config.dim, config.num_tokens, std=std, dtype=dtype, key=for_output)

    def __call__(
        self,
        tokens: Tokens,
        *,
        segments: Segments | None = None,
        remat: Remat = False,
        features: bool = False,
    ) -> Hidden | Logits:
        """Logits of tokens; any integer dtype, any batch dimensions, also none.

        With `segments`, any integers, a position sees only those earlier ones that have its own: documents
        that are packed into one sequence, or padding (0) and text (1).

        `remat` names what the backward pass computes again instead of storing it: True whole blocks,
        "feedforward" that part of them; `features` gives what the output layer reads, (..., n, d), instead
        of logits.
        Shapes: (..., n) -> (..., n, v). Raises `ConfigError` for another `remat`, and `TokenError`; inside
        jit ids cannot be checked, and those out of range give NaN logits.
        """
        check(tokens, self.config)
        check_remat(remat)
        return _forward(self, *_both(tokens, segments, self), remat, features)

    def activations(self, tokens: Array, segments: Array | None = None) -> dict[str, Array]:
        """Every tap of the forward pass, in dataflow order; the last is `logits`."""
        check(tokens, self.config)
        taps = _activations(self, *_both(tokens, segments, self))
        return {name: taps[name] for name in tap_names(self.config.depth)}  # jit sorts them

    def positions(self, length: int, x: Array) -> tuple[Rotations | None, Array | None]:
        """What the blocks need of positions, formed once a pass: rotary's tables, or ALiBi's slopes."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        if self.config.rotates:
            return rotation_tables(self.config, length, dtype=dtype), None
        return None, alibi_slopes(self.config, dtype=dtype)

    def logits(self, y: Features) -> Scores:
        """The output layer. Shapes: y (..., n, d) -> (..., n, v)."""
        output = self.unembedding
        logits = linear(y, self.embedding.weight.T) if output is None else output(y)
        return logits * self.config.logit_scale


def check(tokens: Array, config: PaLMConfig) -> None:
    """Raise `TokenError` for tokens no model accepts. Ids can be read only outside tracing."""
    if not isinstance(tokens, (jax.Array, np.ndarray)):
        raise TokenError(f"tokens must be a jax.Array; got {type(tokens).__name__}. Use jnp.asarray.")
    check_shape(tokens.shape, jnp.issubdtype(tokens.dtype, jnp.integer), str(tokens.dtype))
    if not isinstance(tokens, jax.core.Tracer):
        ids = np.asarray(tokens)  # JAX's own min of ids that a jit closes over would be traced
        check_range(int(ids.min()), int(ids.max()), config)


def _both(
    tokens: Array | np.ndarray, segments: Array | np.ndarray | None, model: PaLM
) -> tuple[Array, Array | None]:
    if segments is None:
        return _placed(tokens, model), None
    check_segments(segments.shape, jnp.issubdtype(segments.dtype, jnp.integer), tokens.shape)
    return _placed(tokens, model), _placed(segments, model)


def _placed(tokens: Array | np.ndarray, model: PaLM) -> Array:
    if isinstance(tokens, np.ndarray):
        return jnp.asarray(share_out(tokens, model.embedding.weight))
    return jnp.asarray(tokens)


def run(
    model: PaLM,
    tokens: Tokens,
    segments: Segments | None = None,
    remat: Remat = False,
    wanted: tuple[str, ...] = (),
) -> tuple[Hidden, Hidden, dict[str, Array]]:
    """The forward pass up to the output layer, whose tokens are not checked.

    Gives the embedded tokens, what the output layer reads, and the taps of blocks that are `wanted`, stacked
    over layers. Shapes: (..., n) -> (..., n, d), (..., n, d), each (l, ..., n, width).
    """

    def step(x: Array, block: Block) -> tuple[Array, dict[str, Array]]:
        taps = {}

        def keep(name: str, value: Array) -> Array:
            if name in wanted:
                taps[name] = value
            return value

        inputs = (x, rotation, slopes, segments)
        return recomputed(block, *inputs) if remat is True else block(*inputs, remat, keep), taps

    embedding = jax.tree.map(lambda weight: laid(weight, "model"), model.embedding)
    embedded = laid(embedding(tokens), "model")
    rotation, slopes = model.positions(tokens.shape[-1], embedded)
    # Written out, what is computed again would be so all at once, and memory be no less.
    written_out = not remat and model.config.depth <= UNROLLED
    x, taps = (_written_out if written_out else lax.scan)(step, embedded, model.blocks)
    return embedded, gathered(model.norm(x)), taps


@eqx.filter_jit
def _forward(model: PaLM, tokens: Array, segments: Array | None, remat: Remat, features: bool) -> Array:
    def program(model: PaLM, tokens: Array, segments: Array | None) -> Array:
        _, y, _ = run(model, tokens, segments, remat)
        return y if features else model.logits(y)

    with full_precision(model):
        return _without_explicit_axes(program, _like(tokens), model, tokens, segments)


@eqx.filter_jit
def _activations(model: PaLM, tokens: Array, segments: Array | None) -> dict[str, Array]:
    def program(model: PaLM, tokens: Array, segments: Array | None) -> dict[str, Array]:
        embedded, y, stacked = run(model, tokens, segments, wanted=BLOCK_TAPS)
        of_blocks = {
            f"blocks.{i}.{name}": values[i] for name, values in stacked.items() for i in range(len(values))
        }
        return {"embed": embedded, **of_blocks, "norm": y, "logits": model.logits(y)}

    with full_precision(model):
        return _without_explicit_axes(program, _like(tokens), model, tokens, segments)


def _like(tokens: Array) -> PartitionSpec:
    """The sharding of the tokens for (..., n, width)."""
    return PartitionSpec(*jax.typeof(tokens).sharding.spec, None)


def _without_explicit_axes(
    program: Callable[..., T], shardings: Any, model: PaLM, tokens: Array, segments: Array | None
) -> T:
    """`program(model, tokens, segments)`; on a mesh of explicit axes, XLA chooses the shardings inside, and
    the results have these.

    The program folds batch dimensions and heads into rows, which has no explicit sharding. The mesh is that
    of `jax.set_mesh`, or else of the arrays.
    """
    meshes = (jax.typeof(array).sharding.mesh for array in (tokens, *jax.tree.leaves(model)))
    for mesh in (jax.sharding.get_abstract_mesh(), *meshes):
        if mesh.explicit_axes:
            with jax.sharding.use_abstract_mesh(mesh):
                result: T = jax.sharding.auto_axes(program, out_sharding=shardings)(model, tokens, segments)
            return result
    return program(model, tokens, segments)


def _written_out(step: Step, x: Array, blocks: Block) -> tuple[Array, dict[str, Array]]:
    """`lax.scan` without a loop."""
    depth = len(blocks.norm.weight)
    # Not leaf[i], of which the gradient is a whole stack of zeros but for one layer.
    layers = jax.tree.map(lambda leaf: lax.split(leaf, (1,) * depth), blocks)
    taps = []
    for i in range(depth):
        block = jax.tree.map(lambda parts, i=i: parts[i][0], layers, is_leaf=lambda x: isinstance(x, list))
        x, of_block = step(x, block)
        taps.append(of_block)
    return x, jax.tree.map(lambda *values: jnp.stack(values), *taps)


def full_precision(model: PaLM) -> AbstractContextManager[None]:
    """Float32 products in float32, as in torch; JAX's default on a GPU is TF32. The user's word wins."""
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if chosen is None and model.embedding.weight.dtype != jnp.bfloat16:
        chosen = "highest"
    return jax.default_matmul_precision(chosen)

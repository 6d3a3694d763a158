"""The PaLM model of the JAX wing.

Letters: n sequence, d dim, v num_tokens. Mirror: palm.torch_impl.model; differs in that blocks are a stack
here and a list there, and that weights come with the constructor here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from palm.config import PaLMConfig
from palm.errors import TokenError
from palm.jax_impl.block import Block, recomputed
from palm.jax_impl.linear import linear
from palm.jax_impl.norm import Norm
from palm.jax_impl.position import Rotation, alibi_slopes, rotation_table
from palm.recipes import Remat, check_remat
from palm.spec.taps import BLOCK_TAPS
from palm.spec.tokens import check_range, check_shape

# So many blocks are compiled one after the other, which runs a fifth faster than a loop over the stack: that
# copies every layer's weights and results out of it and into it. More of them would take long to compile.
UNROLLED = 12
Step = Callable[[Array, Block], tuple[Array, None]]


class PaLM(eqx.Module):
    """PaLM as an `eqx.Module`: tokens (..., n) -> logits (..., n, v).

    embed; `depth` parallel blocks; norm; times the transposed embedding (or the untied matrix), times
    `config.logit_scale`. Source: PaLM (arXiv:2204.02311) §2.

    Build it with `palm.build`. The arrays of all blocks are stacked along a first axis, `layers`, and deep
    models run as one scan over them, so that compile time does not grow with depth. Every leaf is a parameter
    of `spec.parameters`; what is derived is formed while tracing. A call outside jit is compiled and cached.
    """

    embedding: Array
    blocks: Block
    norm: Norm
    unembedding: Array | None
    config: PaLMConfig = eqx.field(static=True)

    def __call__(self, tokens: Array, *, remat: Remat = False, features: bool = False) -> Array:
        """Logits of tokens; any integer dtype, any batch dimensions, also none.

        `remat` names what the backward pass computes again instead of storing it: True whole blocks,
        "feedforward" that part of them; `features` gives what the output layer reads, (..., n, d), instead
        of logits.
        Shapes: (..., n) -> (..., n, v). Raises `ConfigError` for another `remat`, and `TokenError`; inside
        jit ids cannot be checked, and those out of range give NaN logits.
        """
        check(tokens, self.config)
        check_remat(remat)
        return _forward(self, jnp.asarray(tokens), remat, features)

    def activations(self, tokens: Array) -> dict[str, Array]:
        """Every tap of the forward pass, in dataflow order; the last is `logits`."""
        check(tokens, self.config)
        embedded, stacked, y, logits = _activations(self, jnp.asarray(tokens))
        taps = {"embed": embedded}
        for i in range(self.config.depth):
            taps.update({f"blocks.{i}.{name}": stacked[name][i] for name in BLOCK_TAPS})
        return taps | {"norm": y, "logits": logits}

    def positions(self, length: int, x: Array) -> tuple[Rotation | None, Array | None]:
        """What the blocks need of positions, formed once a pass: rotary's (cos, sin), or ALiBi's slopes."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        if self.config.positions == "rotary":
            return rotation_table(self.config, length, dtype=dtype), None
        return None, alibi_slopes(self.config, dtype=dtype)

    def logits(self, y: Array) -> Array:
        """The output layer. Shapes: y (..., n, d) -> (..., n, v)."""
        weight = self.embedding.T if self.config.tie_embeddings else self.unembedding
        return linear(y, weight) * self.config.logit_scale


def check(tokens: Array, config: PaLMConfig) -> None:
    """Raise `TokenError` for tokens no model accepts. Ids can be read only outside tracing."""
    if not isinstance(tokens, (jax.Array, np.ndarray)):
        raise TokenError(f"tokens must be a jax.Array; got {type(tokens).__name__}. Use jnp.asarray.")
    check_shape(tokens.shape, jnp.issubdtype(tokens.dtype, jnp.integer), str(tokens.dtype))
    if not isinstance(tokens, jax.core.Tracer):
        check_range(int(tokens.min()), int(tokens.max()), config)


@eqx.filter_jit
def _forward(model: PaLM, tokens: Array, remat: Remat, features: bool) -> Array:
    def step(x: Array, block: Block) -> tuple[Array, None]:
        inputs = (x, rotation, slopes)
        return recomputed(block, *inputs) if remat is True else block(*inputs, remat), None

    with full_precision(model):
        x = _embed(model, tokens)
        rotation, slopes = model.positions(tokens.shape[-1], x)
        if remat or model.config.depth > UNROLLED:
            # Written out, what is computed again would be so all at once, and memory be no less.
            x, _ = lax.scan(step, x, model.blocks)
        else:
            x = _written_out(step, x, model.blocks, model.config.depth)
        y = model.norm(x)
        return y if features else model.logits(y)


@eqx.filter_jit
def _activations(model: PaLM, tokens: Array) -> tuple[Array, dict[str, Array], Array, Array]:
    """The embedding, each block's taps stacked over layers, the last norm, and the logits."""

    def step(x: Array, block: Block) -> tuple[Array, dict[str, Array]]:
        taps = block.activations(x, rotation, slopes)
        return taps["out"], taps

    with full_precision(model):
        embedded = _embed(model, tokens)
        rotation, slopes = model.positions(tokens.shape[-1], embedded)
        x, stacked = lax.scan(step, embedded, model.blocks)
        y = model.norm(x)
        return embedded, stacked, y, model.logits(y)


def _written_out(step: Step, x: Array, blocks: Block, depth: int) -> Array:
    """x after all blocks, without a loop."""
    # Not leaf[i], of which the gradient is a whole stack of zeros but for one layer.
    layers = jax.tree.map(lambda leaf: lax.split(leaf, (1,) * depth), blocks)
    for i in range(depth):
        block = jax.tree.map(lambda parts, i=i: parts[i][0], layers, is_leaf=lambda x: isinstance(x, list))
        x, _ = step(x, block)
    return x


def _embed(model: PaLM, tokens: Array) -> Array:
    # JAX's plain indexing clamps ids that are too large and wraps negative ones, without a word.
    return model.embedding.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def full_precision(model: PaLM) -> AbstractContextManager[None]:
    """Float32 products in float32, as in torch; JAX's default on a GPU is TF32. The user's word wins."""
    chosen = jax.config.jax_default_matmul_precision
    if chosen is None and model.embedding.dtype != jnp.bfloat16:
        chosen = "highest"
    return jax.default_matmul_precision(chosen)

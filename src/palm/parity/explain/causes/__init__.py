"""Known causes: what ports get wrong, each as the operations of a program that gets it wrong.

A cause is tried on the operation that departs (`explain.replay`), or, where only logits are seen, on a
whole run of the referee. It is named if what it computes is what was recorded, to rounding. One cause has
several variants where the fault has a free choice: which eps, which order of blocks. Choices that are
countless are solved from what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from palm.config import PaLMConfig
from palm.parity.explain.causes import attention, ends, matrices, norms, rotary, structure
from palm.parity.explain.causes.building_blocks import Variant
from palm.parity.explain.causes.solvers import Solve

__all__ = ["CAUSES", "Cause", "Variant"]


@dataclass(frozen=True)
class Cause:
    """`variants(config)` yields what to try; `fix` says in a sentence what to do about it.

    One that `rounds` is a loss of precision: where exactly it rounds is the side's own affair, so that what
    it computes is met only roughly. `solved` yield variants whose free choice is solved from what was
    recorded.
    """

    name: str
    fix: str
    variants: Callable[[PaLMConfig], Iterator[Variant]]
    rounds: bool = False
    solved: tuple[Solve, ...] = ()

    def comes_close(self, before: float, after: float) -> bool:
        """Whether it `rounds`, and at least half of the distance goes with it."""
        return self.rounds and after <= 0.5 * before


def _positions_bfloat16(config: PaLMConfig) -> Iterator[Variant]:
    return (rotary.in_bfloat16 if config.rotates else attention.alibi_in_bfloat16)(config)


CAUSES: tuple[Cause, ...] = (
    Cause("tokens", "Give both sides the same ids, in the same places.", ends.tokens, solved=ends.TOKENS),
    Cause(
        "embedding scale",
        "Look up the embedding without a factor.",
        ends.embedding_scale,
        solved=ends.EMBEDDING_SCALE,
    ),
    Cause("eps", "Set eps to the config's norm_eps.", norms.eps, solved=norms.EPS_SOLVED),
    Cause(
        "eps convention",
        "Apply eps as the config's norm_eps_mode says.",
        norms.eps_convention,
        solved=norms.CONVENTION_SOLVED,
    ),
    Cause("mean subtraction", "LayerNorm subtracts the mean, RMSNorm does not.", norms.mean),
    Cause(
        "norm variance",
        "Compute the variance as the mean of squares about the mean, in two passes.",
        norms.variance,
        solved=(norms.one_pass,),
    ),
    Cause("norm scale", "Multiply by the norm's own weight.", norms.norm_scale),
    Cause("norm in bfloat16", "Compute norms in float32.", norms.norm_bfloat16, True),
    Cause(
        "rotary layout",
        "Rotate the pairs (2p, 2p+1), or permute the columns of W_q and W_k.",
        rotary.rotary_layout,
    ),
    Cause(
        "rotary θ",
        "Set the base of the rotary frequencies to rope_theta.",
        rotary.rotary_theta,
        solved=rotary.THETA,
    ),
    Cause("rotary missing", "Rotate both queries and keys.", rotary.rotary_missing),
    Cause(
        "rotary frequencies",
        "Rotate all pairs of queries and keys, and nothing else, by i·θ^(-2p/dim_head).",
        rotary.rotary_kinds,
    ),
    Cause("rotary direction", "Rotate (a, b) to (a cos − b sin, b cos + a sin).", rotary.rotary_direction),
    Cause("rotary offset", "Count positions from 0, for queries and keys alike.", rotary.rotary_offset),
    Cause(
        "xPos",
        "Multiply rotated queries and keys as the config's positions and xpos_base say.",
        rotary.xpos,
        solved=rotary.XPOS,
    ),
    Cause(
        "positions in bfloat16", "Compute positions, angles and biases in float32.", _positions_bfloat16, True
    ),
    Cause("ALiBi sign", "Subtract m·(i − j) from the scores.", attention.alibi_sign),
    Cause("ALiBi offset", "Start the slopes at 2^(-8/h).", attention.alibi_offset),
    Cause(
        "ALiBi slopes",
        "Use the slopes of palm.spec.positions.alibi_slopes.",
        attention.alibi_rule,
        solved=attention.SLOPES,
    ),
    Cause("ALiBi missing", "Add the bias to the scores.", attention.alibi_missing),
    Cause("mask", "Let position i see the keys j ≤ i.", attention.mask),
    Cause("mask fill", "Set masked scores to −∞.", attention.mask_fill, solved=attention.FILL),
    Cause(
        "query scale",
        "Multiply queries by dim_head^-1/2, once.",
        attention.query_scale,
        solved=attention.SCALE,
    ),
    Cause("q/k/v order", "Split the fused columns as q | k | v.", matrices.block_order),
    Cause("head order", "Group the columns of queries by head: (h e).", matrices.head_order),
    Cause(
        "transposed matrix",
        "Transpose the matrix: weights here are applied from the right.",
        matrices.transposed,
    ),
    Cause("up/gate swapped", "Apply swish to the gate, the second half of the fused matrix.", matrices.gate),
    Cause("activation", "Apply swish, x·sigmoid(x), to the gate.", structure.activation),
    Cause(
        "block order",
        "Add attention and feed-forward, both of one norm of the block's input, to that input.",
        structure.order,
    ),
    Cause("final norm", "Norm the last block's output before the logits.", structure.final_norm),
    Cause("branches", "Add what both branches give, as it is, to each block's input.", structure.branches),
    Cause("blocks", "Give each block its own weights, in order.", structure.blocks),
    Cause("output form", "Return the logits of each position, as they are.", structure.outputs),
    Cause("weights rounded", "Keep the weights in the model's dtype.", structure.rounded_weights),
    Cause(
        "attention window",
        "Let position i see all keys j ≤ i.",
        attention.window,
        solved=attention.WINDOW,
    ),
    Cause("score cap", "Take the softmax of the scores as they are.", attention.score_cap),
    Cause("query and key norm", "Norm queries and keys as the config's qk_norm says.", attention.qk_norm),
    Cause("residual", "Add the outputs of attention and feed-forward to the block's input.", ends.residual),
    Cause(
        "logit scale",
        "Multiply logits by the config's logit_scale.",
        ends.logit_scale,
        solved=ends.LOGIT_SCALE,
    ),
    Cause(
        "output matrix",
        "Use the transposed embedding, or the untied matrix.",
        ends.output_matrix,
        solved=ends.MATRIX,
    ),
    Cause(
        "product precision",
        "Ask for full float32 matmuls (JAX: precision highest).",
        matrices.matmul_precision,
        True,
    ),
)

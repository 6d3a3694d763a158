"""The ways the torch wing computes causal multi-query attention: one function, several programs.

Each takes q (..., n, h, e), k and v (..., n, e), ALiBi's slopes (h,) or None, and segments (..., n) or None:
then a query sees only keys of its own segment. It gives (..., n, h, e).
No path copies the one key and value head, and only the textbook holds a score of every pair of positions.
Mirror: palm.jax_impl.paths; differs in the framework's own kernels.
"""

from palm.torch_impl.paths.blockwise import blockwise_attention
from palm.torch_impl.paths.flex import flex_attention
from palm.torch_impl.paths.sdpa import sdpa_attention
from palm.torch_impl.paths.textbook import textbook_attention

ATTENTION = {
    "textbook": textbook_attention,
    "blockwise": blockwise_attention,
    "sdpa": sdpa_attention,
    "flex": flex_attention,
}

__all__ = ["ATTENTION", "blockwise_attention", "flex_attention", "sdpa_attention", "textbook_attention"]

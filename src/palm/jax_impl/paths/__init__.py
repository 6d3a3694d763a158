"""The ways the JAX wing computes causal multi-query attention: one function, several programs.

Each takes q (..., n, h, e), k and v (..., n, e), ALiBi's slopes (h,) or None, and segments (..., n) or None:
then a query sees only keys of its own segment. It gives (..., n, h, e).
No path copies the one key and value head, and only the textbook holds a score of every pair of positions.
Mirror: palm.torch_impl.paths; differs in the framework's own kernels.
"""

from palm.jax_impl.paths.blockwise import blockwise_attention
from palm.jax_impl.paths.cudnn import cudnn_attention
from palm.jax_impl.paths.pallas import pallas_attention
from palm.jax_impl.paths.splash import splash_attention
from palm.jax_impl.paths.textbook import textbook_attention

ATTENTION = {
    "textbook": textbook_attention,
    "blockwise": blockwise_attention,
    "cudnn": cudnn_attention,
    "splash": splash_attention,
    "pallas": pallas_attention,
}

__all__ = [
    "ATTENTION",
    "blockwise_attention",
    "cudnn_attention",
    "pallas_attention",
    "splash_attention",
    "textbook_attention",
]

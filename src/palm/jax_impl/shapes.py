"""The shapes of the JAX wing's signatures, read by jaxtyping.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, f ff_mult·dim; `...`
any batch dimensions. Mirror: palm.torch_impl.shapes.
"""

from typing import TypeAlias

from jax import Array
from jaxtyping import Float, Int

Hidden: TypeAlias = Float[Array, "... n d"]
Gated: TypeAlias = Float[Array, "... f"]
Queries: TypeAlias = Float[Array, "... n h e"]
Keys: TypeAlias = Float[Array, "... n e"]
Slopes: TypeAlias = Float[Array, "h"]
Distance: TypeAlias = Int[Array, "i j"]

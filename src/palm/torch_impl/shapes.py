"""The shapes of the torch wing's signatures, read by jaxtyping.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, f ff_mult·dim; `...`
any batch dimensions. Mirror: palm.jax_impl.shapes.
"""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Hidden: TypeAlias = Float[Tensor, "... n d"]
Gated: TypeAlias = Float[Tensor, "... f"]
Queries: TypeAlias = Float[Tensor, "... n h e"]
Keys: TypeAlias = Float[Tensor, "... n e"]
Slopes: TypeAlias = Float[Tensor, "h"]
Distance: TypeAlias = Int[Tensor, "i j"]

"""The shapes of the JAX wing's signatures, read by jaxtyping.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, f ff_mult·dim,
v num_tokens, b batch; r rows, c columns and k what is summed over of any matrix; `...` any batch
dimensions. Mirror: palm.torch_impl.shapes.
"""

from typing import TypeAlias

from jax import Array
from jaxtyping import Float, Int, Integer

Hidden: TypeAlias = Float[Array, "... n d"]
Gated: TypeAlias = Float[Array, "... f"]
Queries: TypeAlias = Float[Array, "... n h e"]
Keys: TypeAlias = Float[Array, "... n e"]
Heads: TypeAlias = Float[Array, "... e"]
HeadScale: TypeAlias = Float[Array, "*_ e"]
Slopes: TypeAlias = Float[Array, "h"]
Segments: TypeAlias = Integer[Array, "... n"]
Distance: TypeAlias = Int[Array, "i j"]

Tokens: TypeAlias = Integer[Array, "... n"]
Logits: TypeAlias = Float[Array, "... n v"]

Inputs: TypeAlias = Float[Array, "... k"]
Weight: TypeAlias = Float[Array, "k c"]
Outputs: TypeAlias = Float[Array, "... c"]
Left: TypeAlias = Float[Array, "_ _"]
Right: TypeAlias = Float[Array, "_ _"]
Product: TypeAlias = Float[Array, "{a.shape[1-contracted[0]]} {b.shape[1-contracted[1]]}"]

Scores: TypeAlias = Float[Array, "... v"]
Targets: TypeAlias = Integer[Array, "..."]
Features: TypeAlias = Float[Array, "... d"]
Output: TypeAlias = Float[Array, "d v"]
Scalar: TypeAlias = Float[Array, ""]

Rows: TypeAlias = Float[Array, "b k"]
Columns: TypeAlias = Float[Array, "b c"]
Packed: TypeAlias = Float[Array, "c k"]
Step: TypeAlias = Float[Array, "b d"]
Bias: TypeAlias = Float[Array, "b _ n"]
Cache: TypeAlias = Float[Array, "b*n e"]
Each: TypeAlias = Integer[Array, "b"]
Chances: TypeAlias = Float[Array, "b"]
Next: TypeAlias = Float[Array, "b v"]

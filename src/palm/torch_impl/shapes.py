"""The shapes of the torch wing's signatures, read by jaxtyping.

Letters: n sequence, i query position, j key position, d dim, h heads, e dim_head, f ff_mult·dim,
v num_tokens, b batch; r rows, c columns and k what is summed over of any matrix; `...` any batch
dimensions. Mirror: palm.jax_impl.shapes.
"""

from typing import TypeAlias

from jaxtyping import Float, Int, Integer
from torch import Tensor

Hidden: TypeAlias = Float[Tensor, "... n d"]
Gated: TypeAlias = Float[Tensor, "... f"]
Queries: TypeAlias = Float[Tensor, "... n h e"]
Keys: TypeAlias = Float[Tensor, "... n e"]
Heads: TypeAlias = Float[Tensor, "... e"]
HeadScale: TypeAlias = Float[Tensor, "*_ e"]
Slopes: TypeAlias = Float[Tensor, "h"]
Segments: TypeAlias = Integer[Tensor, "... n"]
Distance: TypeAlias = Int[Tensor, "i j"]

Tokens: TypeAlias = Integer[Tensor, "... n"]
Logits: TypeAlias = Float[Tensor, "... n v"]

Inputs: TypeAlias = Float[Tensor, "... k"]
Weight: TypeAlias = Float[Tensor, "c k"]
Outputs: TypeAlias = Float[Tensor, "... c"]
Left: TypeAlias = Float[Tensor, "r k"]
Right: TypeAlias = Float[Tensor, "k c"]
Product: TypeAlias = Float[Tensor, "r c"]

Scores: TypeAlias = Float[Tensor, "... v"]
Targets: TypeAlias = Integer[Tensor, "..."]
Features: TypeAlias = Float[Tensor, "... d"]
Output: TypeAlias = Float[Tensor, "v d"]
OwnOutput: TypeAlias = Float[Tensor, "w d"]
Scalar: TypeAlias = Float[Tensor, ""]

Rows: TypeAlias = Float[Tensor, "b k"]
Columns: TypeAlias = Float[Tensor, "b c"]
Packed: TypeAlias = Float[Tensor, "c k"]
Step: TypeAlias = Float[Tensor, "b d"]
Bias: TypeAlias = Float[Tensor, "b _ n"]
Cache: TypeAlias = Float[Tensor, "b*n e"]
Each: TypeAlias = Integer[Tensor, "b"]
Chances: TypeAlias = Float[Tensor, "b"]
Next: TypeAlias = Float[Tensor, "b v"]

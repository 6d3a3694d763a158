"""One word for what three libraries call by several names."""

from __future__ import annotations

_FAMILIES = {
    "matmul": "mm bmm addmm baddbmm matmul dot_general dot einsum tensordot linear vdot inner",
    "add": "add add_any _foreach_add",
    "subtract": "sub subtract rsub",
    "multiply": "mul multiply _foreach_mul",
    "divide": "div divide true_divide",
    "maximum": "max maximum clamp clamp_min clip amax",
    "power": "pow power integer_pow square float_power",
    "negative": "neg negative",
    "root": "sqrt",
    "inverse root": "rsqrt",
    "select": "where select_n masked_fill",
    "lookup": "embedding index gather take index_select",
    "sum": "sum reduce_sum add.reduce",
    "mean": "mean",
    "largest": "reduce_max maximum.reduce",
    "sigmoid": "sigmoid logistic",
    "layer norm": "native_layer_norm layer_norm",
    "rms norm": "_fused_rms_norm rms_norm",
    "softmax": "_softmax softmax",
    "attention": "_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
    "_scaled_dot_product_attention_math_for_mps _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    "concatenate": "cat concatenate stack",
    "slice": "slice split index narrow select dynamic_slice chunk split_with_sizes",
    "less than": "lt less",
    "less or equal": "le less_equal",
    "greater than": "gt greater",
    "greater or equal": "ge greater_equal",
}
# Operations that compute nothing.
BOOKKEEPING = {
    *("arange", "iota", "tri", "fill", "zeros", "zeros_like", "new_zeros", "empty", "empty_like", "constant"),
    *("astype", "convert_element_type", "_to_copy", "copy", "copy_", "scalar_tensor", "write", "written"),
    *("slice", "index", "lookup", "unbind", "concatenate", "broadcast_in_dim", "expand"),
}
CASTS = {"astype", "_to_copy", "convert_element_type"}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}


def family(op: str) -> str:
    """The common word for an operation: `matmul` of torch's `addmm` and of JAX's `dot_general`."""
    return _FAMILY.get(op, op)

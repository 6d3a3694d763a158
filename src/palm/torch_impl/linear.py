"""Matrix products of the torch wing, by the fastest library there is for them.

On a CPU PyTorch multiplies float32 matrices by MKL, which runs at half speed on processors that are not
Intel's, and bfloat16 ones by oneDNN, which PyTorch brings along and which does float32 as well, everywhere at
full speed: 450 against 205 GFLOP/s were measured on two cores of an AMD EPYC.
Letters: r rows, c columns, k contracted. Mirror: palm.jax_impl.linear.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palm.torch_impl.private import onednn_linear
from palm.torch_impl.shapes import Inputs, Left, Outputs, Product, Right, Weight


def linear(x: Inputs, weight: Weight) -> Outputs:
    """x weightᵀ, differentiable. Shapes: x (..., k), weight (c, k) -> (..., c)."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))


def product(a: Left, b: Right) -> Product:
    """a b of two matrices or their transposes, for use where gradients are written out.

    Shapes: (r, k), (k, c) -> (r, c).
    """
    return onednn_linear(a, b.t()) if _by_onednn(a, b) else a @ b


class Linear(nn.Linear):
    """nn.Linear by `linear`; without a bias."""

    def __init__(self, fan_in: int, fan_out: int, *, device: torch.device | None, dtype: torch.dtype) -> None:
        super().__init__(fan_in, fan_out, bias=False, device=device, dtype=dtype)

    def forward(self, x: Inputs) -> Outputs:
        """Shapes: x (..., fan_in) -> (..., fan_out)."""
        return linear(x, self.weight)


class _Linear(torch.autograd.Function):
    # Each derivative is another `linear`, so that derivatives of any order exist.

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return onednn_linear(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return (
            linear(grad, weight.t()) if for_x else None,
            linear(grad.t(), x.t()) if for_weight else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, weight_dot: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = [
            linear(a, b) for a, b in ((x_dot, weight), (x, weight_dot)) if a is not None and b is not None
        ]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, Any], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        return torch.vmap(F.linear, in_dims=in_dims)(x, weight), 0


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def _by_onednn(*tensors: Tensor) -> bool:
    # What compiles or casts by itself, and tensors of other kinds (sharded, quantised), have their own rules.
    return (
        _HAS_ONEDNN
        and all(
            t.device.type == "cpu" and t.dtype == torch.float32 and type(t) in (Tensor, nn.Parameter)
            for t in tensors
        )
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )

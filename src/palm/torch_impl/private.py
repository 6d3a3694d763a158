"""The private parts of PyTorch that the torch wing uses, each behind one function that has a public way too.

PyTorch may rename or remove any of them in any version. Then the public way gives the same result, to
rounding, and costs time or memory; `transformed` says what its answer changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """The gradient of scores whose softmax over the last axis is `weights`: w (g − Σ g w).

    Shapes: two of (..., j) -> (..., j), in the dtype of `weights`.
    """
    fused = _found(torch, "_softmax_backward_data")
    if fused is None:
        return weights * (grad - (grad * weights).sum(-1, keepdim=True))
    result: Tensor = fused(grad, weights, -1, weights.dtype)
    return result


def int8_matmul(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """x (scale · values)ᵀ. Shapes: x (b, k), values (c, k) int8, scale (c,) -> (b, c), in x's dtype."""
    fused = _found(torch, "_weight_int8pack_mm")
    if fused is None or x.device.type != "cpu" or scale.dtype != torch.float32:
        return ((x @ values.to(x.dtype).t()) * scale).to(x.dtype)
    result: Tensor = fused(x.float(), values, scale)
    return result.to(x.dtype)


def transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, …) is at work; True where that cannot be known.

    True costs what a transform costs: ids are not read, and those outside the vocabulary give NaN logits
    instead of a `TokenError`; blockwise attention is the textbook's, whose memory grows with n².
    """
    active = _found(torch._C, "_are_functorch_transforms_active")
    return active is None or bool(active())


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ by oneDNN; by PyTorch's own choice where it has no such operator. Shapes as F.linear's."""
    fused = _found(torch.ops.mkldnn, "_linear_pointwise")
    return F.linear(x, weight) if fused is None else fused(x, weight, None, "none", [], "")


def adamw_step(
    x: Tensor, g: Tensor, m: Tensor, s: Tensor, *, beta1: float, beta2: float, rate: float, eps: float
) -> None:
    """Add rate · m / (sqrt(s) + eps) to x, after m ← β₁m + (1−β₁)g and s ← β₂s + (1−β₂)g²; all in place."""
    fused = _found(sys.modules[torch.optim.AdamW.__module__], "adamw")
    if fused is None:
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        s.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        x.addcdiv_(m, s.sqrt().add_(eps), value=rate)
        return
    # It moves a parameter down the direction. For a step of so large a number it corrects nothing.
    steps = [torch.full((), 1e9, device=x.device)]
    options = {"fused": True, "amsgrad": False, "maximize": False, "weight_decay": 0.0}
    fused([x], [g], [m], [s], [], steps, **options, beta1=beta1, beta2=beta2, lr=-rate, eps=eps)


def compiled_module(outer: nn.Module) -> nn.Module | None:
    """The module that torch.compile made `outer` of; None if it did not, or keeps it by another name."""
    return dict(outer.named_children()).get("_orig_mod")


def hooks_of(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The hooks that see or change what the module computes. PyTorch has no public list of them."""
    for name in HOOKS:
        yield from getattr(module, name).values()


def hooks_of_all_modules() -> Iterator[Callable[..., Any]]:
    """The hooks of `torch.nn.modules.module.register_module_forward_hook` and its kin."""
    for name in HOOKS:
        yield from getattr(torch_module, f"_global{name}").values()


def has_hooks(parameter: Tensor) -> bool:
    """Whether a hook sees or changes the tensor's gradient."""
    return any(getattr(parameter, name, None) for name in TENSOR_HOOKS)


def private_copy(module: nn.Module) -> nn.Module:
    """The same tensors and hooks in modules of its own: what is put into these leaves `module` alone."""
    own = module.__new__(type(module))
    vars(own).update(vars(module))
    held = {name: dict(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")}
    vars(own).update(held, _compiled_call_impl=None)  # what was compiled of `module` reads its tensors
    for name, child in held["_modules"].items():
        held["_modules"][name] = None if child is None else private_copy(child)
    return own


def _found(place: Any, name: str) -> Any:
    return getattr(place, name, None)

"""The machine's limits by torch, and on a CPU by NumPy in one thread a core."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from limits import GPU_SHAPES, SHAPES, product_name, rate


def prepare(
    spec: dict[str, Any], device: torch.device, wait: Callable[[Any], Any]
) -> Callable[[], dict[str, Any]]:
    """A run that measures every call of the kinds that `spec` names."""
    calls: dict[str, tuple[float, Callable[[], Any]]] = {}
    for kind in spec["kinds"]:
        calls |= _reading(spec["megabytes"], device) if kind == "bandwidth" else _products(kind, device)

    def run() -> dict[str, Any]:
        with torch.no_grad():
            return {"rates": {name: rate(amount, work, wait) for name, (amount, work) in calls.items()}}

    return run


def _products(kind: str, device: torch.device) -> dict[str, tuple[float, Callable[[], Any]]]:
    calls = {}
    for m, k, n in SHAPES if device.type == "cpu" else GPU_SHAPES:
        a, w = (torch.randn(size, device=device).to(getattr(torch, kind)) for size in ((m, k), (n, k)))
        calls[product_name(kind, "torch F.linear", (m, k, n))] = 2 * m * k * n, _bound(F.linear, a, w)
        if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            onednn = _bound(torch.ops.mkldnn._linear_pointwise, a, w, None, "none", [], "")
            calls[product_name(kind, "torch oneDNN", (m, k, n))] = 2 * m * k * n, onednn
    return calls


def _reading(megabytes: int, device: torch.device) -> dict[str, tuple[float, Callable[[], Any]]]:
    size = megabytes * 2**20
    array = torch.ones(size // 4, device=device)
    matrix, vector = array.view(-1, 1024), torch.ones(1024, device=device)
    calls = {
        f"bandwidth: torch sum, {megabytes} MiB": (size, array.sum),
        f"bandwidth: torch matrix by vector, {megabytes} MiB": (size, lambda: F.linear(vector, matrix)),
    }
    if device.type == "cpu":
        chunks = array.chunk(os.cpu_count() or 1)
        parts = [chunk.numpy() for chunk in chunks]
        pool = ThreadPoolExecutor(len(parts))
        summed = lambda: list(pool.map(lambda part: part.sum(), parts))  # noqa: E731
        calls[f"bandwidth: NumPy sum, {megabytes} MiB"] = size, summed
    return calls


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)

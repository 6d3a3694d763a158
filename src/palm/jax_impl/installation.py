"""What JAX says of itself and of its devices. Mirror: palm.torch_impl.installation."""

from __future__ import annotations

import os
from typing import Any

import jax


def installation() -> dict[str, Any]:
    """Version, devices with their memory in bytes, precision of float32 products, threads; as JSON values."""
    devices = [
        {"name": device.device_kind, "memory": (device.memory_stats() or {}).get("bytes_limit")}
        for device in jax.devices()
    ]
    return {
        "version": jax.__version__,
        "devices": devices,
        # Where the user asks for nothing, palm asks for this.
        "matmul": jax.config.jax_default_matmul_precision or "float32",  # type: ignore[attr-defined]
        # XLA takes as many as there are.
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }

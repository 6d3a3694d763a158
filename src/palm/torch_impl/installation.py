"""What PyTorch says of itself and of its devices. Mirror: palm.jax_impl.installation."""

from __future__ import annotations

from typing import Any

import torch

# The precision of float32 products by torch's name for it.
_MATMUL = {"highest": "float32", "high": "tensorfloat32", "medium": "bfloat16"}


def installation() -> dict[str, Any]:
    """Version, devices with their memory in bytes, precision of float32 products, threads; as JSON values."""
    cuda = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    devices = [{"name": found.name, "memory": found.total_memory} for found in cuda]
    return {
        "version": torch.__version__,
        "devices": [{"name": "cpu", "memory": None}, *devices],
        "matmul": _MATMUL[torch.get_float32_matmul_precision()],
        "threads": torch.get_num_threads(),
    }

"""How fast a machine could multiply at best, for model FLOPs utilisation (paper, appendix B)."""

from __future__ import annotations

import time

import numpy as np

from palm.params import DType

# Makers' dense peaks in FLOP/s, bfloat16 and float32 without TF32. A name is matched by what it contains.
_PEAKS: dict[str, tuple[float, float | None]] = {
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "TPU v4": (275e12, None),
    "TPU v5 lite": (197e12, None),
    "TPU v5": (459e12, None),  # v5p, by either name
    "TPU v6 lite": (918e12, None),
}


def peak_flops(device: str, precision: DType) -> float | None:
    """FLOP/s that `device`, named as a wing names it, could do at best; of a CPU, what NumPy reaches here.

    A CPU's figure is that of float32 whatever the precision. None where nobody knows.
    """
    for name, (narrow, wide) in _PEAKS.items():
        if name in device:
            return narrow if precision == "bfloat16" else wide
    return _measured() if device.lower() == "cpu" else None


def _measured(size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a square float32 matrix product: the best of some."""
    matrix = np.ones((size, size), np.float32)
    matrix @ matrix
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / min(times))

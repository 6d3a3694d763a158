"""What a machine could do at best, for model FLOPs utilisation (paper, appendix B), and a CPU's memory."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from palm.config import DType
from palm.recipes import Recipe
from palm.spec.sizes import describe
from palm.wings import Wing

# Makers' dense peaks in FLOP/s, bfloat16 and float32 without TF32. A name is matched by the words in it.
_PEAKS: dict[str, tuple[float, float | None]] = {
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "TPU v4": (275e12, None),
    "TPU v5 lite": (197e12, None),
    "TPU v5e": (197e12, None),  # the same by its other name
    "TPU v5": (459e12, None),  # v5p, by either name
    "TPU v6 lite": (918e12, None),
    "TPU v6e": (918e12, None),
}


# Given a size, a function that multiplies a square float32 matrix of it by itself.
Products = Callable[[int], Callable[[], None]]


def peak_flops(device: str, precision: DType, products: Products | None = None) -> float | None:
    """FLOP/s that `device`, named as a wing names it, could do at best; of a CPU, what `products` reach.

    `products` are computed by the framework that trains, with the threads that train: NumPy's may be more or
    fewer, and then a model would seem to use more, or less, of the machine than there is. A CPU's figure is
    that of float32 in bfloat16 too. None where nobody knows, and in float64.
    """
    if precision == "float64":
        return None
    for name, (narrow, wide) in _PEAKS.items():
        if re.search(rf"{name}(?![0-9e]| lite)", device):
            return narrow if precision == "bfloat16" else wide
    return None if products is None or device.lower() != "cpu" else _measured(products)


def mfu_per_rate(wing: Wing[Any], model: Any, recipe: Recipe) -> float | None:
    """Model FLOPs utilisation of a training that makes one token a second; None where no peak is known."""
    products = partial(wing.square_product, model)
    peak = peak_flops(wing.device_name(model), recipe.precision, products)
    if peak is None:
        return None
    # Of each device of a mesh: those of one CPU are measured while all of them multiply.
    devices = wing.mesh_of_model(model).size
    return describe(model.config, recipe.length).training_flops / (peak * devices)


def _measured(products: Products, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of a square float32 matrix product: the best of some."""
    multiply = products(size)
    multiply()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return float(2 * size**3 / min(times))


@dataclasses.dataclass
class _Heap:
    """The C library's heap: where it ended when its holes were last given back. None: memory is not kept."""

    end: int | None = None


_heap = _Heap()


def keep_memory() -> None:
    """Let this process keep the memory it frees, where the C library is glibc; elsewhere nothing changes.

    XLA asks for all the memory of a step anew each time, and the system clears it page by page: a seventh of
    a step. It must come before XLA starts its threads, and lasts as long as the process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1), (top_pad, 2**28)):
            mallopt(option, value)
        _heap.end = 0


def give_back_holes() -> None:
    """If the heap of a process that keeps its memory has grown since the last call, give back its holes.

    Where something small lies behind the memory of the last step, glibc puts that of the next one after it
    and leaves a hole as large: processes were seen to hold three times what a step needs. The free end of
    the heap, which the next step takes, is kept.
    """
    if _heap.end is None:
        return
    libc = ctypes.CDLL(None)
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    end = libc.sbrk(0)
    if end > _heap.end:
        libc.malloc_trim(2**62)  # the bytes to keep at the end: all
    _heap.end = end

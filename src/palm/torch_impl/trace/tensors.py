"""Which value of a program a tensor is, and its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from palm.tracing.fingerprint import fingerprint, of_array, sums
from palm.tracing.sample import chosen, sampled

_HOST = 1 << 15


class Tensors:
    """Knows tensors again: by themselves, or, where autograd made another one of them, by their memory.

    `written`: of a storage, the value that was written to it last.
    """

    def __init__(self) -> None:
        self.known = WeakIdKeyDictionary()
        self.stored: dict[int, dict[tuple[Any, ...], int]] = {}
        self.storages: dict[int, StorageWeakRef] = {}
        self.written: dict[int, int] = {}

    def remember(self, x: Tensor, index: int, *, writes: bool = False) -> None:
        """Know a tensor again as the value `index`, which was written to its memory if `writes`."""
        self.known[x] = index
        memory = self.memory(x)
        self.stored.setdefault(memory, {})[_where(x)] = index
        if writes and x.numel():
            self.written[memory] = index

    def find(self, x: Tensor) -> int | None:
        """The value that a tensor is; None if it was not seen before."""
        memory = self.memory(x)
        index = self.known.get(x)
        return self.stored.get(memory, {}).get(_where(x)) if index is None else index

    def writer(self, x: Tensor) -> int:
        """The value that was last written to a tensor's memory; -1 if there is none."""
        return self.written.get(self.memory(x), -1) if x.numel() else -1

    def memory(self, x: Tensor) -> int:
        """Equal for tensors that share memory. What was at an address before it was freed is forgotten."""
        if x.layout != torch.strided:
            return id(x)
        address = x.untyped_storage().data_ptr()
        held = self.storages.get(address)
        if held is None or held.expired():
            self.stored.pop(address, None)
            self.written.pop(address, None)
            self.storages[address] = StorageWeakRef(x.untyped_storage())
        return address


def fingerprint_of(x: Tensor) -> np.ndarray:
    """The fingerprint of a tensor. One that is large and on an accelerator is summed there."""
    if x.numel() <= _HOST or x.device.type == "cpu":
        return of_array(array_of(x))
    flat = _real(x).reshape(-1)
    found = np.array([float(value) for value in sums(flat, torch)])
    return fingerprint(found, flat.numel())


def sample_of(x: Tensor) -> np.ndarray:
    """Some elements of a tensor, the same ones in every run."""
    at = chosen(x.numel()) if x.layout == torch.strided and x.device.type != "cpu" else None
    return sampled(array_of(x if at is None else x.detach().reshape(-1)[torch.from_numpy(at).to(x.device)]))


def array_of(x: Tensor) -> np.ndarray:
    """A tensor as float64 numbers; real and imaginary parts of complex ones are a last axis of two."""
    return _real(x).cpu().numpy()


def _real(x: Tensor) -> Tensor:
    x = (x if x.layout == torch.strided else x.to_dense()).detach()
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()


def _where(x: Tensor) -> tuple[Any, ...]:
    if x.layout != torch.strided:
        return (tuple(x.shape), x.layout, x.dtype)
    return (x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)

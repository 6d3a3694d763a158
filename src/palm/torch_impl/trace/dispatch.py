"""Writes down every operation that PyTorch dispatches, computed in float64."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from palm.errors import ProbeError
from palm.torch_impl.trace.tensors import Tensors, array_of, fingerprint_of, sample_of
from palm.tracing.fingerprint import NONE
from palm.tracing.operation import DTYPES, Change, Kind, Noise, Operation, Place
from palm.tracing.places import place_of
from palm.tracing.rounding import disturbed
from palm.tracing.sample import EXACT, rounded

# The same values at another address or shape; nothing of its own.
_SAME = {"detach", "alias", "lift_fresh", "lift", "clone", "_unsafe_view", "contiguous"}
_MOVES = _SAME | {
    *("view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "_reshape_alias", "flatten"),
    *("unfold", "movedim", "flip"),
}
# Memory as it was found: its numbers are nobody's, and zeros here.
_UNSET = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize"}


class Recorder(TorchDispatchMode):
    """Writes down each operation. `exact` computes in float64 what the program asks for in less.

    `names`: kind and name of the tensors that the program is known to hold, by id. `own`: the dtypes in which
    it holds tensors that are promoted now. `working`: the program's own dtype. `memo`: the fingerprints of
    parameters for the next run.
    """

    def __init__(
        self,
        names: Mapping[int, tuple[Kind, str]],
        own: Mapping[int, str],
        change: Change,
        keep: Collection[int],
        *,
        working: str,
        exact: bool,
        memo: dict[Any, np.ndarray],
    ) -> None:
        super().__init__()
        self.memo = memo
        self.names, self.own, self.change, self.keep = names, own, change, set(keep)
        self.working, self.exact = working, exact
        self.operations: list[Operation] = []
        self.fingerprints: list[np.ndarray] = []
        self.samples: list[np.ndarray] = []
        self.values: dict[int, np.ndarray] = {}
        self.tensors = Tensors()
        self.twins: dict[int, tuple[Tensor, Tensor]] = {}
        self.leaves: list[Tensor] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.path: list[str] = []
        self.forward: dict[int, Place | None] = {}

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Put back, at the end, the values that the program held before it wrote to them."""
        try:
            yield
        finally:
            for x, values in reversed(self.before):
                x.data.copy_(values)

    def input(self, x: Tensor, name: str, dtype: str) -> None:
        """Write down an input; `dtype` is the one it was given in."""
        self.disturb(x)
        self.add(x, Operation("input", "input", tuple(x.shape), dtype, None, name))

    def add(self, x: Tensor, operation: Operation, *, same_as: int | None = None) -> int:
        """Write down a value; `same_as` has the same numbers."""
        index = len(self.operations)
        self.operations.append(operation)
        self.fingerprints.append(
            self.fingerprint(operation, x) if same_as is None else self.fingerprints[same_as]
        )
        self.samples.append(sample_of(x) if same_as is None else self.samples[same_as])
        if index in self.keep:
            self.values[index] = array_of(x).copy()
        self.tensors.remember(x, index)
        return index

    def fingerprint(self, operation: Operation, x: Tensor) -> np.ndarray:
        """The fingerprint of the value that comes next, if this run is one to be aligned."""
        index = len(self.fingerprints)
        if not self.exact or not self.change.asks(index):
            return NONE
        if operation.kind != "parameter" or index in self.change.scale:
            return fingerprint_of(x)
        if (operation, index) not in self.memo:
            self.memo[operation, index] = fingerprint_of(x)
        return self.memo[operation, index]

    def value(self, x: Tensor) -> int:
        """Which value a tensor is. One that was not seen before is something the program holds."""
        index = self.tensors.find(x)
        if index is None:
            index = self.leaf(x)
        writer = self.tensors.writer(x)
        if writer > index:  # it was written to, through a view
            op = Operation(
                "written", "operation", tuple(x.shape), name_of(x.dtype), self.place(), inputs=(index, writer)
            )
            index = self.add(x, op)
        return index

    def leaf(self, x: Tensor) -> int:
        """Write down what the program holds. Without gradient it may be a buffer, a table, a mask."""
        kind, name = self.names.get(id(x), ("constant", ""))
        self.leaves.append(x)
        if not self.exact or not x.is_floating_point():  # those are put back with their dtype
            self.before.append((x, x.detach().clone()))
        self.disturb(x)
        dtype = self.own.get(id(x), name_of(x.dtype))
        return self.add(x, Operation(kind, kind, tuple(x.shape), dtype, self.place(), name))

    def disturb(self, x: Tensor) -> None:
        """Move a leaf by as much as its rounding, if this run is to see what that does."""
        scale = self.change.scale.get(len(self.operations))
        if scale is not None and x.dtype in (torch.float64, torch.complex128):
            moved = disturbed(len(self.operations), scale, x.detach().cpu().numpy())
            x.data.mul_(torch.from_numpy(np.asarray(moved)).to(x.device))

    def place(self) -> Place | None:
        """The user's line; in the backward pass, that of the forward operation."""
        node = _backward_node()
        if node is not None and (at := self.forward.get(node)) is not None:
            return at
        return place_of(sys._getframe(2), ".".join(self.path))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, rounds = kwargs or {}, ""
        if self.exact:
            args, kwargs, rounds = self.promoted(args, kwargs)
        given = _tensors((args, kwargs))
        inputs = tuple(dict.fromkeys(self.value(x) for x in given))
        numbers = tuple(float(x) for x in tree_leaves((args, kwargs)) if type(x) in (int, float))
        if (others := self.change.constants.get(len(self.operations))) is not None:
            put = iter(others)
            args, kwargs = tree_map(
                lambda x: type(x)(next(put)) if type(x) in (int, float) else x, (args, kwargs)
            )
        name = func.overloadpacket.__name__
        out = self.computed(func, args, kwargs)
        if name in _UNSET and not func._schema.is_mutable:
            for x in _tensors(out):
                x.zero_()
        if rounds:
            low = getattr(torch, rounds)
            out = tree_map(lambda x: x.to(low).double() if _is_float(x) else x, out)
        moves = name in _MOVES and len(inputs) == 1 and not rounds
        if name in ("detach", "alias") and moves:
            for x in _tensors(out):
                self.tensors.remember(x, inputs[0])
            return out
        place = self.place()
        self.forward.setdefault(_sequence(), place)
        for x in [*_tensors(out), *_only_written(func, args, kwargs, out)]:
            operation = Operation(
                *(name.rstrip("_") or name, "operation", tuple(x.shape), name_of(x.dtype), place),
                inputs=inputs,
                constants=numbers,
                moves=moves,
                draws=torch.Tag.nondeterministic_seeded in func.tags,
                rounds=rounds,
            )
            self.result(x, operation, given, writes=func._schema.is_mutable)
        return out

    def computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation gives. Raises `ProbeError` for one that has no float64."""
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if not self.exact:
                raise
            raise ProbeError(
                f"a program must be able to run in float64; {func.overloadpacket.__name__} at {self.place()} "
                f"is not: {str(error).splitlines()[0]}. Put the steps it fuses in its place, or compare what "
                "comes before it."
            ) from error

    def result(self, x: Tensor, operation: Operation, given: list[Tensor], *, writes: bool) -> None:
        """Write down what an operation gave, or what is put in its place."""
        index = len(self.operations)
        if index in self.change.values and x.layout == torch.strided:
            x.copy_(torch.from_numpy(np.array(self.change.values[index])).reshape(x.shape))
        if self.change.noise is not None:
            self.round(x, index, self.change.noise)
        whole = operation.moves and x.numel() == given[0].numel()
        self.add(x, operation, same_as=operation.inputs[0] if whole else None)
        if writes and any(x is y for y in given):
            self.tensors.remember(x, index, writes=True)

    def round(self, x: Tensor, index: int, noise: Noise) -> None:
        """Round what an operation gave, where it stands."""
        bits = int(noise.bits[index])
        if bits < EXACT and x.dtype == torch.float64 and x.layout == torch.strided:
            x.copy_(rounded(x, bits, noise.factor, torch))

    def promoted(self, args: Any, kwargs: Any) -> tuple[Any, Any, str]:
        """Arguments in float64, and the dtype below the program's own that it asks for."""
        asked = [name_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.dtype)]
        own = DTYPES[self.working]
        low = [x for x in asked if x in DTYPES and DTYPES[x] >= max(own, 1) and x != self.working]

        def one(x: Any) -> Any:
            if isinstance(x, torch.dtype) and (name_of(x) in DTYPES or x is torch.complex64):
                return torch.complex128 if x.is_complex else torch.float64
            if (_is_float(x) and x.dtype != torch.float64) or is_narrow_complex(x):
                twin = self.twins.get(id(x))
                if twin is None or twin[0] is not x:
                    wide = x.to(torch.complex128) if x.is_complex() else x.double()
                    self.twins[id(x)] = twin = (x, wide)
                return twin[1]
            return x

        return tree_map(one, args), tree_map(one, kwargs), low[0] if low else ""


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _only_written(func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
    """Arguments that an operation writes to and does not return, as fused optimizers do."""
    if not func._schema.is_mutable:
        return []
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    returned = {id(x) for x in _tensors(out)}
    return [x for name in named if name in written for x in _tensors(named[name]) if id(x) not in returned]


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def is_narrow_complex(x: Any) -> bool:
    """Whether it is a tensor of complex numbers in float32."""
    return isinstance(x, Tensor) and x.dtype == torch.complex64


def name_of(dtype: torch.dtype) -> str:
    """The name of a dtype as palm writes it."""
    return str(dtype).removeprefix("torch.")


def _backward_node() -> int | None:
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def _sequence() -> int:
    return torch._C._autograd._get_sequence_nr() - 1

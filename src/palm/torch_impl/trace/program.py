"""Any PyTorch program with its inputs, as something that runs in float64 as often as asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from palm.torch_impl.trace.dispatch import Recorder, is_narrow_complex, name_of
from palm.torch_impl.trace.state import objects, promoted, restored
from palm.torch_impl.trace.tensors import array_of
from palm.tracing.operation import DTYPES, NOTHING, Change, Kind, Own, Run
from palm.tracing.program import Program, checked_outputs, mapped, outputs_of
from palm.tracing.randomness import random_numbers
from palm.tracing.turns import alone
from palm.tracing.working import examined, leaf_floats


def trace_program(program: Callable[..., Any], inputs: tuple[Any, ...], label: str) -> Program:
    """The trace of a module or a function of tensors, on NumPy inputs."""
    return TracedProgram(program, inputs, label)


class TracedProgram(Program):
    """A PyTorch program, its inputs, and what it holds."""

    def __init__(self, program: Callable[..., Any], inputs: tuple[Any, ...], label: str) -> None:
        self.program, self.inputs, self.label = program, inputs, label
        self.dtype = "float64"
        held = objects(program)
        self._objects = list(held.values())
        modules = {name: x for name, x in held.items() if isinstance(x, nn.Module)}
        self._names = _parameters(modules)
        self._modules = {
            id(m): f"{p}.{n}".strip(".") for p, x in modules.items() for n, m in x.named_modules()
        }
        self._own: dict[int, str] = {}
        self._memo: dict[Any, np.ndarray] = {}
        held_floats = (p for m in modules.values() for p in m.parameters() if p.is_floating_point())
        self._narrow = next((p.dtype for p in held_floats), torch.get_default_dtype())
        seen = self._looked(narrow=False)
        self._holds = [x for x in seen.leaves if name_of(x.dtype) in DTYPES or is_narrow_complex(x)]
        self._own = {id(x): name_of(x.dtype) for x in self._holds}
        self.dtype = examined(label, leaf_floats(seen.operations))
        self.first = self.run()

    @alone()
    def _looked(self, *, narrow: bool) -> Recorder:
        """One run in the program's own precision, which finds out what it holds.

        Float inputs are given in the dtype of the program's parameters if it does not take them as they are.
        """
        seen = self._recorder(NOTHING, (), exact=False)
        try:
            with restored(self._objects), seen.restoring():
                self._call(seen, narrow=narrow)
        except RuntimeError:
            if narrow:
                raise
            return self._looked(narrow=True)
        return seen

    def _recorder(self, change: Change, keep: Collection[int], *, exact: bool) -> Recorder:
        return Recorder(
            self._names, self._own, change, keep, working=self.dtype, exact=exact, memo=self._memo
        )

    @alone()
    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """Run it once more."""
        recorder = self._recorder(change, values, exact=True)
        with restored(self._objects), promoted(self._holds), recorder.restoring():
            outputs = self._call(recorder)
        self.operations = recorder.operations
        return Run(np.array(recorder.fingerprints), recorder.values, outputs, recorder.samples)

    def own(self) -> Own:
        """Run it in its own precision."""
        outputs, seen = self.outputs, self._looked(narrow=False)
        self.outputs, of_own = outputs, self.outputs
        return Own(seen.operations, seen.samples, of_own)

    def _call(self, recorder: Recorder, *, narrow: bool = False) -> dict[str, np.ndarray]:
        def tensor(name: str, array: Any) -> Tensor:
            x = _tensor(np.array(array))
            own = name_of(x.dtype)
            if x.is_floating_point() and (recorder.exact or narrow):
                x = x.double() if recorder.exact else x.to(self._narrow)
            elif is_narrow_complex(x) and recorder.exact:
                x = x.to(torch.complex128)
            recorder.input(x, name, own)
            return x

        given = mapped(self.inputs, tensor)
        with (
            _settings(others=self.draws_others, exact=recorder.exact),
            _module_paths(self._modules, recorder.path),
            recorder,
        ):
            found = self.program(*given)
        outputs = {
            name: x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))
            for name, x in checked_outputs(outputs_of(found), found).items()
        }
        self.outputs = {name: recorder.value(x) for name, x in outputs.items()}
        return {name: array_of(x) for name, x in outputs.items()}


def _tensor(array: np.ndarray) -> Tensor:
    """A NumPy array as a tensor; PyTorch does not know NumPy's bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)


def _parameters(modules: dict[str, nn.Module]) -> dict[int, tuple[Kind, str]]:
    """Kind and name of each tensor that modules hold, by the tensor's id."""
    found: dict[int, tuple[Kind, str]] = {}
    for prefix, module in modules.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            kind: Kind = "parameter" if isinstance(tensor, nn.Parameter) else "constant"
            found.setdefault(id(tensor), (kind, f"{prefix}.{name}" if prefix else name))
    return found


@contextmanager
def _settings(*, others: bool, exact: bool) -> Iterator[None]:
    """What a traced run needs of the process, and puts back afterwards."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(random_numbers(others=others))
        if others:
            torch.manual_seed(int(torch.randint(2**62, ())))
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and to import it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # its steps are seen, and have a float64
        if exact:
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, default)
        yield


@contextmanager
def _module_paths(modules: dict[int, str], path: list[str]) -> Iterator[None]:
    """Keep in `path` the module that is at work, if there is one."""
    stack: list[str] = []

    def enter(module: nn.Module, _args: Any) -> None:
        stack.append(modules.get(id(module), type(module).__name__))
        path[:] = stack[-1:]

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        stack.pop()
        path[:] = stack[-1:]

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

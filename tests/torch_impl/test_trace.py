"""Any PyTorch program is traced, in float64, and nothing of it is changed; or the error says what to do."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import palm
import palm.parity.compare  # its own imports draw random numbers, once
from palm.torch_impl.trace.program import trace_program
from palm.torch_impl.trace.tensors import fingerprint_of
from palm.tracing.fingerprint import fingerprint, sums

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
IDS = np.array([1, 2, 2])
torch.manual_seed(0)
LINEAR = nn.Linear(6, 6)
SPARSE = nn.Embedding(9, 4, sparse=True)
HOOKED = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
HOOKED[0].register_forward_hook(lambda module, given, found: found * 2)


class Exponential(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * ctx.saved_tensors[0].exp()


def autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return LINEAR(x).tanh()


def in_place(x: torch.Tensor) -> Any:
    y = x.clone()
    y[1:3].mul_(2)
    y.T[0] += 1
    flat = y.view(-1)
    flat[3] = 7
    return y.sum(0), flat


def sparse_gradient(ids: torch.Tensor) -> Any:
    SPARSE.zero_grad()
    SPARSE(ids).pow(2).sum().backward()
    return SPARSE.weight.grad


def checkpointed(x: torch.Tensor) -> Any:
    LINEAR.zero_grad()
    checkpoint(lambda y: LINEAR(y).tanh(), x, use_reentrant=False).sum().backward()
    return LINEAR.weight.grad


def own_function(x: torch.Tensor) -> torch.Tensor:
    weight = LINEAR.weight.detach().requires_grad_()
    return torch.autograd.grad(Exponential.apply(x @ weight.T).sum(), weight)[0]


PROGRAMS: dict[str, tuple[Callable[..., Any], np.ndarray]] = {
    "functional_call": (lambda x: torch.func.functional_call(LINEAR, {"weight": LINEAR.weight * 2}, (x,)), X),
    "func.grad": (lambda x: torch.func.grad(lambda w: F.linear(x, w).tanh().sum())(LINEAR.weight), X),
    "vmap": (lambda x: torch.vmap(lambda row: LINEAR(row).tanh())(x), X),  # noqa: PLW0108
    "hooks": (HOOKED, X),
    "autocast": (autocast, X),
    "in place": (in_place, X),
    "sparse": (sparse_gradient, IDS),
    "own function": (own_function, X),
    "checkpoint": (checkpointed, X),
    "LSTM": (nn.LSTM(6, 5, batch_first=True), X[None]),
    "convolution": (nn.Conv2d(1, 3, 3), X[None, None]),
    "complex": (torch.fft.fft, X),
    "FFT": (lambda x: torch.fft.ifft(torch.fft.fft(x) * 1j).real, X),
    "batch norm": (nn.BatchNorm1d(6), X),
    "linalg": (lambda x: (torch.linalg.svdvals(x), torch.linalg.qr(x)[1]), X),
    "pinned float32": (lambda x: torch.zeros(6, dtype=torch.float32) + x.to(torch.float32), X),
    "bfloat16": (copy.deepcopy(LINEAR).to(torch.bfloat16), X),
    "number": (lambda x: x * float(x.max()), X),
    "inference": (lambda x: torch.inference_mode()(LINEAR)(x), X),  # noqa: PLW0108
    "own generator": (lambda x: x * torch.rand(6, generator=torch.Generator().manual_seed(1)), X),
}


def held() -> list[Any]:
    """What the programs hold, and the state of every generator."""
    modules = [LINEAR, SPARSE, HOOKED, *(p for p, _ in PROGRAMS.values() if isinstance(p, nn.Module))]
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    states = [torch.get_rng_state(), torch.as_tensor(np.random.get_state()[1].astype(np.int64))]
    copies = [(t.dtype, t.detach().clone(), t.grad) for t in (*tensors, *states)]
    return [*copies, [m.training for m in modules], random.getstate(), torch.get_default_dtype()]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and len(a) == 3 and isinstance(a[1], torch.Tensor):
        return a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] is b[2]
    return a == b


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_agrees_with_itself_and_is_not_changed(name):
    program, x = PROGRAMS[name]
    before = held()
    found = palm.compare(program, program, x, frameworks=("torch", "torch"))
    assert found.outcome == "agree", found.verdict
    assert all(same(a, b) for a, b in zip(before, held(), strict=True))


@pytest.mark.parametrize("name", ["in place", "LSTM", "complex", "autocast", "sparse"])
def test_one_that_differs_a_little_is_told_from_it(name):
    program, x = PROGRAMS[name]

    def first(y: torch.Tensor) -> torch.Tensor:
        found = program(y)
        return found[0] if isinstance(found, tuple) else found

    second = lambda y: first(y) * (1 + 1e-6)  # noqa: E731
    assert palm.compare(first, second, x, frameworks=("torch", "torch")).outcome == "differ"


@pytest.mark.parametrize("seed", range(3))
def test_dropout_that_is_on_is_named_whatever_seed_the_user_has_set(seed):
    drawn = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    torch.manual_seed(seed)
    found = palm.compare(drawn, drawn, X)
    assert found.outcome == "cannot tell"
    assert "not deterministic" in found.verdict
    assert "bernoulli" in found.verdict
    assert palm.compare(drawn.eval(), drawn, X).outcome == "agree"


def test_random_numbers_of_numpy_are_no_program_either():
    program = lambda x: x * torch.from_numpy(np.random.rand(6))  # noqa: E731
    found = palm.compare(program, program, X, frameworks=("torch", "torch"))
    assert found.outcome == "cannot tell"


def test_attributes_that_a_call_changes_are_put_back():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.scale = 0, nn.Buffer(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.scale = self.scale * 2
            return x * self.scale

    module = Counts()
    buffer = module.scale
    palm.trace(module, X)
    assert module.calls == 0
    assert module.scale is buffer
    assert torch.equal(buffer, torch.ones(6))


def test_an_operation_without_float64_is_named():
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), INT8, torch.ones(32, dtype=torch.bfloat16))

    with pytest.raises(palm.ProbeError, match=r"float64; _weight_int8pack_mm at .*test_trace\.py"):
        palm.trace(scaled, np.ones((4, 32), np.float32))


INT8 = torch.ones(32, 32, dtype=torch.int8)


def test_a_program_that_fails_says_why():
    with pytest.raises(palm.ProbeError, match="must run on its inputs"):
        palm.trace(lambda x: torch.relu(x) @ x, X)


def test_a_table_in_float64_that_is_cast_is_not_what_a_program_computes_in():
    weight = torch.ones(3, 4)

    def program(x: torch.Tensor) -> torch.Tensor:
        table = torch.tensor(np.linspace(0.1, 1, 400).reshape(100, 4), dtype=weight.dtype)
        return x @ weight + table.sum(0)

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.double() + torch.tensor(np.linspace(0.1, 1, 400).reshape(100, 4)).sum(0)

    x = np.ones((2, 3), np.float32)
    found = trace_program(program, (x,), "program")
    assert found.dtype == "float32"
    assert not any(op.rounds for op in found.operations)
    assert trace_program(wide, (x.astype(np.float64),), "wide").dtype == "float64"


def test_a_fingerprint_is_the_same_wherever_it_is_summed():
    x = torch.randn(90, 500, dtype=torch.float64) * torch.logspace(-3, 3, 500, dtype=torch.float64)
    x[0, 0] = torch.inf
    there = fingerprint(np.array([float(value) for value in sums(x.reshape(-1), torch)]), x.numel())
    np.testing.assert_allclose(there, fingerprint_of(x), rtol=1e-11, atol=1e-13)

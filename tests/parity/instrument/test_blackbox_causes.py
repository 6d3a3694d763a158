"""Mistakes in how a model is put together, each in a port of its own: named from logits, in any precision."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import draw_tokens, draw_weights
from numpy_port import CONFIG, Port, changed

import palm
from palm.parity.blackbox.logits import _called
from palm.parity.blackbox.result import ForeignComparison

EPS = CONFIG.eps
_erf = np.vectorize(math.erf)


def serial(self: Port, x: np.ndarray, b: str) -> np.ndarray:
    x = x + self.attention(self.norm(x, self.w[b + "norm"]), b)
    return x + self.feedforward(self.norm(x, self.w[b + "norm"]), b)


def dropping(self: Port, x: np.ndarray, b: str) -> np.ndarray:
    return x if b == "blocks.1." else Port.block(self, x, b)


def gelu_in_block_1(self: Port, y: np.ndarray, b: str) -> np.ndarray:
    if b != "blocks.1.":
        return Port.feedforward(self, y, b)
    gate, up = (y @ self.w[f"{b}feedforward.{name}"] for name in ("gate", "up"))
    return (gelu(self, gate) * up).astype(y.dtype) @ self.w[b + "feedforward.down"]


def gelu(self: Port, gate: np.ndarray) -> np.ndarray:
    return 0.5 * gate * (1 + _erf(gate / 2**0.5))


def split_dh(self: Port, q: np.ndarray) -> np.ndarray:
    return q.reshape(*q.shape[:-1], 8, 4).swapaxes(-1, -2).swapaxes(-2, -3)


def merge_dh(self: Port, o: np.ndarray) -> np.ndarray:
    return o.swapaxes(-2, -3).swapaxes(-1, -2).reshape(*o.shape[:-3], o.shape[-2], -1)


def near(self: Port, n: int) -> np.ndarray:
    return np.tri(n, dtype=bool) & ~np.tri(n, k=-8, dtype=bool)


def xpos(self: Port, x: np.ndarray) -> np.ndarray:
    e, n, sign = x.shape[-1], x.shape[-2], 1 if x.ndim == 3 else -1  # queries have an axis of heads
    zeta = (np.arange(0, e, 2) + 0.4 * e) / (1.4 * e)
    scale = zeta ** (sign * (np.arange(n)[:, None] - n // 2) / 512)
    return (Port.turned(self, x) * np.repeat(scale, 2, axis=-1)).astype(x.dtype)


def after(*front: int) -> type[Port]:
    """What it is given comes after other ids."""

    def call(self: Port, ids: np.ndarray) -> np.ndarray:
        return Port.__call__(self, np.concatenate((front, ids)))[len(front) :]

    return changed(__call__=call)


def score_cap(cap: float) -> type[Port]:
    return changed(scores=lambda self, q, k: np.float32(cap) * np.tanh(Port.scores(self, q, k) / cap))


MISTAKES = {
    "serial": (changed(block=serial), "feed-forward comes after attention"),
    "gelu": (changed(act=gelu), "the activation of the gate is GELU instead of swish"),
    "gelu in block 1": (changed(feedforward=gelu_in_block_1), "is GELU instead of swish, in block 1 only"),
    "relu": (changed(act=lambda self, g: np.maximum(g, 0)), "the activation of the gate is ReLU"),
    "dropped": (changed(block=dropping), "block 1 is left out"),
    "no last norm": (changed(last=lambda self, x: x), "the norm before the logits is missing"),
    "eps beside the root": (
        changed(root=lambda self, s: np.sqrt(s) + EPS),
        "eps 1e-05 is added to the root instead of under it",
    ),
    "eps 0": (changed(root=lambda self, s: np.sqrt(s)), "eps is 0 instead of 1e-05"),
    "queries (d h)": (changed(split=split_dh), "the query columns are not grouped by head"),
    "output (d h)": (changed(merge=merge_dh), "the rows of the output matrix are not grouped by head"),
    "both (d h)": (changed(split=split_dh, merge=merge_dh), "neither query columns nor output rows"),
    "rotated values": (changed(value=lambda self, v: self.turned(v)), "values are rotated too"),
    "window": (changed(seen=near), "each position sees only 8 keys"),
    "filled": (changed(fill=-1.0), "masked scores are exchanged for -1 instead of"),
    "ids": (changed(ids=lambda self, ids: (ids + 1) % 37), "the ids looked up are those given + 1"),
    "shifted": (
        changed(head=lambda self, z: np.roll(z, -1, -2)),
        "the logits are shifted by one position to the left",
    ),
    "log-softmax": (
        changed(head=lambda self, z: z - np.log(np.exp(z).sum(-1, keepdims=True))),
        "the output is the log-softmax of the logits",
    ),
    "logits capped": (
        changed(head=lambda self, z: np.float32(0.7) * np.tanh(z / np.float32(0.7))),
        "the logits are capped: c·tanh(x/c), c is 0.7",
    ),
    "scores capped": (score_cap(10.0), "the scores are capped: 10·tanh(x/10)"),
    "scores capped otherwise": (score_cap(1.3), "the scores are capped: c·tanh(x/c), c is 1.3"),
    "xPos": (changed(turned=xpos), "queries are multiplied by ζ^(i/512) and keys by ζ^(-i/512) (xPos)"),
    "a mark first": (after(1), "an id 1 comes before the ids"),
    "padding": (after(0, 0), "padded on the left with id 0 to a multiple of 8, and see it"),
}


def compared(port: type[Port], *, dtype: str = "float32") -> ForeignComparison:
    weights = draw_weights(CONFIG, 5, "float32")
    own = {name: weight.astype(dtype).astype(np.float32) for name, weight in weights.items()}
    model = palm.from_numpy(CONFIG, own, backend="torch")
    return palm.compare(port(own), model, draw_tokens(CONFIG, 30))


def test_a_right_port_agrees():
    assert compared(Port).agree


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_structure_is_named(name):
    port, told = MISTAKES[name]
    found = compared(port)
    assert not found.agree
    assert told in found.verdict, found.verdict


def test_eps_beside_the_root_is_not_told_as_another_eps():
    port, told = MISTAKES["eps beside the root"]
    assert told in compared(port).likenesses[0].detail
    port, told = MISTAKES["eps 0"]
    assert told in compared(port).likenesses[0].detail


class Rough(Port):
    """In bfloat16: each result is rounded."""

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return super().__call__(ids).astype(ml_dtypes.bfloat16)

    def norm(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        return low(super().norm(low(x), g))

    def attention(self, y: np.ndarray, b: str) -> np.ndarray:
        return low(super().attention(y, b))

    def feedforward(self, y: np.ndarray, b: str) -> np.ndarray:
        return low(super().feedforward(y, b))


def low(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_in_bfloat16_a_fault_below_the_a_priori_bound_is_named_and_a_right_port_agrees():
    right = compared(Rough, dtype="bfloat16")
    assert right.agree
    assert right.before < right.need
    assert "a fault is not told apart from rounding in bfloat16" in right.verdict
    wrong = compared(type("Wrong", (Rough,), {"act": gelu}), dtype="bfloat16")
    assert wrong.outcome == "differ"
    assert wrong.likenesses[0].cause == "activation"


def test_a_fault_in_a_port_that_upcasts_its_logits_is_named_as_in_the_type_it_computes_in():
    parts = {"act": gelu, "__call__": lambda self, ids: Rough.__call__(self, ids).astype(np.float32)}
    upcast = compared(type("Upcast", (Rough,), parts), dtype="bfloat16")
    assert (upcast.dtype, upcast.likenesses[0].cause) == ("bfloat16", "activation")


@pytest.mark.whole
def test_what_nothing_explains_is_not_told_apart_below_three_times_the_need():
    need = compared(Rough, dtype="bfloat16").need
    draws = np.random.default_rng(0)
    noise = draws.standard_normal((30, 37))
    outcomes = []
    for size in (1.0, 2.3, 4.0):

        def head(self: Port, z: np.ndarray, size: float = size) -> np.ndarray:
            scale = np.sqrt(np.square(z).mean())
            return (z + size * need * scale * noise).astype(np.float32)

        exact = type("Noisy", (Port,), {"head": head, "__call__": lambda s, i: low(Port.__call__(s, i))})
        found = compared(exact, dtype="bfloat16")
        assert found.dtype == "bfloat16"
        outcomes.append(found.outcome)
        if found.outcome == "cannot tell":
            assert "not told apart from rounding" in found.verdict
    assert outcomes == ["agree", "cannot tell", "differ"]


def test_a_torch_module_a_batch_of_one_and_float16_are_taken_as_they_are():
    weights = draw_weights(CONFIG, 5, "float32")
    model = palm.from_numpy(CONFIG, weights, backend="torch")

    class Wrapped(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            assert isinstance(ids, torch.Tensor)
            return torch.from_numpy(Port(weights)(ids.numpy()))[None]

    tokens = draw_tokens(CONFIG, 30)
    assert palm.compare(Wrapped(), model, tokens).agree
    half = palm.compare(lambda ids: Port(weights)(ids).astype(np.float16), model, tokens)
    assert (half.agree, half.dtype) == (True, "float16")
    wrong = palm.compare(lambda ids: 1.05 * Port(weights)(ids).astype(np.float16), model, tokens)
    assert wrong.outcome == "differ"


def test_what_is_unknown_says_where_it_begins_and_what_is_nearest():
    class Odd(Port):
        def __call__(self, ids: np.ndarray) -> np.ndarray:
            logits = super().__call__(ids)
            logits[11:] = np.abs(logits[11:])
            return logits

    found = compared(Odd)
    assert found.likenesses == ()
    tokens = draw_tokens(CONFIG, 30)
    assert f"The first position that differs is 11, of id {tokens[11]}." in found.verdict
    assert found.hints[0] in found.to_dict()["hints"]


class Converting(torch.nn.Module):
    """A port that turns ids into a tensor itself, as only NumPy's array can be."""

    def forward(self, ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64))


class Failing(torch.nn.Module):
    def forward(self, ids: Any) -> Any:
        raise ValueError(f"no {type(ids).__name__}, please")


def test_a_torch_module_may_convert_ids_itself_and_else_its_error_on_a_tensor_is_told():
    ids = np.arange(3)
    assert _called(Converting(), ids).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no Tensor, please"):
        _called(Failing(), ids)

"""Mistakes that people made when they ported a model: each is found on its line and told by its name."""

from __future__ import annotations

import functools
import inspect
import linecache
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import draw_tokens, draw_weights
from numpy_port import Port, changed
from ports import PORTS, in_jax, in_torch

import palm
from palm.parity.programs.result import Divergence, ProgramComparison

SIZES: dict[str, Any] = {"num_tokens": 37, "dim": 24, "depth": 2, "heads": 3, "dim_head": 8, "ff_mult": 2}
SMALL = palm.PaLMConfig(**SIZES, init="reference").resolve("jax")
UNTIED = palm.PaLMConfig(**SIZES, init="reference", tie_embeddings=False).resolve("jax")
# As many heads as elements of each: two axes that can be mistaken for each other.
SQUARE = palm.PaLMConfig(**{**SIZES, "heads": 8}, init="reference").resolve("jax")
RNG = np.random.default_rng(3)
HEAD, BIAS = RNG.standard_normal((24, 37)).astype("f4"), RNG.standard_normal(37).astype("f4")
_erf = np.vectorize(math.erf)


def other_head(self, x):
    return x @ HEAD


def tied_head(self, x):
    return x @ self.w["embedding"].T


def bias_of_logits(self, logits):
    return logits + BIAS


def scale_by_block_of_keys(self, q, k):
    return Port.scores(self, q, k) * (1.4427**(np.arange(k.shape[-2]) // 4)).astype(q.dtype)  # fmt: skip


def in_tf32(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def scores_in_tf32(self, q, k):
    return Port.scores(self, in_tf32(q), in_tf32(k))


def split_dh(self, q):
    return q.reshape(q.shape[0], self.c.dim_head, self.c.heads).transpose(2, 0, 1)


def split_twice(self, q):
    order = np.arange(q.shape[-1]).reshape(self.c.heads, -1).T.ravel()
    return Port.split(self, q[:, order])


def merge_dh(self, o):
    return o.transpose(1, 2, 0).reshape(o.shape[1], -1)


def gelu_tanh(self, g):
    return 0.5 * g * (1 + np.tanh((2 / np.pi) ** 0.5 * (g + 0.044715 * g**3)))


def gelu(self, g):
    return 0.5 * g * (1 + _erf(g / 2**0.5))


def relu(self, g):
    return np.maximum(g, 0)


def quick_gelu(self, g):
    return g / (1 + np.exp(-1.702 * g))


def sigmoid(self, g):
    return 1 / (1 + np.exp(-g))


def not_gated(self, gate, up):
    return self.act(gate)


def other_theta(self):
    return 500_000.0 ** (-np.arange(0, self.c.dim_head, 2) / self.c.dim_head)


def interpolated(self, n):
    return Port.angles(self, n) / 4


def exponents_halved(self):
    return self.c.rope_theta ** (-np.arange(self.c.dim_head // 2) / self.c.dim_head)


def exponents_by_dim(self):
    return self.c.rope_theta ** (-np.arange(0, self.c.dim_head, 2) / self.c.dim)


def coarse_angles(self, n):
    return np.arange(n)[:, None] * self.frequencies().astype(ml_dtypes.bfloat16).astype("f4")


def one_plus(self, x, g):
    return Port.norm(self, x, 1 + g)


def one_less(self, x, g):
    return Port.norm(self, x, g - 1)


def half_split(self, x):
    cos, sin = self.tables(x)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def no_minus(self, x):
    cos, sin = self.tables(x)
    a, b = x[..., ::2], x[..., 1::2]
    return np.stack([a * cos + b * sin, b * cos + a * sin], -1).reshape(x.shape)


def columns_for_halves(self, b, name):
    w = Port.projection(self, b, name)
    return w if name == "value" else w.reshape(24, -1, 4, 2).swapaxes(-1, -2).reshape(w.shape)


def columns_for_pairs(self, b, name):
    w = Port.projection(self, b, name)
    return w if name == "value" else w.reshape(24, -1, 2, 4).swapaxes(-1, -2).reshape(w.shape)


def columns_across_heads(self, b, name):
    w = Port.projection(self, b, name)
    return np.concatenate([w[:, ::2], w[:, 1::2]], 1) if name == "query" else w


def mask_of_a_chunk(self, n):
    return np.arange(n) <= (np.arange(n) % 8)[:, None]


def window(self, n):
    return np.tri(n, dtype=bool) & ~np.tri(n, k=-6, dtype=bool)


def eps_beside_the_root(self, square):
    return np.sqrt(square) + self.c.eps


def sum_for_mean(self, square):
    return np.sqrt(square * self.c.dim + self.c.eps)


def variance_over_n_less_1(self, square):
    return np.sqrt(square * (24 / 23) + self.c.eps)


def serial(self, x, b):
    x = x + self.attention(self.norm(x, self.w[b + "norm"]), b)
    return x + self.feedforward(self.norm(x, self.w[b + "norm"]), b)


def feedforward_first(self, x, b):
    x = x + self.feedforward(self.norm(x, self.w[b + "norm"]), b)
    return x + self.attention(self.norm(x, self.w[b + "norm"]), b)


def norm_of_the_sum(self, x, b):
    return self.norm(x + self.attention(x, b) + self.feedforward(x, b), self.w[b + "norm"])


def normed_residual(self, x, b):
    y = self.norm(x, self.w[b + "norm"])
    return y + self.attention(y, b) + self.feedforward(y, b)


def half_of_the_branches(self, x, b):
    y = self.norm(x, self.w[b + "norm"])
    return x + (self.attention(y, b) + self.feedforward(y, b)) / 2


def no_last_norm(self, x):
    return x @ self.w["embedding"].T


def coarse_probabilities(self, s):
    return Port.softmax(self, s).astype(ml_dtypes.bfloat16).astype("f4")


@dataclass(frozen=True)
class Case:
    """A mistake in one part of the port, and how its cause begins."""

    part: str
    mistake: Callable[..., Any]
    cause: str
    config: palm.PaLMConfig = SMALL


CASES = {
    "random head": Case("unembedded", other_head, "other operand"),
    "head of the embedding": Case("unembedded", tied_head, "other operand", UNTIED),
    "bias of the logits": Case("head", bias_of_logits, "added operation: add"),
    "scale by block of keys": Case("scores", scale_by_block_of_keys, "added operation: multiply"),
    "queries (d h)": Case("split", split_dh, "order of elements"),
    "queries (d h), square": Case("split", split_dh, "order of elements", SQUARE),
    "queries twice": Case("split", split_twice, "order of elements"),
    "queries twice, square": Case("split", split_twice, "order of elements", SQUARE),
    "output (d h)": Case("merge", merge_dh, "order of elements"),
    "output (d h), square": Case("merge", merge_dh, "order of elements", SQUARE),
    "GELU (tanh)": Case("act", gelu_tanh, "GELU (tanh) for SiLU"),
    "GELU (erf)": Case("act", gelu, "GELU (erf) for SiLU"),
    "ReLU": Case("act", relu, "ReLU for SiLU"),
    "quick GELU": Case("act", quick_gelu, "quick GELU for SiLU"),
    "sigmoid": Case("act", sigmoid, "sigmoid for SiLU"),
    "not gated": Case("gated", not_gated, "added operation: multiply"),
    "theta": Case("frequencies", other_theta, "other constant: 500000 for 10000"),
    "interpolated": Case("angles", interpolated, "times 0.25"),
    "exponents halved": Case("frequencies", exponents_halved, "times 0.5"),
    "exponents by dim": Case("frequencies", exponents_by_dim, "other constant: 24 for 8"),
    "coarse frequencies": Case("angles", coarse_angles, "rounded to bfloat16"),
    "1 + w for w": Case("norm", one_plus, "added operation: add 1"),
    "w for 1 + w": Case("norm", one_less, "added operation: subtract 1"),
    "half-split": Case("turned", half_split, "other elements"),
    "no minus": Case("turned", no_minus, "other operation: add for subtract"),
    "columns for halves": Case("projection", columns_for_halves, "order of elements"),
    "columns for pairs": Case("projection", columns_for_pairs, "order of elements"),
    "columns across heads": Case("projection", columns_across_heads, "order of elements"),
    "mask of a chunk": Case("seen", mask_of_a_chunk, "other mask"),
    "window": Case("seen", window, "other mask"),
    "eps beside the root": Case("root", eps_beside_the_root, "other order: root before add"),
    "sum for mean": Case("root", sum_for_mean, "times 24"),
    "n - 1": Case("root", variance_over_n_less_1, "times 1.043478"),
    "serial": Case("block", serial, "other operand"),
    "feed-forward first": Case("block", feedforward_first, "added operation: add"),
    "post-norm": Case("block", norm_of_the_sum, "added operations: mean, subtract, "),
    "normed residual": Case("block", normed_residual, "other operand"),
    "half of the branches": Case("block", half_of_the_branches, "times 0.5"),
    "no last norm": Case("logits", no_last_norm, "added operations: mean, subtract, "),
    "coarse probabilities": Case("softmax", coarse_probabilities, "rounded to bfloat16"),
    "products in TF32": Case("scores", scores_in_tf32, "rounded to TF32"),
}


@functools.cache
def model_and_weights(config: palm.PaLMConfig) -> tuple[Any, dict[str, np.ndarray]]:
    weights = draw_weights(config, 5, "float32")
    return palm.from_numpy(config, weights, backend="torch"), weights


def compared(port: type[Port]) -> ProgramComparison:
    """The port against palm's model, which is given as a program like any other."""
    model, weights = model_and_weights(port.c)
    return palm.compare(port(weights), model.forward, draw_tokens(port.c, 12))


def shown(found: Divergence) -> list[str]:
    """What the line says that is shown of the port, and each that called it."""
    assert found.a is not None
    return [found.a.source, *(linecache.getline(*at).strip() for at in found.a.callers)]


@pytest.mark.parametrize("config", [SMALL, SQUARE, UNTIED], ids=["small", "square", "untied"])
def test_a_right_port_agrees(config):
    found = compared(changed(c=config))
    assert (found.outcome, found.divergences) == ("agree", ()), found.verdict


def test_a_port_that_splits_in_halves_agrees_if_the_columns_are_ordered_so():
    found = compared(changed(turned=half_split, projection=columns_for_halves, c=SMALL))
    assert (found.outcome, found.divergences) == ("agree", ()), found.verdict


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_on_its_line_and_named(name):
    case = CASES[name]
    found = compared(changed(**{case.part: case.mistake}, c=case.config))
    assert found.outcome == "differ"
    first = found.divergences[0]
    own = [line.strip() for line in inspect.getsource(case.mistake).splitlines()]
    assert any(line in own for line in shown(first)), (shown(first), first)
    assert (first.cause or "").startswith(case.cause), first


# For each mistake of a port in torch or JAX: what its line says, and how its cause begins.
OTHERS = {
    (in_torch, "slopes"): ("slopes = 2.0 ** (", "other operand"),
    (in_torch, "steeper"): ("slopes = slopes * value", "times 1.25"),
    (in_torch, "gate"): ("silu(gate) * up", "other operand"),
    (in_torch, "logits"): ('w["embedding"].T * (value if', "other constant: 1.25 for 0.2041241452"),
    (in_jax, "theta"): ("theta ** (", "other constant: 500000 for 10000"),
    (in_jax, "transposed"): ("out = out.T", "order of elements"),
}


@pytest.mark.parametrize(("port", "mistake"), OTHERS)
def test_so_is_a_mistake_in_torch_or_jax(port, mistake):
    config = PORTS[port]
    model, weights = model_and_weights(config)
    value = 5e5 if mistake == "theta" else 1.25

    def my_port(ids: Any) -> Any:
        return port(config, weights, ids, mistake, value)

    framework = "torch" if port is in_torch else "jax"
    found = palm.compare(my_port, model.forward, draw_tokens(config, 12), frameworks=(framework, "torch"))
    line, cause = OTHERS[port, mistake]
    first = found.divergences[0]
    assert any(line in text for text in shown(first)), (shown(first), first)
    assert (first.cause or "").startswith(cause), first

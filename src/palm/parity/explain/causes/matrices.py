"""What ports get wrong in matrices: which, in what order, in what precision. Letters: h heads, e dim_head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes.building_blocks import Variant, with_weight
from palm.spec.forward import REFEREE, Operation, Place
from palm.spec.functions import gated

_MATMULS = ("q", "k", "v", "attention_out", "feedforward", "feedforward_out", "logits")


def _matrices(config: PaLMConfig) -> dict[str, tuple[str, ...]]:
    """The matrices of a block by the tap they make."""
    kv = {"k": ("key_value",), "v": ("key_value",)} if config.share_kv else {"k": ("key",), "v": ("value",)}
    attention = {"q": ("query",), **kv, "attention_out": ("out",)}
    found = {kind: tuple(f"attention.{name}" for name in names) for kind, names in attention.items()}
    return found | {
        "feedforward": ("feedforward.up", "feedforward.gate"),
        "feedforward_out": ("feedforward.down",),
    }


def transposed(config: PaLMConfig) -> Iterator[Variant]:
    """A matrix as the framework stored it, not as it is applied."""
    for kind, names in _matrices(config).items():
        for name in names:
            yield (
                f"{name} is transposed",
                {kind: with_weight(kind, name, lambda at, w: np.ascontiguousarray(w.T).reshape(w.shape))},
            )


def gate(config: PaLMConfig) -> Iterator[Variant]:
    """swish on the up projection."""

    def swapped(at: Place) -> np.ndarray:
        y = at.tap("norm")
        return gated(y @ at.weight("feedforward.up"), y @ at.weight("feedforward.gate"))

    yield "swish is applied to the up projection instead of the gate", {"feedforward": swapped}


def block_order(config: PaLMConfig) -> Iterator[Variant]:
    """The columns of q, k, v fused in one order and taken apart in another."""
    names = ("query", "key_value") if config.share_kv else ("query", "key", "value")

    def regrouped(order: tuple[str, ...]) -> Mapping[str, Operation]:
        def change(name: str) -> Callable[[Place, np.ndarray], np.ndarray]:
            def taken(at: Place, weight: np.ndarray) -> np.ndarray:
                fused = np.concatenate([at.weight(f"attention.{n}") for n in names], 1)
                start = sum(at.weight(f"attention.{n}").shape[1] for n in order[: order.index(name)])
                return fused[:, start : start + weight.shape[1]]

            return taken

        taps = {"query": ("q",), "key": ("k",), "value": ("v",), "key_value": ("k", "v")}
        return {
            kind: with_weight(kind, f"attention.{name}", change(name))
            for name in names
            for kind in taps[name]
        }

    for order in permutations(names):
        if order != names:
            yield f"the fused columns are split as {' | '.join(order)}", regrouped(order)


def head_order(config: PaLMConfig) -> Iterator[Variant]:
    """Columns grouped by place in the head, not by head; read so, or stored so."""
    h, e = config.heads, config.dim_head
    stored = np.arange(h * e).reshape(h, e).T.ravel()
    orders = {"": stored, " (the inverse order)": np.arange(h * e).reshape(e, h).T.ravel()}
    if h == 1 or e == 1:
        return
    for told, order in orders.items() if h != e else [("", stored)]:

        def columns(at: Place, w: np.ndarray, order: np.ndarray = order) -> np.ndarray:
            return w[:, order]

        def rows(at: Place, w: np.ndarray, order: np.ndarray = order) -> np.ndarray:
            return w[order]

        queries = {"q": with_weight("q", "attention.query", columns)}
        output = {"attention_out": with_weight("attention_out", "attention.out", rows)}
        yield f"the query columns are not grouped by head{told}", queries
        yield f"the rows of the output matrix are not grouped by head{told}", output
        yield f"neither query columns nor output rows are grouped by head{told}", {**queries, **output}


def matmul_precision(config: PaLMConfig) -> Iterator[Variant]:
    """Inputs of matmuls rounded to TF32 or bfloat16."""
    for told, bits in (("TF32", 10), ("bfloat16", 7)):

        def rounded(kind: str, bits: int = bits) -> Operation:
            def operation(at: Place) -> np.ndarray:
                kept = {
                    name: round_mantissa(np.asarray(w, np.float64), bits) if w.ndim > 1 else w
                    for name, w in at.weights.items()
                    if name.startswith(at.prefix)
                }
                taps = {name: round_mantissa(np.asarray(x, np.float64), bits) for name, x in at.taps.items()}
                return REFEREE[kind](dataclasses.replace(at, weights=kept, taps=taps))

            return operation

        yield f"the inputs of matmuls are rounded to {told}", {kind: rounded(kind) for kind in _MATMULS}


def round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """x rounded to so many bits after the leading one, to nearest, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)

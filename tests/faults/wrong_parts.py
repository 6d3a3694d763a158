"""Wrong mathematics of matrices, feed-forward and ends. Letters: d dim, h heads, e dim_head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from faults.inject import bfloat16, cast, constant, truth, wide
from faults.kinds import UNKNOWN, far_from_one, kind

TAP_OF = {
    "query": "q",
    "key": "k",
    "key_value": "k",
    "value": "v",
    "out": "attention_out",
    "up": "feedforward",
    "gate": "feedforward",
    "down": "feedforward_out",
}


@kind("up and gate swapped", "up/gate swapped", "gated")
def swapped(rng, config):
    return "feedforward", lambda lib, right, gate, up: right(up, gate)


def of_matrix(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(lib, x, w, matrices)` for one matrix, the others as they should be."""

    def wrong(lib: Any, right: Any, which: str, x: Any, w: Any, matrices: Any) -> Any:
        return change(lib, x, w, matrices) if which == name else right(which, x, w, matrices)

    return wrong


def names(config: Any) -> list[str]:
    shared = ["key_value"] if config.share_kv else ["key", "value"]
    return ["query", *shared, "out", "up", "gate", "down"]


@kind("q, k, v in another order", "q/k/v order", "product")
def order(rng, config):
    right_order = ["query", *(["key_value"] if config.share_kv else ["key", "value"])]
    others = [list(rng.permutation(right_order)) for _ in range(20)]
    wrong_order = next(order for order in others if order != right_order)

    def wrong(lib, right, which, x, w, matrices):
        if which not in right_order:
            return right(which, x, w, matrices)
        fused = lib.concatenate([matrices[name] for name in right_order], 1)
        before = wrong_order[: wrong_order.index(which)]
        start = sum(matrices[name].shape[1] for name in before)
        return x @ fused[:, start : start + w.shape[1]]

    # The first of the three that is not where it was.
    start = 0 if wrong_order[0] != "query" else 1
    return ("q" if start == 0 else "k"), wrong


@kind("transposed matrix", "transposed matrix", "product")
def transposed(rng, config):
    name = str(rng.choice(names(config)))
    return TAP_OF[name], of_matrix(name, lambda lib, x, w, m: x @ w.T.reshape(w.shape))


@kind("head order", "head order", "product", config={"heads": (2, 3, 5, 6, 8)})
def heads(rng, config):
    h, e = config.heads, config.dim_head

    def wrong(lib, x, w, matrices):
        return x @ w.reshape(-1, h, e).swapaxes(1, 2).reshape(w.shape)

    return "q", of_matrix("query", wrong)


def fewer_bits(lib: Any, x: Any, bits: int) -> Any:
    """float32 rounded to so many bits after the leading one, by adding and taking away a multiple."""
    factor = 2.0 ** (23 - bits) + 1
    z = x * factor
    return z - (z - x)


@kind("products in TF32", "product precision", "product", lossy=True)
def tf32(rng, config):
    def wrong(lib, right, which, x, w, matrices):
        return fewer_bits(lib, x, 10) @ fewer_bits(lib, w, 10)

    return "q", wrong


@kind("products in bfloat16", "product precision", "product", lossy=True)
def bfloat16_passes(rng, config):
    def wrong(lib, right, which, x, w, matrices):
        return bfloat16(lib, x) @ bfloat16(lib, w)

    return "q", wrong


@kind("logit scale", "logit scale", "logits", everywhere=True)
def logit_scale(rng, config):
    other = 1.0 if config.init == "paper" else config.dim**-0.5
    factor = far_from_one(rng) if rng.random() < 0.5 else other / config.logit_scale
    return "logits", lambda lib, right, y, w, cfg: right(y, w, cfg) * factor


# Another matrix is known by what it does to rows that those before foretell: they must span its inputs.
@kind(
    "untied embedding",
    "output matrix",
    "logits",
    config={"tie_embeddings": (True,)},
    everywhere=True,
    length=100,
)
def untied(rng, config):
    matrix = rng.standard_normal((config.dim, config.num_tokens))

    def wrong(lib, right, y, w, cfg):
        own = constant(lib, matrix, y)
        size = wide(w).std() if lib.__name__ == "torch" else w.std()
        return right(y, cast(own * size, y.dtype), cfg)

    return "logits", wrong


@kind("transposed embedding", "output matrix", "logits", everywhere=True)
def transposed_output(rng, config):
    return "logits", lambda lib, right, y, w, cfg: right(y, w.T.reshape(w.shape), cfg)


@kind("embedding scale", "embedding scale", "embed", everywhere=True)
def embedding_scale(rng, config):
    factor = config.dim**0.5 if rng.random() < 0.5 else far_from_one(rng)
    return "embed", lambda lib, right, ids, w: right(ids, w) * factor


@kind("other tokens", "tokens", "embed", everywhere=True)
def tokens(rng, config):
    one, at = int(rng.integers(1, config.num_tokens)), int(rng.integers(3, 20))

    def one_other(lib, right, ids, w):
        place = np.zeros(ids.shape[-1], int)
        place[at] = one
        moved = ids + (lib.as_tensor(place) if lib.__name__ == "torch" else lib.asarray(place, ids.dtype))
        return right(moved % w.shape[0], w)

    def shifted(lib, right, ids, w):
        return right(lib.roll(ids, 1, -1), w)

    return "embed", [one_other, shifted][rng.integers(2)]


@kind("residual forgotten", "residual", "residual")
def residual(rng, config):
    left = str(rng.choice(["attention_out", "feedforward_out", "x"]))

    def wrong(lib, right, x, taps):
        parts = {"x": x, "attention_out": taps["attention_out"], "feedforward_out": taps["feedforward_out"]}
        del parts[left]
        first, second = parts.values()
        return first + second

    return "out", wrong


@kind("division by zero", "NaN origin", "product")
def infinite(rng, config):
    name = str(rng.choice(names(config)))
    return TAP_OF[name], of_matrix(name, lambda lib, x, w, m: (x @ w) * float("inf"))


@kind("dropout", "dropout", "product")
def dropout(rng, config):
    name, rate, seed = (
        str(rng.choice(["out", "down"])),
        float(rng.choice([0.1, 0.2, 0.5])),
        int(rng.integers(99)),
    )

    def wrong(lib, x, w, matrices):
        y = x @ w
        kept = np.random.default_rng(seed).random(tuple(y.shape)) >= rate
        return lib.where(truth(lib, kept), y / (1 - rate), lib.zeros_like(y))

    return TAP_OF[name], of_matrix(name, wrong)


@kind("GELU for swish", "activation", "gated")
def gelu(rng, config):
    def wrong(lib, right, gate, up):
        z = wide(gate)
        curve = 0.5 * z * (1 + lib.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z * z * z)))
        return cast(curve * wide(up), gate.dtype)

    return "feedforward", wrong


@kind("residual twice", UNKNOWN, "residual")
def twice(rng, config):
    return "out", lambda lib, right, x, taps: right(x, taps) + x


@kind("tanh on values", UNKNOWN, "product", config={"share_kv": (False,)})
def tanh_values(rng, config):
    return "v", of_matrix("value", lambda lib, x, w, m: lib.tanh(x @ w))


@kind("a bend in keys", UNKNOWN, "product", config={"share_kv": (False,)})
def bent_keys(rng, config):
    return "k", of_matrix("key", lambda lib, x, w, m: lib.abs(x @ w) ** 1.5)


@kind("soft cap", UNKNOWN, "logits", config={"init": ("paper",)}, everywhere=True)
def cap(rng, config):
    return "logits", lambda lib, right, y, w, cfg: lib.tanh(right(y, w, cfg))


@kind("sums in another order", "", "product")
def reordered(rng, config):
    """Rounding, no fault: the same sum, its terms taken together otherwise."""

    def wrong(lib, right, which, x, w, matrices):
        middle = x.shape[-1] // 2
        return cast(
            wide(x[..., middle:]) @ wide(w[middle:]) + wide(x[..., :middle]) @ wide(w[:middle]), x.dtype
        )

    return "", wrong


@kind("other weights", "different weights", "weights")
def weights(rng, config, arrays):
    block = int(rng.integers(config.depth))
    name = f"blocks.{block}." + str(
        rng.choice(["attention.query", "attention.out", "feedforward.up", "norm"])
    )
    moved = arrays[name].copy()
    if rng.random() < 0.5:
        moved.flat[int(rng.integers(moved.size))] = 50 * np.abs(moved.astype(float)).max()
    else:
        moved = np.roll(moved, 1, 0)
    arrays[name] = moved
    tap = {"query": "q", "out": "attention_out", "up": "feedforward", "norm": "norm"}[name.rpartition(".")[2]]
    return f"blocks.{block}.{tap}"

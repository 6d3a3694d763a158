"""Faults put into a wing by other means than the causes' own: where each is, and what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import draw_tokens, draw_weights
from support import path_with_bias

import palm
from palm.parity.diagnosis import Diagnosis
from palm.parity.explain.diagnose import diagnose
from palm.parity.result import Comparison
from palm.torch_impl.linear import Linear

Patch = pytest.MonkeyPatch


def config(positions: str, **changes: Any) -> palm.PaLMConfig:
    sizes = {"num_tokens": 37, "dim": 48, "depth": 3, "heads": 6, "dim_head": 8}
    return palm.PaLMConfig(**{**sizes, "positions": positions, **changes}).resolve("torch")


def module(wing: str, name: str) -> Any:
    return import_module(f"palm.{wing}_impl.{name}")


def half_split(wing: str, patch: Patch) -> None:
    library = {"torch": torch, "jax": jnp}[wing]

    def rotate(x: Any, rotation: Any) -> Any:
        cos, sin = rotation
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return library.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    patch.setattr(module(wing, "attention"), "rotate", rotate)


def change_bias(change: Callable[[Any, Any], Any]) -> Callable[[str, Patch], None]:
    def fault(wing: str, patch: Patch) -> None:
        library = {"torch": torch, "jax": jnp}[wing]
        impl = import_module(f"palm.{wing}_impl")
        patch.setitem(impl.ATTENTION, "blockwise", path_with_bias(impl, lambda bias: change(library, bias)))

    return fault


def see_the_next(library: Any, bias: Any) -> Any:
    n = bias.shape[-1]
    near = np.eye(n, k=1, dtype=bool)
    slope = -bias[:, 1:2, 0:1]
    near = torch.as_tensor(near) if library is torch else near
    return library.where(near, slope, bias)


def swap_gate(wing: str, patch: Patch) -> None:
    right = module(wing, "feedforward").swiglu
    patch.setattr(module(wing, "feedforward"), "swiglu", lambda a, b: right(b, a))


def scale_twice(wing: str, patch: Patch) -> None:
    paths = module(wing, "attention").ATTENTION
    right = paths["blockwise"]
    patch.setitem(paths, "blockwise", lambda q, *others: right(q * q.shape[-1] ** -0.5, *others))


def norm_in_bfloat16(wing: str, patch: Patch) -> None:
    norm = module(wing, "norm").Norm
    right = norm.forward if wing == "torch" else norm.__call__
    narrow = torch.bfloat16 if wing == "torch" else jnp.bfloat16

    def rough(self: Any, x: Any) -> Any:
        y = right(self, x.to(narrow)) if wing == "torch" else right(self, x.astype(narrow))
        return y.to(x.dtype) if wing == "torch" else y.astype(x.dtype)

    patch.setattr(norm, "forward" if wing == "torch" else "__call__", rough)


def round_products(wing: str, patch: Patch) -> None:
    def rounded(t: torch.Tensor) -> torch.Tensor:
        if t.dtype != torch.float32:
            return t
        bits = (t.detach().view(torch.int32) + 0x1000) & ~0x1FFF  # TF32's ten
        return t + (bits.view(torch.float32) - t).detach()

    def linear(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rounded(x), rounded(self.weight))

    patch.setattr(module(wing, "linear").Linear, "forward", linear)


def no_logit_scale(wing: str, patch: Patch) -> None:
    model = module(wing, "model").PaLM
    right = model.logits
    patch.setattr(model, "logits", lambda self, y: right(self, y) / self.config.logit_scale)


def cap_logits(wing: str, patch: Patch) -> None:
    model = module(wing, "model").PaLM
    right = model.logits
    tanh = torch.tanh if wing == "torch" else jnp.tanh
    patch.setattr(model, "logits", lambda self, y: tanh(right(self, y)))


def see_a_window(library: Any, bias: Any) -> Any:
    n = bias.shape[-1]
    far = np.tri(n, k=-8, dtype=bool)
    return library.where(torch.as_tensor(far) if library is torch else far, -library.inf, bias)


def drop(wing: str, patch: Patch) -> None:
    feedforward = module(wing, "feedforward").FeedForward
    right = feedforward.forward

    def dropped(self: Any, *inputs: Any) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.functional.dropout(right(self, *inputs), 0.1)

    patch.setattr(feedforward, "forward", dropped)


def square(wing: str, patch: Patch) -> None:
    """A gate without its linear factor: an activation that nobody is known to have mistaken for swish."""
    patch.setattr(module(wing, "feedforward"), "swiglu", lambda a, b: a * a * b)


# fault -> (wings, positions, length, its first tap, its cause)
FAULTS: dict[str, tuple[Any, tuple[str, ...], str, int, str, str]] = {
    "half-split": (half_split, ("torch", "jax"), "rotary", 40, "blocks.0.q", "rotary layout"),
    "sign": (
        change_bias(lambda lib, b: lib.where(lib.isinf(b), b, -b)),
        ("torch", "jax"),
        "alibi",
        40,
        "blocks.0.attention",
        "ALiBi sign",
    ),
    "bfloat16 bias": (
        change_bias(lambda lib, b: b.to(lib.bfloat16).to(b.dtype)),
        ("torch",),
        "alibi",
        300,
        "blocks.0.attention",
        "positions in bfloat16",
    ),
    "next seen": (change_bias(see_the_next), ("torch", "jax"), "alibi", 40, "blocks.0.attention", "mask"),
    "gate": (swap_gate, ("torch", "jax"), "alibi", 40, "blocks.0.feedforward", "up/gate swapped"),
    "scaled twice": (scale_twice, ("torch", "jax"), "rotary", 40, "blocks.0.attention", "query scale"),
    "bfloat16 norm": (norm_in_bfloat16, ("torch", "jax"), "alibi", 40, "blocks.0.norm", "norm in bfloat16"),
    "TF32": (round_products, ("torch",), "rotary", 40, "blocks.0.q", "product precision"),
    "logits": (no_logit_scale, ("torch", "jax"), "alibi", 40, "logits", "logit scale"),
    "dropout": (drop, ("torch",), "alibi", 40, "blocks.0.feedforward_out", "dropout"),
    "soft cap": (cap_logits, ("torch", "jax"), "alibi", 40, "logits", "unknown"),
    "window": (change_bias(see_a_window), ("torch", "jax"), "alibi", 40, "blocks.0.attention", "unknown"),
    "squared gate": (square, ("torch", "jax"), "rotary", 40, "blocks.0.feedforward", "unknown"),
}
CASES = [(name, wing) for name, (_, wings, *_) in FAULTS.items() for wing in wings]


@contextmanager
def traced_anew() -> Iterator[None]:
    """JAX keeps what it has compiled: a patch must neither be missed nor stay."""
    jax.clear_caches()
    try:
        yield
    finally:
        jax.clear_caches()


def compared(cfg: palm.PaLMConfig, length: int, change: Callable[[Any], None] = lambda t: None) -> Comparison:
    weights = draw_weights(cfg, 3, "float32")
    sides = [palm.from_numpy(cfg, weights, backend=backend) for backend in ("torch", "jax")]
    change(sides[0])
    return palm.compare(*sides, draw_tokens(cfg, 2, length))


def named(found: Comparison) -> list[Diagnosis]:
    assert not found.agree
    return list(found.diagnoses)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "wing"), CASES)
def test_a_fault_is_found_at_its_tap_and_named(name, wing, monkeypatch):
    fault, _, positions, length, tap, cause = FAULTS[name]
    with traced_anew():
        fault(wing, monkeypatch)
        found = compared(config(positions), length)
    first, *others = named(found)
    assert (first.side, first.taps[0], first.cause) == (wing, tap, cause), first.sentence
    assert found.first_divergence in first.taps
    assert first.before > first.bound
    assert {other.cause for other in others} <= {cause}
    if cause != "unknown":
        assert first.after <= 0.5 * first.before
        assert first.fix in first.sentence


@pytest.mark.whole
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_right_sides_have_nothing_to_diagnose(positions, dtype):
    for seed in range(2):
        cfg = config(positions, norm="layernorm" if seed % 2 else "rmsnorm", share_kv=not seed)
        with jax.enable_x64(dtype == "float64"):
            weights = draw_weights(cfg, seed, dtype)
            sides = [palm.from_numpy(cfg, weights, backend=backend) for backend in ("torch", "jax")]
            found = palm.compare(*sides, draw_tokens(cfg, 2, 70, seed=seed))
        assert found.agree
        assert diagnose(*found.recordings) == ()


class Transposed(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.T)


class Infinite(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / torch.zeros(())


@pytest.mark.whole
def test_two_faults_in_different_blocks_are_both_found():
    def change(model: Any) -> None:
        model.blocks[0].norm.config = dataclasses.replace(model.config, norm_eps=1e-2, norm_eps_mode="add")
        model.blocks[2].attention.out.__class__ = Transposed

    first, second = named(compared(config("alibi"), 40, change))
    assert (first.taps, first.cause) == (("blocks.0.norm",), "eps convention")
    assert (second.taps, second.cause) == (("blocks.2.attention_out",), "transposed matrix")


@pytest.mark.whole
def test_weights_that_differ_are_named():
    def change(model: Any) -> None:
        with torch.no_grad():
            model.blocks[1].feedforward.up.weight[3, 4] *= 1.001

    [only] = named(compared(config("alibi"), 40, change))
    assert (only.cause, only.taps) == ("different weights", ("blocks.1.feedforward",))
    assert "blocks.1.feedforward.up differs in 1 of 9,216 elements" in only.sentence


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_where_numbers_stop_being_finite_is_named():
    def change(model: Any) -> None:
        model.blocks[1].feedforward.down.__class__ = Infinite

    [only] = named(compared(config("alibi"), 40, change))
    assert (only.cause, only.taps) == ("NaN origin", ("blocks.1.feedforward_out",))


def test_a_fault_of_some_heads_and_places_says_which(monkeypatch):
    def far(library: Any, bias: Any) -> Any:
        bias = bias.clone()
        bias[1:3, 20:] *= 2
        return bias

    change_bias(far)("torch", monkeypatch)
    first = named(compared(config("alibi"), 40))[0]
    assert first.confined == "heads 1–2 of 6, from position 20 on"


@pytest.mark.whole
def test_a_config_that_differs_is_named():
    cfg = config("alibi")
    weights = draw_weights(cfg, 3, "float32")
    other = dataclasses.replace(cfg, norm_eps=0.3, init="reference")
    sides = [palm.from_numpy(cfg, weights, backend="torch"), palm.from_numpy(other, weights, backend="jax")]
    [only] = named(palm.compare(*sides, draw_tokens(cfg, 40)))
    assert (only.side, only.cause) == ("jax", "config")
    assert "init is 'reference' instead of 'paper'" in only.detail


def test_zeros_in_a_pattern_are_no_dropout():
    def change(model: Any) -> None:
        with torch.no_grad():
            model.blocks[1].attention.out.__class__ = FirstColumnsOnly

    [only] = named(compared(config("alibi"), 40, change))
    assert (only.cause, only.taps) == ("unknown", ("blocks.1.attention_out",))


class FirstColumnsOnly(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        # As large as dropout would make them: only the pattern tells.
        return torch.cat([y[..., :20] * 48 / 20, torch.zeros_like(y[..., 20:])], -1)


def test_a_diagnosis_is_in_the_report():
    def change(model: Any) -> None:
        model.config = dataclasses.replace(model.config, init="reference")

    found = compared(config("alibi"), 40, change)
    [told] = found.to_dict()["diagnoses"]
    assert (told["cause"], told["taps"]) == ("config", ["logits"])
    assert told["sentence"] == found.diagnoses[0].sentence

"""Ports without xPos, or without the norms of queries and keys: found at their tap, and named."""

import dataclasses
from importlib import import_module

import jax
import pytest
from cases import draw_tokens, draw_weights

import palm


def without_xpos(wing, patch):
    model = import_module(f"palm.{wing}_impl.model")
    right = model.rotation_tables

    def tables(config, length, **where):
        return right(dataclasses.replace(config, positions="rotary"), length, **where)

    patch.setattr(model, "rotation_tables", tables)


def another_base(wing, patch):
    model = import_module(f"palm.{wing}_impl.model")
    right = model.rotation_tables

    def tables(config, length, **where):
        return right(dataclasses.replace(config, xpos_base=333.0), length, **where)

    patch.setattr(model, "rotation_tables", tables)


def exchanged(wing, patch):
    model = import_module(f"palm.{wing}_impl.model")
    right = model.rotation_tables
    patch.setattr(model, "rotation_tables", lambda *given, **where: right(*given, **where)[::-1])


def centred(wing, patch):
    """About the middle of the sequence, as palm-rlhf-pytorch has it."""
    model = import_module(f"palm.{wing}_impl.model")
    right = model.rotation_tables

    def tables(config, length, **where):
        (cos, sin), (cos_k, sin_k) = right(config, length, **where)
        factor = (cos[length // 2] ** 2 + sin[length // 2] ** 2) ** 0.5
        return (cos / factor, sin / factor), (cos_k * factor, sin_k * factor)

    patch.setattr(model, "rotation_tables", tables)


def without_head_norms(wing, patch):
    norm = import_module(f"palm.{wing}_impl.norm").HeadNorm
    patch.setattr(norm, "forward" if wing == "torch" else "__call__", lambda self, x: x)


def without_scales(wing, patch):
    impl = import_module(f"palm.{wing}_impl.norm")
    right = impl.unit
    patch.setattr(impl, "unit", lambda x, weight: right(x, weight * 0 + 1))


FAULTS = {
    "missing": (without_xpos, {}, "xPos", "xPos is missing on queries and keys"),
    "base": (another_base, {}, "xPos", "the base of xPos is 333"),
    "exchanged": (exchanged, {}, "xPos", "queries and keys are exchanged"),
    "centre": (centred, {}, "xPos", "counts from the middle of the sequence, which no score shows"),
    "norms": (without_head_norms, {"qk_norm": True}, "query and key norm", "are not normed"),
    "scales": (without_scales, {"qk_norm": True}, "query and key norm", "has no learned scale"),
}


@pytest.mark.parametrize(
    ("name", "wing"), [(name, "torch" if i % 2 else "jax") for i, name in enumerate(FAULTS)]
)
def test_a_fault_of_xpos_or_head_norms_is_named(name, wing, monkeypatch):
    fault, choices, cause, words = FAULTS[name]
    sizes = {"num_tokens": 37, "dim": 24, "depth": 2, "heads": 3, "dim_head": 8, "positions": "xpos"}
    config = palm.PaLMConfig(**sizes, **choices).resolve("torch")
    weights, tokens = draw_weights(config, 3, "float32"), draw_tokens(config, 2, 60)
    sides = [palm.from_numpy(config, weights, backend=backend) for backend in ("torch", "jax")]
    jax.clear_caches()  # what is compiled already would not see the patch
    fault(wing, monkeypatch)
    found = palm.compare(*sides, tokens)
    jax.clear_caches()
    first = found.diagnoses[0]
    assert (first.side, first.cause) == (wing, cause), first.sentence
    assert first.taps[0].startswith("blocks.0.")
    assert words in first.sentence

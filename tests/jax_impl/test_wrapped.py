"""What users make of a JAX model, by what palm answers: what the forward pass computes, or a refusal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw_tokens, draw_weights, small

import palm
from palm import PalmError
from palm.jax_impl import Linear, Norm, PaLM

CONFIG = small(depth=1)
TOKENS = draw_tokens(CONFIG, 2, 5)
ADD = dataclasses.replace(CONFIG, norm_eps_mode="add", norm_eps=0.5)


def plain() -> PaLM:
    return palm.from_numpy(CONFIG, draw_weights(CONFIG, dtype="float32"), backend="jax")


class Own(PaLM):
    """A user's model with another forward pass."""

    def __call__(self, tokens: jax.Array, **options: Any) -> jax.Array:
        return 2 * super().__call__(tokens, **options)


class Longer(PaLM):
    """A user's model with one more method."""

    def parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self))


class Scale(eqx.Module):
    """A user's feed-forward."""

    weight: jax.Array

    def __call__(self, y: jax.Array, tap: Any = None) -> jax.Array:
        return y * self.weight


def subclass(kind: type[PaLM]) -> Callable[[PaLM], PaLM]:
    def way(model: PaLM) -> PaLM:
        hollow = eqx.filter_eval_shape(lambda: kind(CONFIG, key=jax.random.key(0)))
        return jax.tree.unflatten(jax.tree.structure(hollow), jax.tree.leaves(model))

    way.__name__ = kind.__name__
    return way


def other_norm(model: PaLM) -> PaLM:
    return eqx.tree_at(lambda m: m.norm, model, Norm(ADD))


def other_block_norm(model: PaLM) -> PaLM:
    norm = eqx.tree_at(lambda n: n.weight, Norm(ADD), model.blocks.norm.weight)
    return eqx.tree_at(lambda m: m.blocks.norm, model, norm)


def with_an_output_layer(model: PaLM) -> PaLM:
    output = Linear(CONFIG.dim, CONFIG.num_tokens, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.unembedding, model, output, is_leaf=lambda x: x is None)


def other_feedforward(model: PaLM) -> PaLM:
    return eqx.tree_at(lambda m: m.blocks.feedforward, model, Scale(jnp.ones((CONFIG.depth, CONFIG.dim))))


def hollow(model: PaLM) -> PaLM:
    return eqx.filter_eval_shape(lambda: model)


def broadcast(model: PaLM) -> PaLM:
    return eqx.tree_at(lambda m: m.norm.weight, model, jnp.full(1, 3.0))


def without_a_weight(model: PaLM) -> PaLM:
    return eqx.tree_at(lambda m: m.norm.weight, model, None)


def logits_of(model: PaLM) -> np.ndarray:
    return np.asarray(model(TOKENS))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


def to_numpy(model: PaLM, path: Path) -> None:
    assert same(logits_of(palm.from_numpy(CONFIG, palm.to_numpy(model), backend="jax")), logits_of(model))


def save(model: PaLM, path: Path) -> None:
    loaded = palm.load(palm.save(model, path / "saved"), backend="jax")
    assert same(logits_of(loaded), logits_of(model))


def convert(model: PaLM, path: Path) -> None:
    assert same(logits_of(palm.convert(model, backend="jax")), logits_of(model))


def generate(model: PaLM, path: Path) -> None:
    found = palm.generate(model, TOKENS[0], max_new_tokens=1, temperature=0.0)
    assert found.tokens.tolist() == [logits_of(model)[0, -1].argmax()]


def activations(model: PaLM, path: Path) -> None:
    assert same(palm.activations(model, TOKENS)["logits"], logits_of(model))


def value_and_grad(model: PaLM, path: Path) -> None:
    loss, _ = palm.value_and_grad(model, TOKENS)
    log_p = jax.nn.log_softmax(logits_of(model))[:, :-1]
    expected = -np.take_along_axis(np.asarray(log_p), TOKENS[:, 1:, None], -1).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def compare(model: PaLM, path: Path) -> None:
    found = palm.compare(model, plain(), TOKENS)
    assert same(found.recordings[0].taps["logits"], logits_of(model))
    assert found.agree == same(logits_of(model), logits_of(plain()))


DOORS = (to_numpy, save, convert, generate, activations, value_and_grad, compare)
ALL = frozenset(DOORS)
RUN = frozenset({activations, value_and_grad, compare})
NONE: frozenset[Callable[..., None]] = frozenset()
# Of each way: by which functions palm answers for what the forward pass computes, and what the others say.
WAYS: dict[Callable[[PaLM], PaLM], tuple[frozenset[Callable[..., None]], str]] = {
    subclass(Longer): (ALL, ""),
    subclass(Own): (frozenset({value_and_grad}), "call the model itself"),
    other_norm: (RUN, "Build the module from model.config"),
    other_block_norm: (RUN, "Build the module from model.config"),
    with_an_output_layer: (RUN, "Set it to None"),
    other_feedforward: (NONE, "Put palm's module back"),
    hollow: (NONE, "Put arrays in the model's leaves"),
    broadcast: (frozenset({activations}), "Check that config and weights belong together"),
    without_a_weight: (NONE, "Put arrays in the model's leaves"),
}
CELLS = [(way, door) for way in WAYS for door in DOORS]


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("way", "door"), CELLS, ids=lambda part: part.__name__)
def test_palm_answers_for_what_the_forward_pass_computes_or_says_what_to_call(way, door, tmp_path):
    answered, fix = WAYS[way]
    model = way(plain())
    if door in answered:
        door(model, tmp_path)
        return
    with pytest.raises(PalmError) as raised:
        door(model, tmp_path)
    assert fix in str(raised.value)
    assert "; got " in str(raised.value)


def test_another_number_of_heads_is_another_function():
    attention = palm.build(small(depth=1, heads=6, dim_head=2), backend="jax").blocks.attention
    own = jax.tree.leaves(plain().blocks.attention)
    attention = jax.tree.unflatten(jax.tree.structure(attention), own)
    model = eqx.tree_at(lambda m: m.blocks.attention, plain(), attention)
    for door in (convert, generate):
        with pytest.raises(PalmError, match=r"blocks\.attention with heads=6, not 3"):
            door(model, Path())


@pytest.mark.parametrize("way", [subclass(Own), other_norm, with_an_output_layer, other_feedforward])
def test_a_way_that_nothing_was_done_about_would_be_another_function(way):
    assert not same(logits_of(way(plain())), logits_of(plain()))

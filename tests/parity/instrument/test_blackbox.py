"""Models that are not palm's, of which only logits are seen: the mistake in each is named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from cases import assert_explains, draw_tokens, draw_weights
from ports import ALIBI, PORTS, ROTARY, in_jax, in_numpy, in_torch

import palm
from palm.parity.blackbox.compare import compare_foreign
from palm.parity.blackbox.result import ForeignComparison

MISTAKES = {
    (in_numpy, "layout"): "rotary layout",
    (in_numpy, "mean"): "mean subtraction",
    (in_numpy, "eps"): "eps",
    (in_numpy, "mask"): "mask",
    (in_numpy, "scale"): "query scale",
    (in_torch, "slopes"): "ALiBi slopes",
    (in_torch, "sign"): "ALiBi sign",
    (in_torch, "gate"): "up/gate swapped",
    (in_torch, "logits"): "logit scale",
    (in_jax, "theta"): "rotary θ",
    (in_jax, "order"): "q/k/v order",
    (in_jax, "transposed"): "transposed matrix",
}


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Lines that `pytest -s` shows in the end."""
    lines: list[str] = []
    yield lines
    print("\n" + "\n".join(lines))


def compared(
    port: Any, mistake: str = "", *, length: int = 48, ids: Any = None, compare: Any = palm.compare
) -> ForeignComparison:
    cfg = PORTS[port]
    weights = draw_weights(cfg, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def my_port(ids: np.ndarray) -> Any:
        return port(cfg, weights, ids, mistake)

    return compare(my_port, model, draw_tokens(cfg, 2, length) if ids is None else ids)


@pytest.mark.parametrize("port", PORTS)
def test_a_right_port_agrees(port):
    found = compared(port)
    assert found.agree
    assert found.first_divergence is None
    assert found.likenesses == ()
    assert found.verdict.startswith("my_port and palm agree")
    assert found.traced == (port is not in_numpy)  # which loops over elements


@pytest.mark.parametrize(("case", "cause"), MISTAKES.items(), ids=lambda x: x if isinstance(x, str) else x[1])
def test_the_mistake_of_a_port_is_named_from_its_logits_alone(case, cause, table):
    found = compared(*case, compare=compare_foreign)
    table.append(f"{case[0].__name__:10s} {case[1]:12s} {found.before:8.1e} -> {found.verdict}")
    assert not found.agree
    assert found.first_divergence == "logits"
    assert found.likenesses[0].cause == cause, found.verdict
    assert found.likenesses[0].after <= found.bound < found.before
    assert f"behaves like this model, but {found.likenesses[0].detail} (cause: {cause}; " in found.verdict


@pytest.mark.parametrize("case", [(in_numpy, "scale"), (in_torch, "gate")], ids=lambda case: case[1])
def test_the_lines_of_a_port_change_nothing_of_what_its_logits_say(case):
    alone, traced = (compared(*case, compare=how).to_dict() for how in (compare_foreign, palm.compare))
    lines = {"traced": case[0] is in_torch, "divergences": traced["divergences"]}
    assert traced == {**alone, **lines}
    assert bool(traced["divergences"]) == lines["traced"]


@pytest.mark.parametrize("mistake", ["layout", "mask", "scale"])
def test_one_repeated_id_hides_mistakes_in_attention_and_the_verdict_says_so(mistake):
    blind, seeing = (compared(in_numpy, mistake, ids=ids) for ids in ([[7] * 40, [8] * 40], [7, 8] * 20))
    assert blind.agree
    assert "Each sequence repeats one id: mistakes in positions" in blind.verdict
    assert not seeing.agree
    assert "repeats one id" not in compared(in_numpy, ids=[7, 8] * 20).verdict


def test_two_mistakes_are_named_together():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    found = palm.compare(
        lambda ids: cfg.dim**-0.5 * in_numpy(cfg, weights, ids, "layout"), model, draw_tokens(cfg, 48)
    )
    assert set(found.likenesses[0].cause.split(" and ")) == {"rotary layout", "logit scale"}


def test_a_mistake_that_nobody_knows_is_said_to_be_unknown():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="jax")
    found = palm.compare(lambda ids: np.abs(in_numpy(cfg, weights, ids)), model, draw_tokens(cfg, 40))
    assert not found.agree
    assert found.likenesses == ()
    assert "none of the" in found.verdict
    assert found.tried > 500


def test_other_weights_are_no_known_mistake():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, draw_weights(cfg, 6, "float32"), backend="torch")
    assert palm.compare(lambda ids: in_numpy(cfg, weights, ids), model, draw_tokens(cfg, 40)).likenesses == ()


def test_logits_of_each_type_are_held_to_their_own_rounding():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    tokens = draw_tokens(cfg, 40)
    exact = palm.compare(
        lambda ids: in_numpy(cfg, {k: v.astype(float) for k, v in weights.items()}, ids), model, tokens
    )
    rough = palm.compare(lambda ids: in_numpy(cfg, weights, ids).astype(ml_dtypes.bfloat16), model, tokens)
    assert (exact.agree, exact.dtype, rough.agree, rough.dtype) == (True, "float64", True, "bfloat16")
    assert exact.bound < 1e-12
    assert rough.bound > 1e-3


@pytest.mark.parametrize("factor", [1.0, ROTARY.logit_scale])
def test_logits_of_a_lower_type_than_they_are_returned_in_are_held_to_that(factor):
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")
    rough = palm.convert(model, backend="torch", dtype="bfloat16")

    def port(ids: np.ndarray) -> torch.Tensor:
        return (rough(torch.as_tensor(ids)) / factor).float() * factor

    found = palm.compare(port, rough, draw_tokens(cfg, 40))
    assert (found.agree, found.dtype) == (True, "bfloat16")
    found = compare_foreign(lambda ids: port(ids) * 1.0001, rough, draw_tokens(cfg, 40))
    assert (found.agree, found.dtype, found.rounding_of) == (False, "float32", "bfloat16")
    assert "Rounding in bfloat16 would be as large: if your function computes in bfloat16" in found.verdict


@pytest.mark.parametrize(
    ("own", "low"), [("float32", "float16"), ("bfloat16", "float16"), ("float32", "bfloat16")]
)
def test_a_port_whose_dtype_cannot_hold_the_weights_is_judged_by_its_logits(own, low):
    cfg = ROTARY
    model = palm.from_numpy(cfg, draw_weights(cfg, 5, own), backend="torch")
    found = palm.compare(lowered(model, low), model, draw_tokens(cfg, 40))
    assert (found.agree, found.dtype, found.traced) == (True, low, False), found.verdict
    assert found.divergences == ()


@pytest.mark.parametrize("number", [1.0, 1.001])
def test_a_number_that_bfloat16_may_have_rounded_is_no_other_function(number):
    found = in_bfloat16(number)
    assert (found.agree, found.traced) == (True, True), found.verdict


def test_a_port_in_the_dtype_of_the_weights_is_judged_in_float64_too():
    found = in_bfloat16(1.006)
    assert found.before < found.bound  # rounding would hide it
    assert (found.outcome, found.divergences[0].cause) == ("differ", "times 1.006")


@pytest.mark.parametrize("factor", [1.0, 1.05])
def test_logits_that_were_computed_out_of_sight_are_judged_by_themselves(factor):
    cfg = ROTARY
    model = palm.from_numpy(cfg, draw_weights(cfg, 5, "bfloat16"), backend="torch")
    ids = draw_tokens(cfg, 40)
    logits = (lowered(model, "bfloat16", factor)(torch.as_tensor(ids))).detach().view(torch.int16).numpy()
    found = palm.compare(lambda _: logits.view(ml_dtypes.bfloat16), model, ids)
    assert (found.agree, found.traced) == (factor == 1.0, False), found.verdict


def in_bfloat16(factor: float) -> ForeignComparison:
    cfg = ROTARY
    model = palm.from_numpy(cfg, draw_weights(cfg, 5, "bfloat16"), backend="torch")
    return palm.compare(lowered(model, "bfloat16", factor), model, draw_tokens(cfg, 40))


def test_a_right_jax_port_in_bfloat16_rounds_its_numbers():
    cfg = ALIBI
    weights = draw_weights(cfg, 5, "bfloat16")
    inner = palm.from_numpy(cfg, weights, backend="jax")

    def port(ids: np.ndarray) -> jax.Array:
        hidden = jnp.asarray(inner(jnp.asarray(ids)) * jnp.float32(1 / cfg.logit_scale), jnp.bfloat16)
        return hidden * cfg.logit_scale  # a number of bfloat16, rounded from dim^-1/2

    found = palm.compare(port, palm.from_numpy(cfg, weights, backend="torch"), draw_tokens(cfg, 40))
    assert (found.agree, found.traced) == (True, True), found.verdict
    assert found.divergences == ()  # the number counts as the one it was rounded from


def lowered(model: Any, dtype: str, factor: float = 1.0) -> Any:
    """A port that computes in `dtype` with the model's weights."""
    copied = copy.deepcopy(model).to(getattr(torch, dtype))

    def port(ids: np.ndarray) -> torch.Tensor:
        return copied(torch.as_tensor(ids)) * factor

    return port


def test_what_is_given_as_a_list_is_held_to_the_type_of_the_model():
    cfg = ROTARY
    model = palm.from_numpy(cfg, draw_weights(cfg, 5, "float32"), backend="torch")
    listed = palm.compare(lambda ids: model(torch.as_tensor(ids)).tolist(), model, draw_tokens(cfg, 40))
    assert listed.agree


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_logits_that_are_not_finite_have_no_likeness(bad):
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        logits = in_numpy(cfg, weights, ids)
        logits[..., -2:] = bad
        return logits

    found = palm.compare(port, model, draw_tokens(cfg, 40))
    assert (found.agree, found.likenesses, found.not_finite) == (False, (), 80)
    assert "80 of its logits are not finite" in found.verdict


def test_a_port_that_changes_its_ids_is_judged_by_those_it_was_given():
    cfg, weights = ROTARY, draw_weights(ROTARY, 5, "float32")
    model = palm.from_numpy(cfg, weights, backend="torch")

    def port(ids: np.ndarray) -> np.ndarray:
        ids[...] = ids[..., ::-1].copy()
        return in_numpy(cfg, weights, ids)

    found = palm.compare(port, model, draw_tokens(cfg, 30))
    assert [one.cause for one in found.likenesses] == ["tokens"]


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda ids: ids, ("must give logits of shape (40, 37)", "got int64[40]")),
        (lambda ids: np.zeros((40, 36)), ("must give logits of shape (40, 37)", "got float64[40, 36]")),
        (
            lambda ids: 1 / 0,
            ("must give logits for an int64 array of ids", "raised ZeroDivisionError", "Wrap it"),
        ),
    ],
)
def test_what_is_no_port_is_refused(function, parts):
    model = palm.build(ROTARY, backend="torch")
    with pytest.raises(palm.ProbeError) as raised:
        palm.compare(function, model, draw_tokens(ROTARY, 40))
    assert_explains(raised, *parts)

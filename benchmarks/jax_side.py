"""The jobs of the JAX sides: palm's JAX wing, and the JAX original under jit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax_limits
import numpy as np
import optax
from job import (
    BETAS,
    EPS,
    LEARNING_RATE,
    NEW_TOKENS,
    WEIGHT_DECAY,
    check_size,
    config_of,
    greedy,
    prompt,
    recipe_of,
    timed,
    windows,
)

import palm
from palm.jax_impl import Decoder, Trainer

Job = dict[str, Any]


def device_name() -> str:
    return jax.devices()[0].device_kind


def peak_bytes() -> int | None:
    """The most memory of the accelerator so far; None where the process's own is what counts."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]


def prepare(spec: dict[str, Any]) -> Job:
    """`run`, which does the job once, and the number of `parameters`."""
    if spec["job"] == "device":
        return {"run": dict}
    if spec["job"] == "limits":
        return {"run": jax_limits.prepare(spec)}
    jobs = PALM if spec["model"] == "palm" else ORIGINAL
    return jobs[spec["job"]](spec)


def _palm(spec: dict[str, Any], dtype: str) -> Any:
    own = {"attention": spec["attention"]} if spec.get("attention") else {}
    return palm.build(config_of(spec), backend="jax", dtype=dtype, device=jax.devices()[0], **own)


def _job(weights: Any, run: Callable[[], dict[str, Any]]) -> Job:
    return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)), "run": run}


def _palm_training(spec: dict[str, Any]) -> Job:
    trainer, data = Trainer(_palm(spec, "float32"), recipe_of(spec)), windows(spec)
    step = 0

    def run() -> dict[str, Any]:
        nonlocal step
        step += 1
        batch, rates = next(data), trainer.recipe.rates(step)
        seconds, outcome = timed(
            lambda: trainer.step(batch, rates), lambda _: jax.block_until_ready(trainer.model)
        )
        return {"seconds": seconds, "loss": outcome.loss}

    return _job(trainer.model, run)


def _palm_compile(spec: dict[str, Any]) -> Job:
    """A training step traced and compiled from nothing: the first step's time less the second's."""
    model, recipe, batch = _palm(spec, "float32"), recipe_of(spec), next(windows(spec))

    def run() -> dict[str, Any]:
        jax.clear_caches()
        trainer = Trainer(model, recipe)
        first, second = (
            timed(lambda k=k: trainer.step(batch, recipe.rates(k)), lambda _: None)[0] for k in (1, 2)
        )
        return {"seconds": first - second}

    return _job(model, run)


def _palm_forward(spec: dict[str, Any]) -> Job:
    model, data = _palm(spec, spec["precision"]), windows(spec)

    def run() -> dict[str, Any]:
        tokens = jnp.asarray(next(data)[:, :-1], jnp.int32)
        return {"seconds": timed(lambda: model(tokens), jax.block_until_ready)[0]}

    return _job(model, run)


def _palm_prefill(spec: dict[str, Any]) -> Job:
    model, (tokens, size) = _palm(spec, spec["precision"]), prompt(spec)
    lengths = np.full(len(tokens), tokens.shape[1])
    work = lambda: Decoder(model, tokens, lengths, size).logits  # noqa: E731
    return _job(model, lambda: {"seconds": timed(work, jax.block_until_ready)[0]})


def _palm_decode(spec: dict[str, Any]) -> Job:
    model, (tokens, size) = _palm(spec, spec["precision"]), prompt(spec)
    lengths = np.full(len(tokens), tokens.shape[1])

    def run() -> dict[str, Any]:
        decoder = Decoder(model, tokens, lengths, size)
        jax.block_until_ready(decoder.logits)
        wait = lambda _: jax.block_until_ready(decoder.logits)  # noqa: E731
        return {"seconds": timed(lambda: greedy(decoder), wait)[0] / NEW_TOKENS}

    return _job(model, run)


def _original(spec: dict[str, Any]) -> tuple[list[jax.Array], Callable[..., jax.Array]]:
    """The original's weights, and its forward pass of (weights, tokens).

    Its structure holds an array, which jit's cache cannot compare: only the weights go through jit, and the
    forward pass without its own.
    """
    config = config_of(spec)
    fields = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from palm_jax.palm import PaLM  # noqa: PLC0415 - it warns of itself

        model = PaLM(**{field: getattr(config, field) for field in fields}, key=jax.random.PRNGKey(0))
    weights, structure = jax.tree.flatten(model)
    check_size(spec, sum(leaf.size for leaf in weights))
    forward = type(model).__call__.__wrapped__
    return weights, lambda weights, tokens: forward(jax.tree.unflatten(structure, weights), tokens)


def _original_training(spec: dict[str, Any]) -> Job:
    weights, forward = _original(spec)
    data = windows(spec)
    optimizer = optax.adamw(LEARNING_RATE, *BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)

    def loss_of(weights: list[jax.Array], tokens: jax.Array) -> jax.Array:
        logits = forward(weights, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def update(weights: list[jax.Array], state: Any, tokens: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_of)(weights, tokens)
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, loss

    update = jax.jit(update, donate_argnums=(0, 1))
    state = optimizer.init(weights)

    def run() -> dict[str, Any]:
        nonlocal weights, state
        tokens = next(data).astype(np.int32)
        seconds, (weights, state, loss) = timed(lambda: update(weights, state, tokens), jax.block_until_ready)
        return {"seconds": seconds, "loss": float(loss)}

    return _job(weights, run)


def _original_forward(spec: dict[str, Any]) -> Job:
    """Logits of all tokens. It has no cache: a prompt, or one new token, is a whole forward pass, too."""
    weights, forward = _original(spec)
    forward, data = jax.jit(forward), windows(spec)

    def run() -> dict[str, Any]:
        tokens = next(data)[:, :-1].astype(np.int32)
        return {"seconds": timed(lambda: forward(weights, tokens), jax.block_until_ready)[0]}

    return _job(weights, run)


PALM = {
    "training": _palm_training,
    "compile": _palm_compile,
    "forward": _palm_forward,
    "prefill": _palm_prefill,
    "decode": _palm_decode,
}
ORIGINAL = {
    "training": _original_training,
    "forward": _original_forward,
    "prefill": _original_forward,
    "decode": _original_forward,
}

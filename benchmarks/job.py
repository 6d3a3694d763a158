"""What both frameworks' sides share: the data, the recipe, the prompt, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import palm

LEARNING_RATE, WEIGHT_DECAY, BETAS, EPS = 2e-4, 0.1, (0.9, 0.99), 1e-8
# Peers are sized to palm's number of parameters.
TOLERANCE = 0.02
# New tokens of a decoding job, timed together: one alone takes milliseconds.
NEW_TOKENS = 32
# As palm.generate does it: room in whole blocks.
BLOCK = 64


def config_of(spec: dict[str, Any]) -> palm.PaLMConfig:
    return palm.PaLMConfig.from_dict(spec["config"])


def recipe_of(spec: dict[str, Any]) -> palm.Recipe:
    """AdamW as every side has it."""
    return palm.recipe(
        "adamw",
        **{"schedule": "constant", "warmup": 0, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
        **{"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "z_loss": 0.0},
        **{"length": spec["length"], "batch": spec["batch"], "precision": spec["precision"]},
        remat=spec.get("remat", False),
    )


def windows(spec: dict[str, Any]) -> Iterator[np.ndarray]:
    """Random tokens (batch, length + 1), new ones each time and the same for every side."""
    draws = np.random.default_rng(0)
    while True:
        yield draws.integers(0, spec["config"]["num_tokens"], (spec["batch"], spec["length"] + 1))


def prompt(spec: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Prompts (batch, p), and room for them and `NEW_TOKENS`.

    A prompt has `length` tokens; to decode, fewer, so that half of the new ones come before that length.
    """
    size = max(1, spec["length"] - (NEW_TOKENS // 2 if spec["job"] == "decode" else 0))
    tokens = np.random.default_rng(0).integers(0, spec["config"]["num_tokens"], (spec["batch"], size))
    return tokens, -(-(size + NEW_TOKENS) // BLOCK) * BLOCK


def check_size(spec: dict[str, Any], parameters: int) -> None:
    """Raise `ValueError` unless a peer is as large as palm's model."""
    own = sum(p.size for p in palm.spec.parameters.parameters(config_of(spec)).values())
    if abs(parameters / own - 1) > TOLERANCE:
        raise ValueError(f"{spec['model']} must have within 2 % of {own:,} parameters; got {parameters:,}.")


def timed(work: Callable[[], Any], wait: Callable[[Any], Any]) -> tuple[float, Any]:
    """Seconds until `wait` has seen the result, and the result."""
    start = time.perf_counter()
    result = work()
    wait(result)
    return time.perf_counter() - start, result


def greedy(decoder: Any) -> None:
    """The likeliest token of a palm `Decoder`, `NEW_TOKENS` times, as palm.generate takes them."""
    noise, sampling = np.zeros(decoder.logits.shape), palm.spec.sampling.Sampling(temperature=0)
    for _ in range(NEW_TOKENS):
        decoder.next(noise, sampling)

"""Trains the published originals, unmodified, as their own scripts do, for learning comparisons.

The scripts' recipe: bytes, plain next-byte cross entropy in float32, Adam at a constant 2e-4, gradients
clipped to a global norm of 0.5, no decay, no warm-up. Their packages, PaLM-pytorch 0.2.2 and PaLM-jax 0.1.2,
must be installed, and optax.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from types import ModuleType

import jax
import numpy as np
import optax
import torch

SOURCES = ("palm_pytorch.palm_lite", "palm_jax.palm")
LEARNING_RATE = 2e-4
LARGEST_NORM = 0.5


def train_original(
    source: str,
    windows: Iterator[np.ndarray],
    validation: np.ndarray,
    *,
    steps: int,
    dim: int,
    depth: int,
    heads: int,
    dim_head: int,
    batch: int,
    length: int,
    seed: int,
    accumulate: int = 1,
) -> float:
    """Train on `steps` batches; return the mean bits per byte over all validation windows.

    Windows are int64 of shape (batch, length + 1), validation windows (any number, length + 1). With
    `accumulate` each batch is given in that many equal parts, as the scripts give theirs in 4, and each
    framework makes one update of them in its script's own way: torch adds up the gradients and clips the
    sum; JAX clips each part, makes an Adam step of each, and applies the sum of the steps.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}; got source={source!r}. Choose one.")
    if batch % accumulate:
        raise ValueError(f"accumulate must divide batch={batch}; got accumulate={accumulate}. Change one.")
    sizes = {"num_tokens": 256, "dim": dim, "depth": depth, "heads": heads, "dim_head": dim_head}
    original = (Torch if source.startswith("palm_pytorch") else Jax)(source, sizes, seed, accumulate)
    for _ in range(steps):
        tokens = next(windows)
        _check("windows", tokens.shape, (batch, length + 1))
        original.step(np.split(tokens, accumulate))
    _check("validation", validation.shape, (max(len(validation), 1), length + 1))
    # Every window has as many bytes, but the last batch may have fewer windows.
    batches = [validation[start : start + batch] for start in range(0, len(validation), batch)]
    nats = math.fsum(original.loss(tokens) * len(tokens) for tokens in batches) / len(validation)
    return nats / math.log(2)


def _check(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"{name} must have the shape {expected}; got {got}. Cut them anew.")


def _module(source: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*static_field` is deprecated", UserWarning)
        return importlib.import_module(source)


class Torch:
    """`palm_pytorch.palm_lite` and its optimizer."""

    def __init__(self, source: str, sizes: dict[str, int], seed: int, accumulate: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _module(source).PaLM(**sizes)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def _loss(self, tokens: np.ndarray) -> torch.Tensor:
        tokens = torch.from_numpy(tokens)
        logits = self.model(tokens[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def step(self, parts: list[np.ndarray]) -> None:
        self.optimizer.zero_grad()
        for tokens in parts:
            self._loss(tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimizer.step()

    def loss(self, tokens: np.ndarray) -> float:
        with torch.no_grad():
            return self._loss(tokens).item()


class Jax:
    """`palm_jax.palm` and its optimizer."""

    def __init__(self, source: str, sizes: dict[str, int], seed: int, accumulate: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A JAX array is being set as static", UserWarning)
            model = _module(source).PaLM(**sizes, key=jax.random.PRNGKey(seed))
        optimizer = optax.chain(
            optax.clip_by_global_norm(LARGEST_NORM),
            optax.adam(LEARNING_RATE),
            optax.apply_every(accumulate),
        )
        # The model's structure holds an array, which jit's cache cannot compare: only its weights go through
        # jit, and its forward pass without its own.
        self.weights, structure = jax.tree.flatten(model)
        self.state = optimizer.init(self.weights)
        forward = type(model).__call__.__wrapped__

        def loss(weights, tokens):
            logits = forward(jax.tree.unflatten(structure, weights), tokens[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        def step(weights, state, tokens):
            updates, state = optimizer.update(jax.grad(loss)(weights, tokens), state)
            return optax.apply_updates(weights, updates), state

        self._loss, self._step = jax.jit(loss), jax.jit(step, donate_argnums=(0, 1))

    def step(self, parts: list[np.ndarray]) -> None:
        for tokens in parts:
            self.weights, self.state = self._step(self.weights, self.state, tokens.astype(np.int32))

    def loss(self, tokens: np.ndarray) -> float:
        return float(self._loss(self.weights, tokens.astype(np.int32)))

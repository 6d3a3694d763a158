"""What the tests of several folders share, without a framework: small configs, weights, and subprocesses."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from palm import PaLMConfig
from palm.spec.initial import Draw, initial_value
from palm.spec.parameters import numpy_dtype, parameters

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "jax", "equinox")
DTYPES = ("float64", "float32", "bfloat16")

# Sizes that differ pairwise, so that no two axes can be mistaken for each other.
SIZES: dict[str, int] = {"num_tokens": 13, "dim": 6, "depth": 2, "heads": 3, "dim_head": 4, "ff_mult": 3}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "positions": ("alibi", "rotary"),
    "norm": ("rmsnorm", "layernorm"),
    "norm_eps_mode": ("clamp", "add"),
    "share_kv": (True, False),
    "tie_embeddings": (True, False),
    "init": ("paper", "reference"),
}
# Every architecture of the four originals' choices; and xPos and norms of queries and keys, with each of the
# choices that they meet: whose vector is normed or stretched (`share_kv`), and what else knows positions.
ARCHITECTURES = [
    {**dict(zip(_CHOICES, values, strict=True)), "qk_norm": False}
    for values in itertools.product(*_CHOICES.values())
]
ARCHITECTURES += [
    {**ARCHITECTURES[i], "positions": positions, "share_kv": shared, "qk_norm": normed}
    for i, (positions, shared, normed) in enumerate(
        (positions, shared, normed)
        for positions in ("xpos", "rotary", "alibi")
        for shared in (True, False)
        for normed in (True, False)
        if positions == "xpos" or normed
    )
]


def small(**changes: Any) -> PaLMConfig:
    """A resolved config of a few hundred parameters: what torch's original computes, but for `changes`."""
    return PaLMConfig(**{**SIZES, **changes}).resolve("torch")


def architecture_id(choices: dict[str, Any]) -> str:
    shared = "shared" if choices["share_kv"] else "separate"
    tied = "tied" if choices["tie_embeddings"] else "untied"
    names = (choices["positions"], choices["norm"], choices["norm_eps_mode"], shared, tied, choices["init"])
    return "-".join(names) + ("-qk_norm" if choices["qk_norm"] else "")


def draw_weights(
    config: PaLMConfig, seed: int = 0, dtype: str = "float64", draw: Draw = "whole"
) -> dict[str, np.ndarray]:
    """Initial weights with norm scales drawn around one: a fresh model's ones hide a forgotten scale.

    By default drawn as in version 0.1.0: with these weights the figures of tests were found.
    """
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 1.5, parameter.shape).astype(numpy_dtype(dtype))
        if parameter.std is None
        else initial_value(parameter, seed, dtype, draw)
        for name, parameter in parameters(config).items()
    }


def draw_tokens(config: PaLMConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.num_tokens, shape)


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name, array in a.items():
        assert (array.dtype, array.shape) == (b[name].dtype, b[name].shape), name
        assert array.tobytes() == b[name].tobytes(), name


def assert_explains(raised: Any, *parts: str) -> None:
    """An error message names the field, the value received and the fix: `parts`, in this order."""
    rest = str(raised.value)
    for part in parts:
        _, found, rest = rest.partition(part)
        assert found, f"{part!r} is not in, or not in its place in: {raised.value}"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The block takes no more of this process's own time, however busy the machine is."""
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds


def ask_to_stop(signal: int) -> None:
    """Signal this process as a user does: its main thread takes it, which need not be the one that asks."""
    os.kill(os.getpid(), signal)
    time.sleep(0.2)


def python(code: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def python_path(*folders: Path | str) -> str:
    """PYTHONPATH for a Python that finds modules in `folders` first: palm may itself come from it."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH", "")]))

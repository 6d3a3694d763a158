"""Draw a trial: a config, weights, tokens, a wing, a place and a fault that is really there; run it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import draw_tokens, draw_weights
from faults import wrong_norms, wrong_parts, wrong_rotary, wrong_scores
from faults.inject import Fault, injected
from faults.kinds import KINDS, Kind

import palm
from palm.backends import backend_of, wing_of
from palm.parity.recording.recording import Recording
from palm.parity.result import Comparison
from palm.spec import backward, forward
from palm.spec.rounding import rms, rounding_bound

WINGS = ("torch", "jax")
# Importing them enters their kinds.
SOURCES = (wrong_rotary, wrong_scores, wrong_norms, wrong_parts)
# A fault that moves its tap by less than so many times what rounding may is none to speak of: what the
# smallest one is that can be seen, benchmarks/sensitivity.py measures.
_THERE = 3.0


@dataclass(frozen=True)
class Planted:
    """A fault, where it shows first, and the names it may be given."""

    kind: Kind
    tap: str
    fault: Fault


def draw_config(rng: np.random.Generator, needs: dict[str, Any]) -> palm.PaLMConfig:
    """Any config of moderate size; `needs` gives a value, or a tuple of them, for some of its fields."""
    dim = int(rng.integers(12, 49))
    choices = {
        "num_tokens": int(rng.integers(20, 61)),
        # With a dim of 10 or 20 an eps added to the sum of squares is another decade added to the mean.
        "dim": dim + (dim % 10 == 0),
        "depth": int(rng.integers(1, 5)),
        "heads": int(rng.integers(1, 9)),
        "dim_head": 2 * int(rng.integers(2, 7)),
        "ff_mult": int(rng.integers(1, 5)),
        "positions": ("alibi", "rotary"),
        "norm": ("rmsnorm", "layernorm"),
        "norm_eps_mode": ("clamp", "add"),
        "norm_eps": (1e-8, 1e-6, 1e-5),
        "share_kv": (True, False),
        "tie_embeddings": (True, False),
        "init": ("paper", "reference"),
        **needs,
    }
    return palm.PaLMConfig(
        **{name: x[rng.integers(len(x))] if isinstance(x, tuple) else x for name, x in choices.items()}
    )


def plant(rng: np.random.Generator, kind: Kind, config: palm.PaLMConfig, layer: int) -> Planted:
    """One of a kind, in block `layer` unless it is everywhere."""
    tap, wrong = kind.draw(rng, config)
    where = None if kind.everywhere else layer
    if tap not in ("embed", "logits", ""):
        tap = f"blocks.{0 if where is None else where}.{tap}"
    if kind.piece == "norm" and where == config.depth:
        tap = "norm"
    return Planted(kind, tap, Fault(kind.piece, where, wrong))


def draw_layer(rng: np.random.Generator, kind: Kind, config: palm.PaLMConfig) -> int:
    return int(rng.integers(config.depth + (kind.piece == "norm")))


def run(
    config: palm.PaLMConfig,
    weights: dict[str, dict[str, np.ndarray]],
    ids: np.ndarray,
    wing: str,
    *faults: Fault,
) -> Comparison:
    """Record both wings, one of them with faults, and compare them."""
    sides = {}
    for side in WINGS:
        with ExitStack() as stack:
            if side == wing:
                stack.enter_context(injected(wing, *faults))
            sides[side] = taps_of(palm.from_numpy(config, weights[side], backend=side), ids)
    return palm.compare(sides["torch"], sides["jax"])


def taps_of(model: Any, ids: np.ndarray) -> Recording:
    """`palm.compare.record` without gradients, which take longest and of which no diagnosis is made."""
    wing = wing_of(model)
    taps = wing.activations(model, ids)
    with wing.widened(model) as wide:
        exact = wing.activations(wide, ids)
    loss, exact_loss = (
        backward.cross_entropy(given["logits"].astype(float), ids[:, 1:])[0] for given in (taps, exact)
    )
    return Recording(
        label=backend_of(model),
        config=model.config,
        dtype=wing.dtype_of(model),
        tokens=ids,
        weights=palm.to_numpy(model),
        taps=taps,
        grads={},
        loss=loss,
        exact_taps=exact,
        exact_grads={},
        exact_loss=exact_loss,
        environment={},
    )


def is_there(
    planted: Planted, config: palm.PaLMConfig, of: dict[str, Any], ids: np.ndarray, wing: str
) -> bool:
    """Whether the fault alone moves its tap by far more than rounding; in torch, which does not compile."""
    with injected("torch", planted.fault):
        model = palm.from_numpy(config, of[wing], backend="torch")
        moved = palm.activations(model, ids)[planted.tap]
    exact = forward.activations(config, of[WINGS[1 - WINGS.index(wing)]], ids)[planted.tap]
    with np.errstate(invalid="ignore"):
        off = rms(np.asarray(moved, np.float64) - exact) / (rms(exact) or 1.0)
    tap, dtype = planted.tap, palm.backends.dtype_of(model)
    block = int(tap.split(".")[1]) + 1 if tap.startswith("blocks.") else config.depth
    return not off <= _THERE * rounding_bound(config, dtype, ids.shape[-1], block)


def trial(name: str, wing: str, seed: int) -> tuple[Planted, Comparison]:
    """The first draw of a kind in which the fault is there."""
    kind = KINDS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    for _ in range(20):
        config = draw_config(rng, kind.config)
        dtype = "float32" if kind.lossy or rng.random() < 0.6 else "bfloat16"
        weights = draw_weights(config, int(rng.integers(1_000_000)), dtype)
        weights["embedding"] = (weights["embedding"].astype(float) + kind.shift).astype(weights["norm"].dtype)
        ids = draw_tokens(config, 2, kind.length, seed=int(rng.integers(1_000_000)))
        of = {side: dict(weights) for side in WINGS}
        if kind.piece == "weights":
            planted = Planted(kind, kind.draw(rng, config, of[wing]), Fault("", None, lambda *_: None))
        else:
            planted = plant(rng, kind, config, draw_layer(rng, kind, config))
        if not planted.tap or is_there(planted, config, of, ids, wing):
            return planted, run(config, of, ids, wing, planted.fault)
    raise AssertionError(f"no config was drawn in which {name} is a fault")

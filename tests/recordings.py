"""Recordings made of the referee, without a framework: exactly as far apart as a test puts them."""

from collections.abc import Callable

import numpy as np
from cases import draw_tokens, draw_weights, small

from palm import PaLMConfig
from palm.parity.recording.recording import Recording
from palm.spec import backward, forward

CONFIG = small()
TOKENS = draw_tokens(CONFIG, 2, 6)
Arrays = dict[str, np.ndarray]


def side(
    label: str,
    *,
    config: PaLMConfig = CONFIG,
    change: Callable[[Arrays, Arrays], object] = lambda taps, grads: None,
    noise: float = 3e-8,
    loss: float = 0.0,
) -> Recording:
    """A float32 side that computes the referee's function, `change`d, with rounding errors of its own."""
    weights = draw_weights(config, dtype="float32")
    taps = forward.activations(config, weights, TOKENS)
    exact_loss, grads = backward.value_and_grad(config, weights, TOKENS)
    change(taps, grads)
    rng = np.random.default_rng([*label.encode()])

    def rounded(array: np.ndarray) -> np.ndarray:
        return (array * (1 + noise * rng.standard_normal(array.shape))).astype(np.float32)

    return Recording(
        label=label,
        config=config,
        dtype="float32",
        tokens=TOKENS,
        weights=weights,
        taps={name: rounded(tap) for name, tap in taps.items()},
        grads={name: rounded(grad) for name, grad in grads.items()},
        loss=float(rounded(np.array(exact_loss + loss))),
        exact_taps=taps,
        exact_grads=grads,
        exact_loss=exact_loss + loss,
        environment={"numpy": np.__version__},
    )


def scaled(name: str, by: float) -> Callable[[Arrays, Arrays], object]:
    def change(taps: Arrays, grads: Arrays) -> None:
        group = taps if name in taps else grads
        group[name.removeprefix("grad:")] = group[name.removeprefix("grad:")] * by

    return change

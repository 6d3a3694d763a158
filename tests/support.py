"""What the parity tests share: both wings' readings of one thing, and the yardstick that judges them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from cases import draw_weights

import palm
from palm import jax_impl, torch_impl
from palm.spec.parameters import numpy_dtype
from palm.spec.rounding import RATIO_BAR, UNIT_ROUNDOFF, rms, rounding_ratio
from palm.torch_impl.weights import to_array, to_tensor

DTYPES = ("float64", "float32", "bfloat16")
HEADS = (1, 3, 6, 8, 12)
LENGTHS = (1, 2, 127, 300)
TORCH_DEVICE = {"cpu": "cpu", "gpu": "cuda", "tpu": "cpu"}  # torch has no TPU of its own

# A function of one wing's module and one wing's arrays; the wings' names are the same.
Evaluate = Callable[..., Any]


@dataclass(frozen=True)
class Reading:
    """One value in working precision by each wing, and by each wing's own program in float64."""

    torch: np.ndarray
    jax: np.ndarray
    torch_exact: np.ndarray
    jax_exact: np.ndarray

    def faults(self, exact: np.ndarray, dtype: str, roundings: float) -> list[str]:
        """What rounding does not explain. `exact` is the referee's, `roundings` the error allowed in
        units of roundoff; in float64 the bar is 1e-13."""
        scale = rms(exact) or 1.0
        allowed = 1e-13 if dtype == "float64" else roundings * UNIT_ROUNDOFF[dtype]
        found = []
        for name in ("torch", "jax"):
            error = rms(getattr(self, name).astype(np.float64) - exact) / scale
            if not error <= allowed:
                found.append(f"{name} is {error:.2e} from the referee, allowed {allowed:.2e}")
        if dtype != "float64":
            own = [rms(self.torch - self.torch_exact), rms(self.jax - self.jax_exact)]
            cross = rms(self.torch.astype(np.float64) - self.jax.astype(np.float64))
            ratio = rounding_ratio(cross, *own)
            if cross > 1e-14 * scale and not ratio <= RATIO_BAR:
                found.append(f"ratio {ratio:.2f}")
        return found


def read(evaluate: Evaluate, inputs: list[np.ndarray], dtype: str, platform: str) -> Reading:
    """`evaluate(wing, *arrays)` in both wings, on inputs that are first rounded to `dtype`."""
    rounded = [np.asarray(x).astype(numpy_dtype(dtype)) for x in inputs]
    wide = [x.astype(np.float64) for x in rounded]
    with jax.enable_x64(True):
        return Reading(
            _by_torch(evaluate, rounded, platform),
            _by_jax(evaluate, rounded, platform),
            _by_torch(evaluate, wide, platform),
            _by_jax(evaluate, wide, platform),
        )


def widened(inputs: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """The same values as `read` gives the wings, in float64, for the referee."""
    return [np.asarray(x).astype(numpy_dtype(dtype)).astype(np.float64) for x in inputs]


def _by_torch(evaluate: Evaluate, inputs: list[np.ndarray], platform: str) -> np.ndarray:
    with torch.no_grad():
        return to_array(evaluate(torch_impl, *(to_tensor(x).to(TORCH_DEVICE[platform]) for x in inputs)))


def _by_jax(evaluate: Evaluate, inputs: list[np.ndarray], platform: str) -> np.ndarray:
    device = jax.devices(platform)[0]
    arrays = [jax.device_put(x, device) for x in inputs]
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        return np.asarray(evaluate(jax_impl, *arrays))


def namespace(wing: Any) -> Any:
    """torch or jax.numpy: what a wing's own arrays are made with."""
    return torch if wing is torch_impl else jnp


def bias_of(wing: Any, slopes: Any, length: int) -> Any:
    """The position term of every pair of positions, (h, n, n), as the faults of tests change it."""
    where = {"device": slopes.device} if wing is torch_impl else {}
    positions = namespace(wing).arange(length, **where)
    zero = namespace(wing).zeros((), dtype=slopes.dtype, **where)
    return wing.masked_scores(zero, slopes, positions[:, None] - positions).swapaxes(0, 1)


def attend_with_bias(wing: Any, q: Any, k: Any, v: Any, bias: Any) -> Any:
    """The textbook with any term added to the scores, or the mask alone. q is (..., h, n, e) here."""
    xp, widen = namespace(wing), wing.norm.widen
    scores = xp.einsum("...hie,...je->...hij", widen(q) * q.shape[-1] ** -0.5, widen(k))
    if bias is None:
        later = np.triu(np.ones((q.shape[-2],) * 2, bool), 1)
        bias = xp.where(torch.as_tensor(later) if wing is torch_impl else later, -xp.inf, 0.0)
    weights = (scores + bias).softmax(-1) if wing is torch_impl else jax.nn.softmax(scores + bias, -1)
    attended = xp.einsum("...hij,...je->...hie", weights, widen(v))
    return attended.to(q.dtype) if wing is torch_impl else attended.astype(q.dtype)


def path_with_bias(wing: Any, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """An attention path whose ALiBi term, (h, n, n), is changed."""

    def attend(q: Any, k: Any, v: Any, slopes: Any, _segments: Any = None) -> Any:
        bias = change(bias_of(wing, slopes, q.shape[-3]))
        return attend_with_bias(wing, q.swapaxes(-2, -3), k, v, bias).swapaxes(-2, -3)

    return attend


def pair(
    config: palm.PaLMConfig, dtype: str, platform: str, seed: int = 0, **options: Any
) -> tuple[Any, Any]:
    """The same model in both wings, with norm scales away from one so that they can be wrong."""
    weights = draw_weights(config, seed, dtype)
    make = {"dtype": dtype, **options}
    return (
        palm.from_numpy(config, weights, backend="torch", device=TORCH_DEVICE[platform], **make),
        palm.from_numpy(config, weights, backend="jax", device=platform, **make),
    )


def draw_tokens(config: palm.PaLMConfig, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.num_tokens, shape)

"""Wrong mathematics of rotary positions. Letters: n sequence, e dim_head."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from faults.inject import bfloat16, cast, constant, wide
from faults.kinds import kind, log_uniform

ROTARY = {"positions": "rotary"}


def turn(
    lib: Any,
    x: Any,
    config: Any,
    *,
    theta: float | None = None,
    first: int = 0,
    sign: float = 1.0,
    halves: bool = False,
    rough: str = "",
) -> Any:
    """Rotary, or something like it, with the angles formed in float64 here."""
    e = x.shape[-1]
    place = np.arange(first, first + x.shape[-2], dtype=np.float64)
    frequency = np.array([(theta or config.rope_theta) ** (-2 * p / e) for p in range(e // 2)])
    if rough == "frequencies":
        frequency = frequency.astype(ml_dtypes.bfloat16).astype(float)
    angle = constant(lib, sign * place[:, None] * frequency, x)
    if rough == "angles":
        angle = bfloat16(lib, angle)
    cos, sin = lib.cos(angle), lib.sin(angle)
    if rough == "table":
        cos, sin = bfloat16(lib, cos), bfloat16(lib, sin)
    z = wide(x)
    a, b = (z[..., : e // 2], z[..., e // 2 :]) if halves else (z[..., ::2], z[..., 1::2])
    pair = [a * cos - b * sin, b * cos + a * sin]
    turned = lib.concatenate(pair, -1) if halves else lib.stack(pair, -1).reshape(x.shape)
    return cast(turned, x.dtype)


@kind("rotary half-split", "rotary layout", "rotate", config=ROTARY)
def half_split(rng, config):
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, halves=True)


@kind("rotary θ of others", "rotary θ", "rotate", config=ROTARY, everywhere=True)
def known_theta(rng, config):
    theta = float(rng.choice([1e3, 5e4, 5e5, 1e6]))
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, theta=theta)


@kind("rotary θ, any", "rotary θ", "rotate", config=ROTARY)
def any_theta(rng, config):
    theta = log_uniform(rng, 20, 5e3) if rng.random() < 0.5 else log_uniform(rng, 3e4, 1e7)
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, theta=theta)


@kind("rotary backwards", "rotary direction", "rotate", config=ROTARY)
def backwards(rng, config):
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, sign=-1)


@kind("rotary from 1", "rotary offset", "rotate", config=ROTARY)
def from_one(rng, config):
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, first=1)


@kind("rotary missing", "rotary missing", "rotate", config=ROTARY)
def not_turned(rng, config):
    return "q", lambda lib, right, x, cfg: x


@kind("rotary in bfloat16", "positions in bfloat16", "rotate", config=ROTARY, lossy=True)
def rough_rotary(rng, config):
    rough = str(rng.choice(["angles", "frequencies", "table"]))
    return "q", lambda lib, right, x, cfg: turn(lib, x, cfg, rough=rough)

"""Wrong mathematics of norms. Letters: d dim."""

from __future__ import annotations

from typing import Any

from faults.inject import bfloat16, cast, wide
from faults.kinds import UNKNOWN, kind, log_uniform

# Rows whose mean square is near eps: then eps says something.
SMALL = {"init": "reference"}


def normed(
    lib: Any,
    x: Any,
    g: Any,
    cfg: Any,
    *,
    eps: float | None = None,
    how: str = "",
    centred: bool | None = None,
) -> Any:
    z, eps, how = wide(x), cfg.norm_eps if eps is None else eps, how or cfg.norm_eps_mode
    if centred if centred is not None else cfg.norm == "layernorm":
        z = z - z.mean(-1, keepdims=True)
    total = (z * z).sum(-1, keepdims=True)
    d = z.shape[-1]
    root = {
        "add": lambda: lib.sqrt(total / d + eps),
        "clamp": lambda: lib.sqrt((total / d).clip(eps * eps)),
        "sum": lambda: lib.sqrt((total + eps) / d),
        "outside": lambda: lib.sqrt(total / d) + eps,
    }[how]()
    return cast(z / root * wide(g), x.dtype)


@kind("norm eps", "eps", "norm", config={**SMALL, "norm_eps_mode": ("add",)}, everywhere=True)
def eps(rng, config):
    value = log_uniform(rng, 1e-5, 1e-2)
    return "norm", lambda lib, right, x, g, cfg: normed(lib, x, g, cfg, eps=value)


@kind("norm clamp eps", "eps", "norm", config={**SMALL, "norm_eps_mode": ("clamp",)}, everywhere=True)
def clamp_eps(rng, config):
    value = log_uniform(rng, 0.018, 0.05)
    return "norm", lambda lib, right, x, g, cfg: normed(lib, x, g, cfg, eps=value)


@kind("norm eps convention", "eps convention", "norm", config={**SMALL, "norm_eps": (1e-4,)}, everywhere=True)
def convention(rng, config):
    own = config.norm_eps_mode
    how = str(rng.choice(["clamp", "sum", "outside"] if own == "add" else ["add", "sum", "outside"]))
    # What is clamped at 1e-4 or moved by 1e-4 outside of the root hardly differs from what is not.
    eps = 3e-3 if how == "outside" else config.norm_eps
    return "norm", lambda lib, right, x, g, cfg: normed(lib, x, g, cfg, how=how, eps=eps)


@kind("norm mean", "mean subtraction", "norm")
def mean(rng, config):
    return "norm", lambda lib, right, x, g, cfg: normed(lib, x, g, cfg, centred=cfg.norm != "layernorm")


@kind("norm scale forgotten", "norm scale", "norm")
def scale(rng, config):
    return "norm", lambda lib, right, x, g, cfg: cast(wide(right(x, g, cfg)) / wide(g), x.dtype)


@kind("norm in bfloat16", "norm in bfloat16", "norm", lossy=True)
def rough_norm(rng, config):
    def inside(lib, right, x, g, cfg):
        return right(bfloat16(lib, x), g, cfg)

    def all_of_it(lib, right, x, g, cfg):
        return bfloat16(lib, right(bfloat16(lib, x), g, cfg))

    return "norm", [inside, all_of_it][rng.integers(2)]


@kind("norm variance, unbiased", "norm variance", "norm")
def unbiased(rng, config):
    def wrong(lib, right, x, g, cfg):
        d = x.shape[-1]
        return cast(wide(right(x, g, cfg)) * ((d - 1) / d) ** 0.5, x.dtype)

    return "norm", wrong


@kind(
    "norm variance in one pass",
    "norm variance",
    "norm",
    config={"norm": ("layernorm",), "init": ("paper",)},
    lossy=True,
    shift=400.0,
)
def one_pass(rng, config):
    def wrong(lib, right, x, g, cfg):
        z = wide(x)
        m = z.mean(-1, keepdims=True)
        variance = (z * z).mean(-1, keepdims=True) - m * m
        return cast((z - m) / lib.sqrt(variance.clip(0) + 1e-12) * wide(g), x.dtype)

    return "norm", wrong


@kind("a bent norm", UNKNOWN, "norm")
def bent_norm(rng, config):
    return "norm", lambda lib, right, x, g, cfg: lib.tanh(right(x, g, cfg))

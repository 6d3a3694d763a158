"""What ports get wrong in norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from palm.config import EpsMode, PaLMConfig
from palm.parity.explain.causes.building_blocks import Variant, bfloat16, times, with_config, with_weight
from palm.parity.explain.causes.solvers import number
from palm.spec import forward, functions
from palm.spec.forward import Place
from palm.spec.rounding import UNIT_ROUNDOFF

DECADES = tuple(float(f"1e{power}") for power in range(-12, 0))
EPS = tuple(float(f"{digit}e{power}") for power in range(-12, 0) for digit in (1, 2, 3, 5))


def eps(config: PaLMConfig) -> Iterator[Variant]:
    """Another value, or none."""
    yield f"eps is 0 instead of {config.eps:g}", {"norm": _without_eps}
    for eps in sorted(EPS, key=lambda eps: abs(np.log(eps / config.eps))):
        if eps != config.eps:
            yield f"eps is {eps:g} instead of {config.eps:g}", with_config(("norm",), norm_eps=eps)


def _without_eps(at: Place) -> np.ndarray:
    x = centred(at)
    with np.errstate(all="ignore"):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True)) * at.weight("norm")


EPS_SOLVED = (
    number(
        lambda at, eps: (
            f"eps is {eps:.10g} instead of {at.config.eps:g}",
            with_config(("norm",), norm_eps=eps),
        ),
        1e-15,
        10,
    ),
)


def eps_convention(config: PaLMConfig) -> Iterator[Variant]:
    """Inside or outside the root, of the mean or of the sum."""
    other = "add" if config.norm_eps_mode == "clamp" else "clamp"
    for eps in (config.eps, *(eps for eps in DECADES if eps != config.eps)):
        yield (
            f'eps is applied as "{other}" instead of "{config.norm_eps_mode}", with eps {eps:g}',
            with_config(("norm",), norm_eps_mode=other, norm_eps=eps),
        )
    for eps in (config.eps, *(eps for eps in DECADES if eps != config.eps)):
        yield (
            f"eps {eps:g} is added to the sum of squares instead of their mean",
            with_config(("norm",), norm_eps_mode="add", norm_eps=max(eps / config.dim, 1.1e-18)),
        )

    for eps in (config.eps, *(eps for eps in DECADES if eps != config.eps)):
        yield _outside(eps)


def _outside(eps: float) -> Variant:
    def operation(at: Place) -> np.ndarray:
        x = centred(at)
        return x / (np.sqrt(np.square(x).mean(-1, keepdims=True)) + eps) * at.weight("norm")

    return f"eps {eps:.10g} is added to the root instead of under it", {"norm": operation}


def _other_mode(at: Place, eps: float) -> Variant:
    own = at.config.norm_eps_mode
    other: EpsMode = "add" if own == "clamp" else "clamp"
    detail = f'eps is applied as "{other}" instead of "{own}", with eps {eps:.10g}'
    return detail, with_config(("norm",), norm_eps_mode=other, norm_eps=eps)


CONVENTION_SOLVED = (
    number(_other_mode, 1e-15, 10),
    number(lambda at, eps: _outside(eps), 1e-12, 10),
)


def centred(at: Place) -> np.ndarray:
    """What the norm takes the mean square of."""
    x = at.residual
    return x - x.mean(-1, keepdims=True) if at.config.norm == "layernorm" else x


def variance(config: PaLMConfig) -> Iterator[Variant]:
    """The mean over one less."""

    def unbiased(at: Place) -> np.ndarray:
        return forward.norm(at) * np.sqrt(1 - 1 / at.config.dim)

    if config.dim > 1:
        yield "the variance is divided by d − 1 instead of d", {"norm": unbiased}


def one_pass(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
    """E[x²] − E[x]², which cancels: rows are off by factors as far from 1 as that explains."""
    if kind != "norm" or at.config.norm != "layernorm":
        return
    expected = forward.norm(at)
    size = np.square(expected).sum(-1, keepdims=True)
    factors = (value * expected).sum(-1, keepdims=True) / np.where(size > 0, size, 1)
    cancelled = at.residual.mean(-1, keepdims=True) ** 2 / np.square(centred(at)).mean(-1, keepdims=True)
    if (np.abs(factors - 1) <= at.config.dim**0.5 * UNIT_ROUNDOFF["float32"] * (1 + cancelled)).all():
        yield (
            "the variance is computed in one pass: E[x²] − E[x]² cancels",
            {"norm": lambda at: factors * forward.norm(at)},
        )


def mean(config: PaLMConfig) -> Iterator[Variant]:
    """Subtracted where it should not be, or the reverse."""
    other = "rmsnorm" if config.norm == "layernorm" else "layernorm"
    told = "not subtracted" if other == "rmsnorm" else "subtracted"
    yield f"the mean is {told}", with_config(("norm",), norm=other)


def norm_scale(config: PaLMConfig) -> Iterator[Variant]:
    """Without the weight, or with 1 + weight."""
    yield "the norm scale is left out", {"norm": with_weight("norm", "norm", lambda at, g: np.ones_like(g))}
    yield "the norm is multiplied by 1 + scale", {"norm": with_weight("norm", "norm", lambda at, g: 1 + g)}
    yield "the norm is multiplied by scale − 1", {"norm": with_weight("norm", "norm", lambda at, g: g - 1)}
    root = config.dim**-0.5
    for told, factor in (("dim^-1/2", root), ("1 / dim", root**2)):
        yield (
            f"the norm is multiplied by {told}",
            {"norm": times(factor, forward.norm)},
        )


def norm_bfloat16(config: PaLMConfig) -> Iterator[Variant]:
    """Computed in bfloat16."""

    def rounded(at: Place) -> np.ndarray:
        x = bfloat16(at.residual)
        if at.config.norm == "layernorm":
            x = bfloat16(x - bfloat16(x.mean(-1, keepdims=True)))
        mean_square = bfloat16(bfloat16(x**2).mean(-1, keepdims=True))
        add = at.config.norm_eps_mode == "add"
        root = (
            np.sqrt(mean_square + at.config.eps) if add else np.maximum(np.sqrt(mean_square), at.config.eps)
        )
        return bfloat16(bfloat16(x / bfloat16(root)) * at.weight("norm"))

    def of_rounded(at: Place) -> np.ndarray:
        return functions.normalise(bfloat16(at.residual), at.weight("norm"), at.config)

    yield "the input of the norm is rounded to bfloat16", {"norm": of_rounded}
    yield "the output of the norm is rounded to bfloat16", {"norm": lambda at: bfloat16(forward.norm(at))}
    yield (
        "input and output of the norm are rounded to bfloat16",
        {"norm": lambda at: bfloat16(of_rounded(at))},
    )
    yield "every step of the norm is rounded to bfloat16", {"norm": rounded}

"""What ports get wrong in norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from palm import reference
from palm.compare import program
from palm.compare.causes.variants import Variant, bfloat16, with_config, with_weight
from palm.compare.program import Place
from palm.config import PaLMConfig

DECADES = tuple(float(f"1e{power}") for power in range(-12, 0))
EPS = tuple(float(f"{digit}e{power}") for power in range(-12, 0) for digit in (1, 2, 3, 5))


def eps(config: PaLMConfig) -> Iterator[Variant]:
    """Another value."""
    for eps in sorted(EPS, key=lambda eps: abs(np.log(eps / config.eps))):
        if eps != config.eps:
            yield f"eps {eps:g} for {config.eps:g}", with_config(("norm",), norm_eps=eps)


def eps_convention(config: PaLMConfig) -> Iterator[Variant]:
    """Inside or outside the root, of the mean or of the sum."""
    other = "add" if config.norm_eps_mode == "clamp" else "clamp"
    for eps in (config.eps, *(eps for eps in DECADES if eps != config.eps)):
        yield (
            f'"{other}" for "{config.norm_eps_mode}", eps {eps:g}',
            with_config(("norm",), norm_eps_mode=other, norm_eps=eps),
        )
    for eps in (config.eps, *(eps for eps in DECADES if eps != config.eps)):
        yield (
            f"eps {eps:g} added to the sum of squares, not to their mean",
            with_config(("norm",), norm_eps_mode="add", norm_eps=max(eps / config.dim, 1.1e-18)),
        )


def mean(config: PaLMConfig) -> Iterator[Variant]:
    """Subtracted where it should not be, or the reverse."""
    other = "rmsnorm" if config.norm == "layernorm" else "layernorm"
    told = "not subtracted" if other == "rmsnorm" else "subtracted"
    yield f"the mean is {told}", with_config(("norm",), norm=other)


def norm_scale(config: PaLMConfig) -> Iterator[Variant]:
    """Without the weight, or with 1 + weight."""
    yield "left out", {"norm": with_weight("norm", "norm", lambda at, g: np.ones_like(g))}
    yield "1 + scale", {"norm": with_weight("norm", "norm", lambda at, g: 1 + g)}


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
        return reference.normalise(bfloat16(at.residual), at.weight("norm"), at.config)

    yield "its input rounded", {"norm": of_rounded}
    yield "its output rounded", {"norm": lambda at: bfloat16(program.norm(at))}
    yield "its input and output rounded", {"norm": lambda at: bfloat16(of_rounded(at))}
    yield "every step of it", {"norm": rounded}

"""What ports get wrong in rotary positions. Letters: n sequence, i position, p pair, e dim_head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes.building_blocks import Variant, bfloat16, with_config
from palm.parity.explain.causes.solvers import number
from palm.spec import forward, functions
from palm.spec.forward import Operation, Place
from palm.spec.functions import merge_heads

THETAS = (1e2, 5e2, 1e3, 2e3, 5e3, 9e3, 1e4, 2e4, 2.5e4, 4e4, 5e4, 1e5, 2e5, 2.5e5, 5e5, 1e6, 2e6, 5e6, 1e7)


def _rotated(
    kinds: tuple[str, ...], rotate: Callable[[Place, np.ndarray], np.ndarray]
) -> dict[str, Operation]:
    """Queries and keys with another position step."""

    def operation(kind: str) -> Operation:
        def run(at: Place) -> np.ndarray:
            x = rotate(at, forward.project(at, {"q": "query", "k": "key"}[kind]))
            x = x * functions.stretch(x.shape[-2], at.config, keys=kind == "k")
            return merge_heads(x) if kind == "q" else x

        return run

    return {kind: operation(kind) for kind in kinds}


def _rotated_by(
    x: np.ndarray,
    angles: np.ndarray,
    *,
    halves: bool = False,
    table: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> np.ndarray:
    """x (..., n, e) with its pairs rotated by angles (n, e/2), of which `table` makes what is multiplied."""
    cos, sin = table(np.cos(angles)), table(np.sin(angles))
    e = x.shape[-1]
    a, b = (x[..., : e // 2], x[..., e // 2 :]) if halves else (x[..., 0::2], x[..., 1::2])
    pair = (a * cos - b * sin, b * cos + a * sin)
    return np.concatenate(pair, -1) if halves else np.stack(pair, -1).reshape(x.shape)


def _angles(at: Place, first: int = 0) -> np.ndarray:
    """i·θ^(-2p/e) for i from `first` on. Shape (n, e/2)."""
    e = at.config.dim_head
    positions = np.arange(first, first + at.tokens.shape[-1])
    frequencies = at.config.rope_theta ** (-np.arange(0, e, 2) / e)
    return positions[:, None] * frequencies


def _told(kinds: tuple[str, ...]) -> str:
    return " and ".join({"q": "queries", "k": "keys"}[kind] for kind in kinds)


def _only_rotary(config: PaLMConfig) -> bool:
    return config.rotates


def rotary_layout(config: PaLMConfig) -> Iterator[Variant]:
    """Pairs (p, p + e/2)."""
    if _only_rotary(config):
        yield (
            "the rotary pairs are half-split instead of interleaved",
            _rotated(("q", "k"), lambda at, x: _rotated_by(x, _angles(at), halves=True)),
        )


def rotary_theta(config: PaLMConfig) -> Iterator[Variant]:
    """Another base of the frequencies."""
    for theta in THETAS if _only_rotary(config) else ():
        if theta != config.rope_theta:
            yield (
                f"rotary θ is {theta:g} instead of {config.rope_theta:g}",
                with_config(("q", "k"), rope_theta=theta),
            )


def _of_theta(at: Place, theta: float) -> Variant:
    detail = f"rotary θ is {theta:.10g} instead of {at.config.rope_theta:g}"
    return detail, with_config(("q", "k"), rope_theta=theta) if _only_rotary(at.config) else {}


THETA = (number(_of_theta, 1.1, 1e9),)


def rotary_missing(config: PaLMConfig) -> Iterator[Variant]:
    """Queries, keys or both are not rotated."""
    if _only_rotary(config):
        for kinds in (("q", "k"), ("q",), ("k",)):
            yield f"rotary is missing on {_told(kinds)}", _rotated(kinds, lambda at, x: x)


def rotary_kinds(config: PaLMConfig) -> Iterator[Variant]:
    """Frequencies of another rule, fewer pairs, or values rotated too."""
    if not _only_rotary(config):
        return
    e, pairs = config.dim_head, np.arange(config.dim_head // 2)

    def by(exponents: np.ndarray, kept: np.ndarray | float = 1.0) -> Mapping[str, Operation]:
        """Frequencies kept·θ^-exponents."""

        def rotate(at: Place, x: np.ndarray) -> np.ndarray:
            frequencies = kept * at.config.rope_theta**-exponents
            return _rotated_by(x, np.arange(at.tokens.shape[-1])[:, None] * frequencies)

        return _rotated(("q", "k"), rotate)

    own = 2 * pairs / e
    for share, told in ((0.25, "a quarter"), (0.5, "half"), (0.75, "three quarters")):
        width = int(share * len(pairs))
        if 0 < width < len(pairs):
            first = np.where(pairs < width, 1.0, 0.0)
            yield f"only the first pairs are rotated, {told} of them", by(own, first)
            yield (
                f"rotary is that of a head of {2 * width}, in its first pairs only",
                by(pairs / width, first),
            )
    for divisor in (2, 4, 8, 16):
        yield f"rotary positions are divided by {divisor}", by(own, 1 / divisor)
    yield "rotary frequencies are θ^(-p/dim_head) instead of θ^(-2p/dim_head)", by(pairs / e)
    yield (
        "rotary frequencies are θ^(-2p/dim) instead of θ^(-2p/dim_head)",
        by(2 * pairs / config.dim),
    )
    yield "values are rotated too", {"v": lambda at: _rotated_by(forward.project(at, "value"), _angles(at))}


def xpos(config: PaLMConfig) -> Iterator[Variant]:
    """Its factors where none are to be; missing, of another base, exchanged, or about another centre."""
    if config.positions == "rotary":
        told = "queries are multiplied by ζ^(i/512) and keys by ζ^(-i/512) (xPos)"
        yield told, with_config(("q", "k"), positions="xpos", xpos_base=512.0)
    if config.positions != "xpos":
        return
    for kinds in (("q", "k"), ("q",), ("k",)):
        yield f"xPos is missing on {_told(kinds)}", with_config(kinds, positions="rotary")
    for base in (128.0, 256.0, 512.0, 1024.0, 2048.0):
        if base != config.xpos_base:
            yield _of_base(base)
    yield "the xPos factors of queries and keys are exchanged", _about(lambda n: 0, -1)
    yield "xPos counts from the middle of the sequence, which no score shows", _about(lambda n: n // 2, 1)


def _about(centre: Callable[[int], int], sign: int) -> Mapping[str, Operation]:
    """Factors s_p^(±sign·(i − c) / base)."""

    def moved(kind: str) -> Operation:
        def run(at: Place) -> np.ndarray:
            n, keys = at.tokens.shape[-1], kind == "k"
            plain = _rotated((kind,), lambda at, x: _rotated_by(x, _angles(at)))[kind](at)
            own = functions.stretch(n, at.config, keys=keys)
            changed = own**sign / own[centre(n)] ** sign
            return plain * np.tile(changed / own, (1, 1 if keys else at.config.heads))

        return run

    return {kind: moved(kind) for kind in ("q", "k")}


def _of_base(base: float) -> Variant:
    return f"the base of xPos is {base:.10g}", with_config(("q", "k"), xpos_base=base)


def _any_base(at: Place, base: float) -> Variant:
    told, changed = _of_base(base)
    return told, changed if at.config.positions == "xpos" else {}


XPOS = (number(_any_base, 16.0, 1e5),)


def rotary_direction(config: PaLMConfig) -> Iterator[Variant]:
    """Rotated by −i."""
    if _only_rotary(config):
        for kinds in (("q",), ("k",), ("q", "k")):
            yield (
                f"rotary rotates {_told(kinds)} in the opposite direction",
                _rotated(kinds, lambda at, x: _rotated_by(x, -_angles(at))),
            )


def rotary_offset(config: PaLMConfig) -> Iterator[Variant]:
    """Positions counted from 1."""
    if _only_rotary(config):
        for kinds in (("q",), ("k",), ("q", "k")):
            yield (
                f"rotary positions count from 1 for {_told(kinds)}",
                _rotated(kinds, lambda at, x: _rotated_by(x, _angles(at, first=1))),
            )


def in_bfloat16(config: PaLMConfig) -> Iterator[Variant]:
    """Angles, or positions above 256, rounded."""
    if _only_rotary(config):
        yield (
            "the rotary angles are rounded to bfloat16",
            _rotated(("q", "k"), lambda at, x: _rotated_by(x, bfloat16(_angles(at)))),
        )

        def positions_rounded(at: Place, x: np.ndarray) -> np.ndarray:
            positions = bfloat16(np.arange(at.tokens.shape[-1], dtype=np.float64))
            return _rotated_by(x, positions[:, None] * _angles(at, first=1)[0])

        def frequencies_rounded(at: Place, x: np.ndarray) -> np.ndarray:
            positions = np.arange(at.tokens.shape[-1], dtype=np.float64)
            return _rotated_by(x, positions[:, None] * bfloat16(_angles(at, first=1)[0]))

        yield "the rotary positions are rounded to bfloat16", _rotated(("q", "k"), positions_rounded)
        yield "the rotary frequencies are rounded to bfloat16", _rotated(("q", "k"), frequencies_rounded)
        yield (
            "the cosines and sines of rotary are rounded to bfloat16",
            _rotated(("q", "k"), lambda at, x: _rotated_by(x, _angles(at), table=bfloat16)),
        )

"""What ports get wrong in scores: ALiBi, mask, scale. Letters: n sequence, i query, j key, h heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes.building_blocks import Variant, bfloat16, with_config, with_weight
from palm.parity.explain.causes.solvers import number
from palm.spec import forward, functions
from palm.spec.forward import Operation, Place
from palm.spec.positions import alibi_slopes

# A position differs if it does so by this share of the largest difference; a few may before it, by less.
_SEEN, _AROUND = 0.3, 4
FILLS = (0.0, 1e-10, -1.0, -5.0, -10.0, -50.0, -100.0)


def masked(at: Place, bias: np.ndarray, *, until: int = 0, fill: float = -np.inf) -> np.ndarray:
    """`bias` where j ≤ i + until, `fill` elsewhere."""
    i = np.arange(at.tokens.shape[-1])
    seen = i[None, :] <= i[:, None] + until
    if until < 0:
        seen[:-until, 0] = True  # a row that sees nothing has no softmax
    return np.where(seen, bias, fill)


def _distances(at: Place) -> np.ndarray:
    i = np.arange(at.tokens.shape[-1], dtype=np.float64)
    return i[:, None] - i


def linear(at: Place, slopes: np.ndarray | None = None) -> np.ndarray:
    """The bias of the config's positions, or of other slopes, without the mask. Shape (h, n, n)."""
    if slopes is None:
        is_alibi = at.config.positions == "alibi"
        slopes = alibi_slopes(at.config.heads) if is_alibi else np.zeros(at.config.heads)
    return -slopes[:, None, None] * _distances(at)


def attended(bias: Callable[[Place], np.ndarray]) -> Mapping[str, Operation]:
    """Attention with another bias."""
    return {"attention": lambda at: forward.attend(at, bias(at))}


def _slopes(rule: Callable[[int], np.ndarray]) -> Mapping[str, Operation]:
    return attended(lambda at: masked(at, linear(at, rule(at.config.heads))))


def alibi_sign(config: PaLMConfig) -> Iterator[Variant]:
    """Far keys weigh more."""
    if config.positions != "alibi":
        return
    yield "ALiBi adds +m·(i − j), so that far keys weigh more", _slopes(lambda h: -alibi_slopes(h))


def alibi_offset(config: PaLMConfig) -> Iterator[Variant]:
    """The series of slopes starts one place off."""
    if config.positions != "alibi":
        return
    yield "the ALiBi slopes begin at 1, one place early", _slopes(lambda h: 2.0 ** (-8 / h * np.arange(h)))
    yield "the first ALiBi slope is left out", _slopes(lambda h: 2.0 ** (-8 / h * np.arange(2, h + 2)))


def alibi_rule(config: PaLMConfig) -> Iterator[Variant]:
    """Slopes of head counts that are no power of two, or in another order."""
    if config.positions != "alibi":
        return
    power = "the ALiBi slopes are one geometric series, whatever the number of heads"
    yield power, _slopes(lambda h: 2.0 ** (-8 / h * np.arange(1, h + 1)))
    yield "the ALiBi slopes are sorted", _slopes(lambda h: np.sort(alibi_slopes(h))[::-1])
    yield (
        "the ALiBi slopes are the first of the next power of two",
        _slopes(lambda h: alibi_slopes(_next_power(h))[:h]),
    )
    yield "the ALiBi slopes are in reverse order", _slopes(lambda h: alibi_slopes(h)[::-1])
    yield (
        "the ALiBi slopes continue the series of the power of two below",
        _slopes(lambda h: _further(_next_power(h + 1) // 2, h)),
    )
    yield "the extra ALiBi slopes are the 2nd, 4th, … instead of the 1st, 3rd, …", _slopes(_left_over)
    for parts in (n for n in range(2, config.heads) if config.heads % n == 0):
        told = f"heads that are shared out to {parts} processes have the ALiBi slopes of the first one's"
        yield told, _slopes(partial(_of_first, parts))


def _of_first(parts: int, h: int) -> np.ndarray:
    return np.tile(alibi_slopes(h)[: h // parts], parts)


def _further(of: int, h: int) -> np.ndarray:
    return 2.0 ** (-8 / of * np.arange(1, h + 1))


def _left_over(h: int) -> np.ndarray:
    power = _next_power(h + 1) // 2
    return np.concatenate([alibi_slopes(power), alibi_slopes(2 * power)[1::2]])[:h]


def _stretched(at: Place, factor: float) -> Variant:
    is_alibi = at.config.positions == "alibi"
    return f"the ALiBi slopes are multiplied by {factor:.10g}", _slopes(
        lambda h: factor * alibi_slopes(h)
    ) if is_alibi else {}


SLOPES = (number(_stretched, 1 / 64, 64),)


def _next_power(h: int) -> int:
    return 1 << (h - 1).bit_length()


def alibi_missing(config: PaLMConfig) -> Iterator[Variant]:
    """No bias."""
    if config.positions != "alibi":
        return
    yield "ALiBi is missing", _slopes(np.zeros)


def alibi_in_bfloat16(config: PaLMConfig) -> Iterator[Variant]:
    """Distances above 256, or the whole bias, rounded."""

    def rounded(at: Place, *, product: bool) -> np.ndarray:
        slopes = alibi_slopes(at.config.heads)
        distance = bfloat16(np.abs(_distances(at)))
        bias = -slopes[:, None, None] * distance
        return masked(at, bfloat16(bfloat16(slopes)[:, None, None] * -distance) if product else bias)

    def of_positions(at: Place) -> np.ndarray:
        i = bfloat16(np.arange(at.tokens.shape[-1], dtype=np.float64))
        return masked(at, -alibi_slopes(at.config.heads)[:, None, None] * (i[:, None] - i))

    yield "the ALiBi positions are rounded to bfloat16", attended(of_positions)
    yield (
        "the ALiBi distances are rounded to bfloat16",
        {"attention": lambda at: forward.attend(at, rounded(at, product=False))},
    )
    yield (
        "the ALiBi bias is rounded to bfloat16",
        {"attention": lambda at: forward.attend(at, rounded(at, product=True))},
    )


def mask(config: PaLMConfig) -> Iterator[Variant]:
    """One token too many, one too few, or no mask."""
    yield "each position sees the next one", attended(lambda at: masked(at, linear(at), until=1))
    yield "no position sees itself", attended(lambda at: masked(at, linear(at), until=-1))
    yield "the causal mask is missing", attended(linear)


def mask_fill(config: PaLMConfig) -> Iterator[Variant]:
    """What is masked gets a finite score."""

    for fill in FILLS:
        yield _replaced(fill)
        yield _filled(fill)
        yield _added(fill)


def _filled(fill: float) -> Variant:
    return f"masked scores are {fill:.10g} instead of −∞", attended(
        lambda at: masked(at, linear(at), fill=fill)
    )


def _replaced(fill: float) -> Variant:
    """As `masked_fill` does: the score itself, not the bias, is exchanged."""

    def operation(at: Place) -> np.ndarray:
        heads, key, value = functions.split_heads(at.tap("q"), at.config), at.tap("k"), at.tap("v")
        scores = heads * at.config.dim_head**-0.5 @ key[..., None, :, :].swapaxes(-1, -2) + linear(at)
        weights = functions.softmax(np.where(_distances(at) >= 0, scores, fill))
        return functions.merge_heads(weights @ value[..., None, :, :])

    return f"masked scores are exchanged for {fill:.10g} instead of −∞", {"attention": operation}


def _added(fill: float) -> Variant:
    return (
        f"{fill:.10g} is added to masked scores instead of −∞",
        attended(lambda at: linear(at) + masked(at, np.zeros(()), fill=fill)),
    )


FILL = (
    number(lambda at, size: _filled(-size), 1e-2, 1e2, points=40, causal=False),
    number(lambda at, size: _added(-size), 1e-2, 1e2, points=40, causal=False),
)


def window(config: PaLMConfig) -> Iterator[Variant]:
    """Only the last keys are seen, or those of one chunk."""

    for size in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        yield _near(size)


def _near(size: int) -> Variant:
    return f"each position sees only {size} keys, its own and those before", attended(
        lambda at: np.where(_distances(at) < size, masked(at, linear(at)), -np.inf)
    )


def _any_window(kind: str, at: Place, value: np.ndarray) -> Iterator[Variant]:
    """A window of w keys shows first at position w, the first that has more."""
    if kind == "attention":
        apart = np.abs(forward.attention(at) - value).max(-1).reshape(-1, value.shape[-2]).max(0)
        first = int(np.argmax(apart > _SEEN * apart.max()))
        for size in range(max(1, first - _AROUND), first + 1):
            yield _near(size)


WINDOW = (_any_window,)


def qk_norm(config: PaLMConfig) -> Iterator[Variant]:
    """Scores of normed queries and keys, or of those that should be and are not."""
    if config.qk_norm:
        yield "queries and keys are not normed", with_config(("q", "k"), qk_norm=False)
        for kind, name in (("q", "query"), ("k", "key")):
            told = f"the norm of {'queries' if kind == 'q' else 'keys'} has no learned scale"
            scale = f"attention.{name}_norm"
            yield told, {kind: with_weight(kind, scale, lambda at, w: np.ones_like(w))}
        return

    def normed(at: Place, root: float) -> np.ndarray:
        def of(x: np.ndarray) -> np.ndarray:
            return x / np.maximum(np.sqrt(np.square(x).mean(-1, keepdims=True)), 1e-12) * root

        h, e = at.config.heads, at.config.dim_head
        q = at.tap("q").reshape(*at.tokens.shape, h, e)
        taps = {at.prefix + "q": of(q).reshape(*at.tokens.shape, h * e), at.prefix + "k": of(at.tap("k"))}
        return forward.attention(dataclasses.replace(at, taps={**at.taps, **taps}))

    yield "queries and keys are normed to an rms of 1", {"attention": lambda at: normed(at, 1.0)}
    yield (
        "queries and keys are normed to a length of 1",
        {"attention": lambda at: normed(at, at.config.dim_head**-0.5)},
    )


def score_cap(config: PaLMConfig) -> Iterator[Variant]:
    """Scores within limits, as Gemma 2 has them (arXiv:2408.00118 §2.2)."""
    for cap in (10.0, 20.0, 30.0, 50.0):
        yield f"the scores are capped: {cap:g}·tanh(x/{cap:g})", capped(cap)


def capped(cap: float) -> Mapping[str, Operation]:
    """Attention of scores c·tanh(x/c), before the mask. c > 0."""

    def operation(at: Place) -> np.ndarray:
        heads, key, value = functions.split_heads(at.tap("q"), at.config), at.tap("k"), at.tap("v")
        scores = heads * at.config.dim_head**-0.5 @ key[..., None, :, :].swapaxes(-1, -2) + linear(at)
        weights = functions.softmax(masked(at, cap * np.tanh(scores / cap)))
        return functions.merge_heads(weights @ value[..., None, :, :])

    return {"attention": operation}


def query_scale(config: PaLMConfig) -> Iterator[Variant]:
    """Another factor than e^-1/2."""

    e = config.dim_head
    for told, scale in (
        ("the queries are not scaled", 1.0),
        ("the query scale is applied twice", 1 / e),
        ("the query scale is dim^-1/2 instead of dim_head^-1/2", config.dim**-0.5),
        ("the query scale is (heads·dim_head)^-1/2 instead of dim_head^-1/2", config.inner_dim**-0.5),
    ):
        if scale != e**-0.5:
            yield told, {"attention": _scaled(scale)}


def _scaled(scale: float) -> Operation:
    return lambda at: forward.attend(at, masked(at, linear(at)), scale)


def _any_scale(at: Place, factor: float) -> Variant:
    return f"the query scale is multiplied by {factor:.10g}", {
        "attention": _scaled(factor * at.config.dim_head**-0.5)
    }


SCALE = (number(_any_scale, 1 / 64, 64),)

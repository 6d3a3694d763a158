"""How well a model predicts a text: nats per token, perplexity, bits per byte, in either backend."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palm.backends import config_of, dtype_of, model_of, wing_of
from palm.data.corpus import Corpus, Data, open_corpus
from palm.data.tokenizer import load_tokenizer
from palm.data.windows import check_vocabulary
from palm.errors import BackendError, ConfigError, DataError
from palm.fields import integer, plain
from palm.generation.prompts import need_tokenizer
from palm.models import tokenizer_of
from palm.spec.rounding import loss_resolution
from palm.training.noise import Gap, paired_gap

LENGTH = 256
# As many rows are computed at once as keep their logits below this, 128 MiB in float32; at most 16.
_MOST_LOGITS, _MOST_ROWS = 1 << 25, 16


@dataclass(frozen=True)
class Window:
    """Tokens start … stop - 1 of a text, of which the last `predicted` are predicted."""

    start: int
    stop: int
    predicted: int


def windows_of(tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Windows of `length` + 1 tokens that predict each token but the first once.

    The first window predicts `length` tokens, each other one the next `stride`, the last one what is left. So
    a prediction sees at least length - stride + 1 tokens, or all that there are.
    """
    done = 1
    while done < tokens:
        stop = min(tokens, done + (stride if done > 1 else length))
        yield Window(max(0, stop - length - 1), stop, stop - done)
        done = stop


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """What a model makes of a text.

    `losses` (m,) are the sums over each window's predictions, in nats, and `counts` (m,) how many these are.
    `text` and `digest` say which text it is, `length` and `stride` how it was cut into windows. `resolution`:
    means that are closer may be one number (`palm.spec.rounding.loss_resolution`).
    """

    text: str
    digest: str
    length: int
    stride: int
    bytes_per_token: float
    resolution: float
    losses: np.ndarray[tuple[int], np.dtype[np.float64]]
    counts: np.ndarray[tuple[int], np.dtype[np.int64]]

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return int(self.counts.sum())

    @property
    def nats_per_token(self) -> float:
        """The mean loss."""
        return float(self.losses.sum() / self.tokens)

    @property
    def standard_error(self) -> float | None:
        """That of `nats_per_token` over windows, as if these were independent; None for a single one."""
        m = len(self.losses)
        if m == 1:
            return None
        deviations = self.losses - self.nats_per_token * self.counts
        return float(math.sqrt(m / (m - 1) * (deviations**2).sum()) / self.tokens)

    @property
    def perplexity(self) -> float:
        """exp of `nats_per_token`; infinite where that is more than a float holds."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats_per_token))

    @property
    def bits_per_byte(self) -> float | None:
        """What a byte of the text costs; None for ids that came without text."""
        bits = self.nats_per_token / math.log(2)
        return None if math.isnan(self.bytes_per_token) else bits / self.bytes_per_token

    def against(self, other: Evaluation, *, seed: int = 0) -> Gap:
        """This model's loss minus that of another one on the same text, and whether that is noise.

        By a paired bootstrap over windows (`seed`). Raises `DataError` unless both have the same windows, of
        which there must be two.
        """
        mine, others = ((one.digest, one.length, one.stride) for one in (self, other))
        if mine != others:
            raise DataError(
                "evaluations must be of the same tokens in the same windows to be compared; got "
                f"{self.text} with (digest, length, stride)={mine}, and {other.text} with {others}. "
                "Evaluate both with one text, tokenizer, length and stride."
            )
        if len(self.losses) < 2:
            raise DataError(
                f"text must have at least two windows to be compared; got {self.tokens + 1} tokens with "
                f"length={self.length}. Use a longer text or a smaller length."
            )
        gap = paired_gap(self.losses - other.losses, self.counts, seed=seed)
        return dataclasses.replace(gap, resolution=max(self.resolution, other.resolution))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a number that is not finite is text."""
        return {
            "text": self.text,
            "digest": self.digest,
            "tokens": self.tokens,
            "windows": len(self.losses),
            "length": self.length,
            "stride": self.stride,
            "nats_per_token": plain(self.nats_per_token),
            "standard_error": plain(self.standard_error),
            "perplexity": plain(self.perplexity),
            "bits_per_byte": plain(self.bits_per_byte),
        }

    def __repr__(self) -> str:
        return f"Evaluation(text={self.text!r}, nats_per_token={self.nats_per_token:.4f})"


def evaluate(
    model: Any,
    data: Data,
    *,
    length: int = LENGTH,
    stride: int | None = None,
    batch: int | None = None,
    tokenizer: Any = None,
) -> Evaluation:
    """How well a model of either backend predicts a text: loss, perplexity, bits per byte.

    `data` is what `palm.train` takes: a `Path`, a text, or ids. The text is encoded by the model's tokenizer,
    or by `tokenizer`. Each token but the first is predicted once, in windows of `length` tokens. With
    `stride` s < length each window but the first predicts s tokens, which see at least length − s + 1 tokens;
    that costs length / s times as much. By default the stride is the length. `batch` windows are computed at
    once (by default up to 16, as many as keep the logits below 128 MiB in float32), and change nothing but
    rounding.

    Raises `ConfigError` for numbers out of range, `DataError` for data that cannot be read, has fewer than
    two tokens or ids beyond the vocabulary, `TokenError` for a text though no tokenizer is known, and
    `BackendError` for what is no model of palm's or lies on a mesh.
    """
    length = integer("length", length, least=1)
    stride = length if stride is None else integer("stride", stride, least=1)
    if stride > length:
        raise ConfigError(
            f"stride must be at most the length, or tokens would be left out; got stride={stride} and "
            f"length={length}. Use a smaller one."
        )
    batch = None if batch is None else integer("batch", batch, least=1)
    corpus = _open(model, data, tokenizer)
    found = list(windows_of(len(corpus), length, stride))
    rows = (corpus.read(window.start, window.stop) for window in found)
    counts = np.array([window.predicted for window in found])
    scored = zip(score(model, rows, length, batch), counts, strict=True)
    losses = np.array([-logprobs[-count:].sum() for (logprobs, _), count in scored])
    # The mean over predictions is formed in float64, and adds nothing.
    wide = "float64" if dtype_of(model) == "float64" else "float32"
    mean, vocabulary = float(losses.sum() / counts.sum()), config_of(model).num_tokens
    return Evaluation(
        *(corpus.name, corpus.digest, length, stride, corpus.bytes_per_token),
        resolution=loss_resolution(wide, mean, vocabulary, 1),
        losses=losses,
        counts=counts,
    )


def _open(model: Any, data: Data, tokenizer: Any) -> Corpus:
    """The text as the model's ids. Raises what `evaluate` raises."""
    known = tokenizer_of(model) if tokenizer is None else load_tokenizer(tokenizer)
    corpus = open_corpus(data, known)
    if known is None and corpus.tokenizer is None and not math.isnan(corpus.bytes_per_token):
        need_tokenizer(None, config_of(model), "data must be ids")
    if len(corpus) < 2:
        raise DataError(
            f"data must be at least two tokens long, of which the second is predicted; got {len(corpus)} of "
            f"{corpus.name}. Use a longer text."
        )
    check_vocabulary(corpus, config_of(model).num_tokens)
    return corpus


def score(
    model: Any, rows: Iterable[np.ndarray], length: int, batch: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each row of 2 to `length` + 1 ids: each next one's log-probability, and whether none is likelier.

    Shapes: (n,) -> (n − 1,), (n − 1,); nats in float64. All rows are filled up to `length` + 1 ids behind
    their own, which see nothing of it, so that one compiled program serves them. Raises `BackendError` for a
    model on a mesh.
    """
    wing, own = wing_of(model), model_of(model)
    if wing.mesh_of_model(own).size > 1:
        raise BackendError(
            "a model must have whole weights to be evaluated; got one whose weights lie on a mesh. "
            "Call palm.convert(model, backend=…) in all processes, for a whole one."
        )
    most = _MOST_LOGITS // (length * config_of(own).num_tokens)
    size = batch or max(1, min(_MOST_ROWS, most))
    height = 0
    for some in _batches(rows, size):
        height = max(height, len(some))
        padded = np.zeros((height, length + 1), np.int64)
        for number, ids in enumerate(some):
            padded[number, : len(ids)] = ids
        logprobs, likeliest = wing.logprobs(own, padded)
        for number, ids in enumerate(some):
            found = logprobs[number, : len(ids) - 1].astype(np.float64)
            yield found, likeliest[number, : len(ids) - 1]


def _batches(rows: Iterable[np.ndarray], size: int) -> Iterator[Sequence[np.ndarray]]:
    some: list[np.ndarray] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some

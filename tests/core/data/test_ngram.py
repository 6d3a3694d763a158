"""The n-gram baseline of the benchmarks: its probabilities, and the bits per byte they come to."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest
from cases import ROOT

from palm.data.windows import standard_library_text

TEXT = standard_library_text()[:200_000]
SHORT = b"abracadabra, abracadabra; cadabra."  # its counts of counts have gaps
LENGTH = 7  # of the longest context
UNSEEN = bytes(range(200, 200 + LENGTH))


@pytest.fixture(scope="module")
def ngram():
    path = ROOT / "benchmarks" / "ngram.py"
    spec = importlib.util.spec_from_file_location("benchmark_ngram", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        yield module


@pytest.mark.sampled(4)
@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("train", [TEXT, SHORT])
def test_probabilities_sum_to_one_after_seen_and_unseen_bytes(ngram, train, order):
    model = ngram.NGramModel(train, order)
    cuts = np.random.default_rng(0).integers(0, len(train) - LENGTH, 20)
    seen = [train[cut : cut + LENGTH] for cut in cuts]
    half_seen = [(UNSEEN + context)[n : n + LENGTH] for context in seen for n in range(1, LENGTH)]
    ends_unseen = [context[:n] + UNSEEN[n:] for context in seen for n in range(1, LENGTH)]
    for context in (UNSEEN, train[-LENGTH:], *seen, *half_seen, *ends_unseen):
        # Contexts of full length do not see past their beginning, so 256 of them go into one text.
        text = b"".join(context + bytes([byte]) for byte in range(256))
        assert_distribution(model.probabilities(text)[LENGTH :: LENGTH + 1])
    for context in (b"", train[:1], train[5:7], UNSEEN[:2]):  # at the start of a text
        assert_distribution([model.probabilities(context + bytes([byte]))[-1] for byte in range(256)])


def assert_distribution(probabilities):
    assert len(probabilities) == 256
    assert min(probabilities) > 0
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("train", [TEXT[:3_000], SHORT])
def test_the_vectors_against_the_formula_one_byte_at_a_time(ngram, train, order):
    text = train[:40] + UNSEEN + train[-15:]
    found = ngram.NGramModel(train, order).probabilities(text)
    exact = [formula(ngram, train, order, text[: place + 1]) for place in range(len(text))]
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def formula(ngram, train: bytes, order: int, gram: bytes) -> float:
    """Kneser-Ney with strings and dictionaries, in the notation of Chen and Goodman."""
    below = 1 / 256
    for n in range(1, min(order, len(gram)) + 1):
        counts = count(train, n) if n == order else continuations(train, n)
        discount = [0, *ngram.discounts(np.array(list(counts.values())))]
        context, whole = gram[len(gram) - n : -1], gram[len(gram) - n :]
        after = {key: c for key, c in counts.items() if key[:-1] == context}
        if not after:
            continue  # nothing is known: the shorter n-grams' probability stands
        gamma = math.fsum(discount[min(c, 3)] for c in after.values())
        c = after.get(whole, 0)
        below = (c - discount[min(c, 3)] + gamma * below) / sum(after.values())
    return below


def count(text: bytes, n: int) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for start in range(len(text) - n + 1):
        gram = text[start : start + n]
        counts[gram] = counts.get(gram, 0) + 1
    return counts


def continuations(text: bytes, n: int) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for longer in count(text, n + 1):
        counts[longer[1:]] = counts.get(longer[1:], 0) + 1
    return counts


def test_the_published_discounts(ngram):
    counts = np.repeat([1, 2, 3, 4, 9], [100, 40, 20, 12, 7])
    y = 100 / 180
    published = [1 - 2 * y * 40 / 100, 2 - 3 * y * 20 / 40, 3 - 4 * y * 12 / 20]
    np.testing.assert_allclose(ngram.discounts(counts), published, rtol=1e-15)


def test_each_order_beats_the_lower_ones_on_real_text(ngram):
    split = len(TEXT) * 95 // 100
    bits = [ngram.ngram_bits_per_byte(TEXT[:split], TEXT[split:], order) for order in range(1, 6)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] < 8
    assert bits[-1] < 0.6 * bits[0]


def test_bits_per_byte_is_the_mean_and_order_five_the_default(ngram):
    p = ngram.NGramModel(TEXT, 5).probabilities(b"import os\n")
    assert ngram.ngram_bits_per_byte(TEXT, b"import os\n") == pytest.approx(-np.log2(p).sum() / 10)


def test_it_learns_from_the_training_text_alone(ngram):
    assert ngram.ngram_bits_per_byte(b"ab" * 1000, b"ab" * 100, 3) < 0.1
    assert ngram.ngram_bits_per_byte(b"ab" * 1000, b"xy" * 100, 3) > 8


@pytest.mark.parametrize(
    ("train", "validation", "order", "message"),
    [
        (b"abc", b"a", 0, "order=0"),
        (b"abc", b"a", 9, "order=9"),
        (b"abc", b"a", 4, "got 3"),
        (b"abc", b"", 2, "none"),
    ],
)
def test_what_cannot_be_counted_is_refused(ngram, train, validation, order, message):
    with pytest.raises(ValueError, match=message):
        ngram.ngram_bits_per_byte(train, validation, order)

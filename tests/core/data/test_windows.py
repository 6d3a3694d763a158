"""Text that is at hand, and the windows of a corpus: an order that is a pure function."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from cases import assert_explains, small
from hypothesis import given, settings
from hypothesis import strategies as st

from palm import DataError, PaLMConfig
from palm.data import corpus
from palm.data.windows import (
    Corpus,
    batch_of,
    check_vocabulary,
    open_corpus,
    python_documentation_text,
    sample_windows,
    split,
    standard_library_text,
    validation_windows,
    windows,
)

BYTES = PaLMConfig(num_tokens=256, dim=2, depth=1)
TEXT = bytes(range(256)) * 3


def contents(found):
    return bytes(found.read(0, len(found)).astype(np.uint8))


@pytest.mark.parametrize("piece", [2, 5, 1 << 20])
def test_the_first_id_outside_the_vocabulary_is_named_with_its_place(monkeypatch, piece):
    monkeypatch.setattr(corpus, "PIECE", piece)
    found = open_corpus(np.array([0, 12, 5, 13, 40, 2]))
    check_vocabulary(found, 41)
    with pytest.raises(DataError) as raised:
        check_vocabulary(found, 13)
    assert_explains(
        raised, "data must be ids below num_tokens=13", "id 13 at 3 of ids", "Use a model of more"
    )


def test_bytes_are_not_scanned_for_a_model_of_bytes(monkeypatch):
    monkeypatch.setattr(corpus.Corpus, "read", lambda *_: pytest.fail("it was read"))
    check_vocabulary(open_corpus(TEXT), 256)
    with pytest.raises(pytest.fail.Exception):
        check_vocabulary(open_corpus(TEXT), 255)


@pytest.mark.parametrize(("share", "size"), [(0.1, 77), (0.5, 384), (0.999, 767), (0.001, 1)])
def test_the_last_share_validates(share, size):
    training, validation = split(open_corpus(TEXT), share)
    assert contents(training) + contents(validation) == TEXT
    assert len(validation) == size
    assert len({training.digest, validation.digest}) == 2


def test_no_share_leaves_everything_for_training():
    whole = open_corpus(TEXT)
    assert split(whole, 0) == (whole, None)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, math.nan])
def test_a_share_is_at_least_0_and_below_1(share):
    with pytest.raises(DataError) as raised:
        split(open_corpus(TEXT), share)
    assert_explains(raised, "validation must be a share in [0, 1)", f"validation={share}", "a tenth")


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_both_parts_of_a_split_have_a_token(share):
    with pytest.raises(DataError) as raised:
        split(open_corpus(TEXT), share)
    assert_explains(
        raised,
        "must leave at least one token for training and one for validation",
        f"{share} of 768 tokens",
        "longer text",
    )


def positions(size):
    """A corpus whose ids are their own positions."""
    return open_corpus(np.arange(size, dtype=np.int32))


def epoch(size, length, *, seed=0, number=0):
    """Where the windows of one epoch start, in the order they are seen."""
    count = max(1, (size - 1) // length - 1)
    return windows(positions(size), seed=seed, first=number * count, rows=count, length=length)[:, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 65537])
@pytest.mark.parametrize("number", [0, 1])
def test_an_epoch_has_every_window_once_and_predicts_no_token_twice(count, number):
    length = 3
    starts = epoch((count + 1) * length + 2, length, number=number)
    assert len(starts) == count
    assert np.array_equal(np.sort(starts), starts.min() + length * np.arange(count))


@settings(max_examples=300)
@given(
    size=st.integers(2, 200), length=st.integers(1, 30), seed=st.integers(0, 99), first=st.integers(0, 999)
)
def test_any_corpus_of_a_window_can_be_trained_on(size, length, seed, first):
    if size <= length:
        size += length
    found = windows(positions(size), seed=seed, first=first, rows=3, length=length)
    assert (found.shape, found.dtype) == ((3, length + 1), np.int64)
    assert np.array_equal(found, found[:, :1] + np.arange(length + 1))
    assert 0 <= found.min() <= found.max() < size


@pytest.mark.parametrize(("size", "length"), [(10, 9), (14, 9), (19, 9), (28, 9), (50, 7)])
def test_over_the_epochs_every_token_is_seen(size, length):
    seen = windows(positions(size), seed=0, first=0, rows=600, length=length)
    assert set(seen.ravel().tolist()) == set(range(size))


@pytest.mark.parametrize("first", [0, 5, 95, 1234])
def test_a_batch_in_parts_is_the_same_batch(first):
    found = positions(1000)
    batch = windows(found, seed=3, first=first, rows=8, length=9)
    for parts in ([4, 4], [1, 2, 5], [1] * 8):
        starts = np.cumsum([0, *parts[:-1]])
        pieces = [
            windows(found, seed=3, first=first + int(s), rows=r, length=9)
            for s, r in zip(starts, parts, strict=True)
        ]
        assert np.array_equal(np.concatenate(pieces), batch)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch(5000, 4, seed=seed, number=number) for seed in (0, 1, 2) for number in (0, 1, 2)]
    ranks = [np.argsort(np.argsort(order)) for order in orders]
    for index, one in enumerate(ranks):
        for other in ranks[:index]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
            assert (one == other).mean() < 0.01


@pytest.mark.parametrize("count", [200, 1000, 4096, 65537])
def test_the_order_looks_unrelated_to_the_place(count):
    ranks = np.argsort(np.argsort(epoch(count + 2, 1)))
    bar = 4 / math.sqrt(count)  # four standard deviations of what independent orders give
    assert abs(np.corrcoef(ranks, np.arange(count))[0, 1]) < bar
    assert abs(np.corrcoef(ranks[1:], ranks[:-1])[0, 1]) < bar
    assert abs(np.mean(np.diff(ranks) > 0) - 0.5) < bar


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_in_a_tiny_epoch_every_order_occurs_about_as_often(count):
    orders = Counter(
        tuple(np.argsort(epoch((count + 1) * 2 + 1, 2, seed=seed)).tolist()) for seed in range(1500)
    )
    expected = 1500 / math.factorial(count)
    assert len(orders) == math.factorial(count)
    assert all(abs(times - expected) < 6 * math.sqrt(expected) for times in orders.values())


def test_the_order_is_written_down():
    """Another process, machine, Python or NumPy must give this one, or no run could be resumed there."""
    for first, starts in ((0, [77, 68, 41, 32, 50, 23, 5, 86, 14, 59]), (10**12, [57, 21, 39])):
        found = windows(positions(100), seed=7, first=first, rows=len(starts), length=9)
        assert found[:, 0].tolist() == starts


@pytest.mark.parametrize(("name", "value"), [("first", -1), ("rows", 0), ("length", 0)])
def test_a_batch_has_rows_and_a_place(name, value):
    with pytest.raises(DataError) as raised:
        windows(positions(50), **{"seed": 0, "first": 0, "rows": 2, "length": 5, name: value})
    assert_explains(raised, f"{name} must be at least", f"{name}={value}", "Use a larger")


def test_a_corpus_shorter_than_a_window_is_refused():
    assert windows(positions(10), seed=0, first=0, rows=1, length=9).tolist() == [list(range(10))]
    for call in (
        lambda: windows(positions(9), seed=0, first=0, rows=1, length=9),
        lambda: validation_windows(positions(9), length=9, limit=1),
    ):
        with pytest.raises(DataError) as raised:
            call()
        assert_explains(raised, "at least one window long", "9 tokens of ids for a window of 10", "smaller")


def test_a_batch_reads_the_windows_that_are_asked_for_and_no_others(monkeypatch):
    whole = windows(positions(60), seed=1, first=2, rows=6, length=7)
    read, original = [], Corpus.read

    def counted(corpus, start, stop):
        read.append(start)
        return original(corpus, start, stop)

    monkeypatch.setattr(Corpus, "read", counted)
    corpus = positions(60)
    read.clear()
    batch = batch_of(corpus, seed=1, first=2, rows=6, length=7)
    assert batch.shape == whole.shape == (6, 8)
    assert read == []
    assert batch[1:6:2].tolist() == whole[1:6:2].tolist()
    assert read == whole[1:6:2, 0].tolist()


@pytest.mark.parametrize(
    ("limit", "starts"),
    [
        (99, [0, 10, 20, 30, 40, 50]),
        (6, [0, 10, 20, 30, 40, 50]),
        (3, [0, 20, 40]),
        (4, [0, 10, 30, 40]),
        (1, [0]),
    ],
)
def test_validation_windows_are_spread_evenly(limit, starts):
    found = validation_windows(positions(66), length=10, limit=limit)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.array(starts)[:, None] + np.arange(11))


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("length", 0)])
def test_there_is_a_validation_window(name, value):
    with pytest.raises(DataError, match=f"{name} must be at least 1; got {name}={value}"):
        validation_windows(positions(66), **{"length": 10, "limit": 3, name: value})


def test_windows_are_pieces_of_the_text():
    windows = sample_windows(TEXT, BYTES.num_tokens, batch=20, length=9, seed=0)
    assert (windows.shape, windows.dtype) == ((20, 9), np.int64)
    assert all(bytes(window.astype(np.uint8)) in TEXT for window in windows)


def test_a_seed_draws_its_own_windows_each_time_the_same():
    drawn = [sample_windows(TEXT, BYTES.num_tokens, batch=5, length=9, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_every_start_is_drawn_up_to_the_last_that_fits():
    windows = sample_windows(bytes(range(8)), BYTES.num_tokens, batch=200, length=3, seed=0)
    assert {int(start) for start in windows[:, 0]} == {0, 1, 2, 3, 4, 5}


def test_a_text_of_exactly_one_window_will_do():
    assert sample_windows(b"abc", BYTES.num_tokens, batch=2, length=3, seed=0).tolist() == [[97, 98, 99]] * 2


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(DataError) as raised:
        sample_windows(b"ab", BYTES.num_tokens, batch=1, length=3, seed=0)
    assert_explains(
        raised, "data must be at least one window long", "2 tokens of text for a window of 3", "Use a longer"
    )


def test_bytes_outside_a_small_vocabulary_are_refused():
    with pytest.raises(DataError) as raised:
        sample_windows(bytes(range(20)), small().num_tokens, batch=1, length=3, seed=0)
    assert_explains(raised, "data must be ids below num_tokens=13", "got id 13 at 13", "(256 for bytes)")
    assert sample_windows(bytes(range(13)), small().num_tokens, batch=1, length=3, seed=0).max() < 13


@pytest.mark.parametrize(("option", "value"), [("batch", 0), ("batch", -1), ("length", 1), ("length", 0)])
def test_there_must_be_a_window_and_a_next_token_in_it(option, value):
    with pytest.raises(DataError) as raised:
        sample_windows(TEXT, BYTES.num_tokens, **{"batch": 1, "length": 3, "seed": 0, option: value})
    assert_explains(raised, f"{option} must be at least", f"{option}={value}", "Use a larger")


def test_pythons_own_library_is_text_enough():
    text = standard_library_text()
    assert text == standard_library_text()
    assert len(text) > 10**6
    assert b"def dataclass(" in text


def test_pythons_own_documentation_is_prose():
    text = python_documentation_text()
    assert text == python_documentation_text()
    assert len(text) > 300_000
    assert b'The "if" statement is used for conditional execution' in text


def test_a_python_without_its_documentation_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError) as raised:
        python_documentation_text()
    assert_explains(raised, "Python must include pydoc_data.topics, its documentation", "--data")

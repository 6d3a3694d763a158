"""Text for the instrument."""

import numpy as np
import pytest
from cases import assert_explains, small

from palm import DataError, PaLMConfig
from palm.data import read_text, sample_windows, standard_library_text

BYTES = PaLMConfig(num_tokens=256, dim=2, depth=1)
TEXT = bytes(range(256)) * 3


def test_windows_are_pieces_of_the_text():
    windows = sample_windows(TEXT, BYTES, batch=20, length=9, seed=0)
    assert (windows.shape, windows.dtype) == ((20, 9), np.int64)
    assert all(bytes(window.astype(np.uint8)) in TEXT for window in windows)


def test_a_seed_draws_its_own_windows_each_time_the_same():
    drawn = [sample_windows(TEXT, BYTES, batch=5, length=9, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_every_start_is_drawn_up_to_the_last_that_fits():
    windows = sample_windows(bytes(range(8)), BYTES, batch=200, length=3, seed=0)
    assert {int(start) for start in windows[:, 0]} == {0, 1, 2, 3, 4, 5}


def test_a_text_of_exactly_one_window_will_do():
    assert sample_windows(b"abc", BYTES, batch=2, length=3, seed=0).tolist() == [[97, 98, 99]] * 2


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(DataError) as raised:
        sample_windows(b"ab", BYTES, batch=1, length=3, seed=0)
    assert_explains(raised, "data must be at least one window long", "2 bytes for length=3", "Use a longer")


def test_bytes_outside_a_small_vocabulary_are_refused():
    with pytest.raises(DataError) as raised:
        sample_windows(bytes(range(20)), small(), batch=1, length=3, seed=0)
    assert_explains(raised, "data must be bytes below num_tokens=13", "got byte 19", "Use a model of 256")
    assert sample_windows(bytes(range(13)), small(), batch=1, length=3, seed=0).max() < 13


@pytest.mark.parametrize(("option", "value"), [("batch", 0), ("batch", -1), ("length", 1), ("length", 0)])
def test_there_must_be_a_window_and_a_next_token_in_it(option, value):
    with pytest.raises(DataError) as raised:
        sample_windows(TEXT, BYTES, **{"batch": 1, "length": 3, "seed": 0, option: value})
    assert_explains(raised, f"{option} must be at least", f"{option}={value}", "Use a larger")


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "text").write_bytes(TEXT)
    assert read_text(tmp_path / "text") == read_text(str(tmp_path / "text")) == TEXT


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError) as raised:
        read_text(tmp_path / "text")
    assert_explains(raised, "data must be a readable file", f"data={tmp_path / 'text'}", "No such file")


def test_pythons_own_library_is_text_enough():
    text = standard_library_text()
    assert text == standard_library_text()
    assert len(text) > 10**6
    assert b"def dataclass(" in text

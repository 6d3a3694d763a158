"""A model's tokenizer is found by the model itself, and by nothing that only looks like it."""

import copy
import gc

from palm.data import remembered
from palm.data.remembered import remember_tokenizer, remembered_tokenizer
from palm.data.tokenizer import ByteTokenizer
from palm.data.tokenizer_file import FileTokenizer


class Model:
    """Compares with another one as arrays do, and cannot be hashed; as an `eqx.Module`."""

    def __eq__(self, other):
        raise NotImplementedError

    __hash__ = None


WORDS, OTHER = (FileTokenizer("t.json", content) for content in (b"1", b"2"))


def test_a_model_has_the_tokenizer_that_was_remembered_last():
    one, other = Model(), Model()
    remember_tokenizer(one, OTHER)
    remember_tokenizer(one, WORDS)
    remember_tokenizer(other, OTHER)
    assert remembered_tokenizer(one, 300) is WORDS
    assert remembered_tokenizer(one, 256) is WORDS
    assert remembered_tokenizer(other, 300) is OTHER
    remember_tokenizer(one, None)
    assert remembered_tokenizer(one, 300) is None


def test_where_nothing_is_known_only_a_vocabulary_of_256_is_of_bytes():
    assert isinstance(remembered_tokenizer(Model(), 256), ByteTokenizer)
    assert remembered_tokenizer(Model(), 255) is remembered_tokenizer(Model(), 257) is None
    assert remembered_tokenizer(["not even", "weakly referable"], 300) is None


def test_a_copy_has_none():
    model = Model()
    remember_tokenizer(model, WORDS)
    assert remembered_tokenizer(copy.deepcopy(model), 300) is None


def test_a_model_that_is_gone_is_forgotten_and_leaves_nothing_to_the_next_one():
    before = len(remembered._known)
    for _ in range(50):
        model = Model()
        assert remembered_tokenizer(model, 300) is None  # though it may lie where the last one lay
        remember_tokenizer(model, WORDS)
        del model
    gc.collect()
    assert len(remembered._known) == before

"""Tokenizer objects of other packages are taken wherever a tokenizer file is, and mean the same."""

import pytest
import sentencepiece
from cases import assert_explains
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from trained_tokenizers import sentences
from transformers import PreTrainedTokenizerFast

from palm import ConfigError, DataError
from palm.data.tokenizer import load_tokenizer, vocabulary_size

TEXT = "the palm grows by the sea: €5, 🌴.\n"


@pytest.fixture(scope="module")
def bpe():
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT] * 20, vocab_size=300, show_progress=False)
    return made


@pytest.fixture(scope="module")
def objects(bpe):
    """By name: an object, and the ids that its own package has for the text."""
    plain = Tokenizer.from_str(bpe.to_str())
    fast = PreTrainedTokenizerFast(tokenizer_object=plain)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentences(TEXT))
    return {
        "tokenizers.Tokenizer": (plain, plain.encode(TEXT).ids),
        "a tokenizer of tokenizers.implementations": (bpe, bpe.encode(TEXT).ids),
        "transformers": (fast, fast(TEXT, add_special_tokens=False)["input_ids"]),
        "sentencepiece": (pieces, pieces.encode(TEXT)),
    }


NAMES = (
    "tokenizers.Tokenizer",
    "a tokenizer of tokenizers.implementations",
    "transformers",
    "sentencepiece",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_has_the_ids_of_its_own_package(objects, name):
    given, ids = objects[name]
    found = load_tokenizer(given)
    assert found.encode(TEXT).tolist() == list(ids)
    assert found.decode(ids).strip() == TEXT.strip()
    assert 256 < found.num_tokens <= 303


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_the_same_tokenizer_as_its_file(objects, name, tmp_path):
    found = load_tokenizer(objects[name][0])
    (tmp_path / found.file).write_bytes(found.content)
    again = load_tokenizer(tmp_path / found.file)
    assert (again.digest, again.num_tokens) == (found.digest, found.num_tokens)
    assert again.encode(TEXT).tolist() == found.encode(TEXT).tolist()
    assert load_tokenizer(found) is found


@pytest.mark.parametrize("name", NAMES)
def test_an_object_whose_vocabulary_is_too_large_is_named_by_its_class(objects, name):
    given = objects[name][0]
    with pytest.raises(
        ConfigError, match=rf"of tokenizer={type(given).__module__}.{type(given).__qualname__};"
    ):
        vocabulary_size(load_tokenizer(given), 8)


def test_a_tokenizer_of_transformers_that_is_not_fast_is_refused():
    class Slow:
        """As those that are written in Python: it encodes, and has no file of one of the two kinds."""

        def encode(self, text):
            return [1]

    with pytest.raises(DataError) as raised:
        load_tokenizer(Slow())
    assert_explains(raised, "a fast tokenizer of transformers", "Slow", "Save it as tokenizer.json")

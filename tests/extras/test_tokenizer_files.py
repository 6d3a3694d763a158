"""Tokenizer files of Hugging Face and SentencePiece, trained on the spot; needs `palm-dual[tokenizers]`."""

import hashlib

import numpy as np
import pytest
import sentencepiece
from cases import assert_explains
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from trained_tokenizers import byte_level, sentences

from palm import DataError
from palm.data import pieces
from palm.data.tokenizer import load_tokenizer
from palm.data.windows import check_vocabulary, open_corpus

TEXT = "the palm grows by the sea, and the sea is naïve about the palm: €5, 🌴.\n"
KINDS = ("json", "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    byte_level(TEXT).save(str(folder / "t.json"))
    (folder / "t.model").write_bytes(sentences(TEXT))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def file(request, files):
    return files / f"t.{request.param}"


@pytest.fixture(scope="module")
def tokenizer(file):
    return load_tokenizer(file)


def test_a_file_is_known_by_its_name_and_digest(file, tokenizer):
    assert tokenizer.name == file.name
    assert tokenizer.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert 256 < tokenizer.num_tokens <= 300 + 3


def test_the_packages_own_reading_is_the_same(files):
    hugging = Tokenizer.from_file(str(files / "t.json")).encode(TEXT).ids
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(files / "t.model")).encode(TEXT)
    for name, ids in (("t.json", hugging), ("t.model", pieces)):
        found = load_tokenizer(files / name).encode(TEXT)
        assert found.dtype == np.int64
        assert found.tolist() == ids


def test_text_is_shortened_and_comes_back(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert len(ids) < 0.8 * len(TEXT.encode())
    assert 0 <= ids.min() <= ids.max() < tokenizer.num_tokens
    assert tokenizer.decode(ids).strip() == TEXT.strip()
    assert np.array_equal(ids, tokenizer.encode(TEXT.encode()))


def test_the_empty_text_has_no_ids(tokenizer):
    ids = tokenizer.encode("")
    assert (ids.shape, ids.dtype) == ((0,), np.int64)
    assert tokenizer.decode(ids) == ""


def test_bytes_that_are_no_text_are_refused(tokenizer):
    with pytest.raises(DataError) as raised:
        tokenizer.encode(b"ab\xff")
    assert_explains(raised, "text must be UTF-8", "got byte 255 at 2", "Convert the text")


def test_ids_that_no_token_has_are_replaced(tokenizer):
    ids = [int(id) for id in tokenizer.encode("sea")]
    decoded = tokenizer.decode([*ids, tokenizer.num_tokens, -1, *ids, 10**9])
    assert decoded == f"{tokenizer.decode(ids)}\ufffd\ufffd{tokenizer.decode(ids)}\ufffd"


def test_a_stream_gives_whole_characters_as_soon_as_they_are_whole(tokenizer):
    ids = tokenizer.encode("the 🌴 palm")
    stream = tokenizer.stream()
    heard = [stream.feed(int(id)) for id in ids]
    assert "".join(heard) == tokenizer.decode(ids)
    assert stream.finish() == ""
    assert sum(bool(text) for text in heard) >= 3
    assert "" in heard  # the first bytes of the palm
    assert not any("\ufffd" in text for text in heard)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(text=st.text())
def test_a_streamed_text_is_the_text(files, kind, text):
    tokenizer = load_tokenizer(files / f"t.{kind}")
    ids = tokenizer.encode(text).tolist()
    stream = tokenizer.stream()
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)
    if kind == "json":
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 310)))
def test_any_ids_can_be_streamed(files, kind, ids):
    tokenizer = load_tokenizer(files / f"t.{kind}")
    stream = tokenizer.stream()
    assert "".join(map(stream.feed, ids)) + stream.finish() == tokenizer.decode(ids)


def test_spaces_after_an_unknown_id_are_streamed(files):
    """A decoder drops the space that an isolated text starts with, and here every text before it is one."""
    tokenizer = load_tokenizer(files / "t.model")
    [space, mark] = sentencepiece.SentencePieceProcessor(model_file=str(files / "t.model")).piece_to_id(
        ["\N{LOWER ONE EIGHTH BLOCK}", "<0x27>"]
    )
    ids = [tokenizer.num_tokens, space, mark, space, space, mark, space]
    stream = tokenizer.stream()
    heard = "".join(map(stream.feed, ids)) + stream.finish()
    assert heard == tokenizer.decode(ids) == "\ufffd'  ' "


def test_what_a_file_says_of_length_and_special_tokens_does_not_touch_the_text(files, tmp_path):
    made = Tokenizer.from_file(str(files / "t.json"))
    plain = made.encode(TEXT).ids
    made.add_special_tokens([AddedToken("<s>", special=True)])
    begin = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    made.enable_truncation(5)
    made.enable_padding(length=200)
    made.save(str(tmp_path / "t.json"))
    assert len(Tokenizer.from_file(str(tmp_path / "t.json")).encode(TEXT).ids) == 200
    tokenizer = load_tokenizer(tmp_path / "t.json")
    assert tokenizer.encode(TEXT).tolist() == plain
    assert tokenizer.num_tokens == begin + 1
    assert tokenizer.decode([begin, *plain]) == "<s>" + TEXT


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"not a tokenizer"])
@pytest.mark.parametrize(("kind", "package"), [("json", "tokenizers"), ("model", "sentencepiece")])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, kind, package, content):
    file = tmp_path / f"t.{kind}"
    file.write_bytes(content)
    with pytest.raises(DataError) as raised:
        load_tokenizer(file)
    what = {"json": ", a tokenizer.json of Hugging Face", "model": ", a model of SentencePiece"}[kind]
    assert_explains(raised, f"a file that {package} can read{what}", f"tokenizer={file}", "Get another copy")


def test_a_corpus_is_encoded_and_knows_how_much_text_a_token_is(tokenizer):
    text = TEXT * 50
    found = open_corpus(text, tokenizer)
    ids = found.read(0, len(found))
    assert np.array_equal(ids, tokenizer.encode(text))
    assert found.bytes_per_token == len(text.encode()) / len(ids) > 1.2
    assert found.parts[0].dtype == np.uint16
    check_vocabulary(found, tokenizer.num_tokens)
    with pytest.raises(DataError, match=f"got id {ids[0]} at 0"):
        check_vocabulary(found, int(ids[0]))


def test_its_digest_is_of_text_and_tokenizer(files):
    json, model = (load_tokenizer(files / f"t.{kind}") for kind in KINDS)
    digests = [open_corpus(text, t).digest for t in (None, json, model) for text in ("a b", "a c")]
    assert len(set(digests)) == 6
    assert open_corpus("a b", json).digest == digests[2]


def test_the_files_of_a_folder_are_encoded_one_by_one(tmp_path, tokenizer):
    texts = {"a.txt": "the palm", "b.txt": "", "c/d.txt": "the sea"}
    (tmp_path / "c").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = open_corpus(tmp_path, tokenizer)
    expected = np.concatenate([tokenizer.encode(text) for text in ("the palm\n", "\n", "the sea")])
    assert np.array_equal(found.read(0, len(found)), expected)
    assert found.bytes_per_token == len("the palm\n\nthe sea") / len(expected)


def test_a_file_that_is_no_text_is_named(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError) as raised:
        open_corpus(tmp_path, tokenizer)
    assert_explains(raised, str(tmp_path / "b.png"), "text must be UTF-8", "got byte 137 at 0")


@pytest.mark.parametrize(
    ("text", "least"), [(TEXT * 40, 20), (TEXT.replace("\n", " ") * 40, 20), ("€" * 999, 1)]
)
def test_a_long_text_is_encoded_in_pieces_and_nothing_is_lost(files, monkeypatch, text, least):
    tokenizer = load_tokenizer(files / "t.json")
    seen = []
    monkeypatch.setattr(pieces, "PIECE", 100)
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda piece: (seen.append(piece), encode(piece))[1])
    found = open_corpus(text, tokenizer)
    assert b"".join(seen).decode() == text
    assert len(seen) >= least
    assert tokenizer.decode(found.read(0, len(found))) == text


def test_a_text_of_no_tokens_is_refused(files):
    with pytest.raises(DataError) as raised:
        open_corpus("  \n ", load_tokenizer(files / "t.model"))
    assert_explains(raised, "data must be at least one token long", "got data=text", "Use another")

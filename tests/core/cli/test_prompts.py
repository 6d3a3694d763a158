"""`palm generate --prompts`: what a file of prompts may hold, and what is said of a line that it may not."""

import io
import json
import sys

import numpy as np
import pytest
from cases import assert_explains, small

from palm import DataError, TokenError
from palm.cli import prompts
from palm.cli.main import main
from palm.cli.prompts import Prompts, line_of, read_prompts
from palm.data.tokenizer import ByteTokenizer
from palm.generation.rows import Generation


def read(folder, name: str, content: bytes) -> list[dict]:
    file = folder / name
    file.write_bytes(content)
    return read_prompts(str(file)).fields


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one", ["one"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        ("\ufeffé\n €\n".encode(), ["é", " €"]),
        (b' {"prompt": "x"}\n#\n', [' {"prompt": "x"}', "#"]),
        ("a\u2028b\x0bc\x1b[31m\n".encode(), ["a\u2028b\x0bc\x1b[31m"]),  # one line
    ],
)
def test_each_line_of_a_text_is_a_prompt(content, expected, tmp_path):
    assert read(tmp_path, "prompts.txt", content) == [{"prompt": text} for text in expected]


@pytest.mark.parametrize("name", ["prompts.jsonl", "PROMPTS.JSONL"])
def test_each_line_of_json_is_an_object_with_a_prompt(name, tmp_path):
    lines = [{"prompt": "a\nb", "id": 7, "more": {"x": [1.5, None, "é"]}}, {"prompt": [1, 2]}, {"prompt": []}]
    content = "\r\n".join(map(json.dumps, lines)).encode()
    assert read(tmp_path, name, content) == lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"one\n{two\n", ["one", "{two"]), (b'{"prompt": "x"}\n', ["x"])],
)
def test_standard_input_is_json_where_it_begins_with_a_brace(content, expected, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_prompts("-").fields == [{"prompt": text} for text in expected]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("p.txt", b"", ("prompts must be from 1 to 1,048,576, one a line; got 0 in", "Add one")),
        ("p.txt", b"a\n\nb\n", ("p.txt, line 2: ", "got an empty line", "Remove the line")),
        ("p.txt", b"a\n\r\n", ("p.txt, line 2: ", "got an empty line")),
        ("p.txt", b"a\nb\xff\n", ("p.txt, line 2: ", "must be UTF-8; got byte 255 at 1", "Convert")),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": \n',
            ("p.jsonl, line 2: ", "must be a JSON object", "Correct"),
        ),
        ("p.jsonl", b'{"prompt": "a"}\n\n', ("p.jsonl, line 2: ", "must be a JSON object")),
        ("p.jsonl", b'"a"', ("line 1: ", "it must be a JSON object; got str")),
        ("p.jsonl", b'{"text": "a"}', ("must not have the field text", "Rename it")),
        ("p.jsonl", b'{"prompt": "a", "logprobs": 1}', ("must not have the field logprobs",)),
        ("p.jsonl", b'{"id": 3}', ('"prompt" must be a text or a list of ids; got no such field', "Correct")),
        ("p.jsonl", b'{"prompt": null}', ("a list of ids; got None",)),
        ("p.jsonl", b'{"prompt": [1, true]}', ("a list of ids; got [1, True]",)),
        ("p.jsonl", b'{"prompt": [[1]]}', ("a list of ids; got [[1]]",)),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', ("line 1: ", "prompt must occur once")),
        ("p.jsonl", b'{"prompt": "a", "x": NaN}', ("line 1: ", "a number must be finite; got NaN")),
        ("p.jsonl", b'{"prompt": "a", "x": ' + b"[" * 90 + b"]" * 90 + b"}", ("at most 64 levels deep",)),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_with_its_number(name, content, parts, tmp_path):
    with pytest.raises(DataError) as raised:
        read(tmp_path, name, content)
    assert_explains(raised, *parts)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "_MOST_PROMPTS", 3)
    assert len(read(tmp_path, "p.txt", b"a\n" * 3)) == 3
    with pytest.raises(DataError, match=r"from 1 to 3, one a line; got 4 in .*Split the file"):
        read(tmp_path, "p.txt", b"a\n" * 4)
    monkeypatch.setattr(prompts, "MOST_BYTES", 3)
    with pytest.raises(DataError, match=r"prompts must be a readable file.* 4 bytes, more than 3"):
        read(tmp_path, "p.txt", b"aaaa")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"aaaa")))
    with pytest.raises(DataError, match="at most 3 bytes; got more on standard input"):
        read_prompts("-")


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_file_that_cannot_be_read_is_refused(name, tmp_path):
    with pytest.raises(DataError, match=r"prompts must be a readable file, or - for standard input; got "):
        read_prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        ("", TokenError, "prompt must have at least one token"),
        ([], TokenError, "prompt must have at least one token"),
        ([300], TokenError, "256"),
        ([2**70], TokenError, "tokens must be"),
        ("\ud800", DataError, "lone surrogate"),
    ],
)
def test_a_prompt_that_the_model_does_not_know_is_refused_with_its_line(prompt, error, says):
    given = Prompts("p.jsonl", [{"prompt": "a"}, {"prompt": prompt}])
    with pytest.raises(error) as raised:
        given.encoded(ByteTokenizer(), small(num_tokens=256), 1)
    assert_explains(raised, "p.jsonl, line 2: ", says)


def test_a_line_of_the_output_has_the_fields_of_its_prompt_first():
    one = Generation("\x1b[2J é", np.array([1, 2]), np.array([-0.5, -np.inf]), "stop")
    told = line_of({"prompt": "x", "id": 3}, one, logprobs=True)
    assert list(told) == ["prompt", "id", "text", "ids", "finish", "logprobs"]
    line = json.dumps(told)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["logprobs"] == [-0.5, "-inf"]
    unknown = Generation(None, np.array([1]), np.array([0.0]), "length")
    assert line_of({}, unknown, logprobs=False) == {"text": None, "ids": [1], "finish": "length"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --prompt or --prompts must be given; got neither"),
        (["--prompt", "a", "--prompts", "b"], "either --prompt or --prompts must be given; got both"),
        (["--prompt", "a", "--batch", "2"], "--batch must be given with --prompts"),
        (["--prompts", "b", "--echo"], "--echo must be given with --prompt"),
        (["--prompts", "b", "--batch", "0"], "batch must be a whole number of at least 1"),
        (["--prompts", "b", "--logprobs", "file"], "logprobs must be - with --prompts"),
        (["--prompts", "/nowhere/b"], "prompts must be a readable file"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_loaded(arguments, words, capsys):
    assert main(["generate", "/nowhere", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"palm: {words}")

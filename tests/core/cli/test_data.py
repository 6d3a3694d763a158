"""`palm data tokenize` and `palm data info`."""

import re

import numpy as np
import pytest
from shards import inline, write_rows

from palm.cli.main import main
from palm.data.corpus import open_corpus
from palm.data.shards import MANIFEST


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_bytes(b"the palm\n" * 100)
    return tmp_path / "text"


def test_tokenize_writes_shards_and_says_where_alone(text, tmp_path, monkeypatch, capsys):
    inline(monkeypatch, 300)
    out = tmp_path / "out"
    assert main(["data", "tokenize", str(text), "--tokenizer", "bytes", "--out", str(out)]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert open_corpus(out).digest == open_corpus(text).digest


def test_workers_are_passed_on(text, tmp_path, capsys):
    command = ["data", "tokenize", str(text), "--tokenizer", "bytes", "--out", str(tmp_path / "out")]
    assert main([*command, "--workers", "0"]) == 2
    assert "workers must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["--tokenizer", "--out"])
def test_tokenize_needs_a_tokenizer_and_a_place(text, tmp_path, capsys, missing):
    flags = {"--tokenizer": "bytes", "--out": str(tmp_path / "out")}
    given = [word for flag, value in flags.items() if flag != missing for word in (flag, value)]
    with pytest.raises(SystemExit):
        main(["data", "tokenize", str(text), *given])
    assert missing in capsys.readouterr().err


def info(path, capsys):
    assert main(["data", "info", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(re.split(r"\s{2,}", line.strip()) for line in lines if line.strip())


def test_info_of_shards_and_of_text(text, tmp_path, capsys):
    folder = write_rows(tmp_path / "shards", [np.arange(1500)], 1600)
    assert info(folder, capsys) == {
        "data": str(folder),
        "tokens": "1,500",
        "text": "2.93 KiB",
        "bytes per token": "2",
        "tokenizer": "t.json",
        "SHA-256": open_corpus(folder).digest,
    }
    told = info(text, capsys)
    assert (told["tokens"], told["text"], told["tokenizer"]) == ("900", "900 B", "bytes")


def test_info_of_ids_says_what_is_unknown(tmp_path, capsys):
    np.save(tmp_path / "ids.npy", np.arange(5))
    told = info(tmp_path / "ids.npy", capsys)
    assert (told["tokens"], told["text"], told["tokenizer"]) == ("5", "unknown", "unknown")
    assert "bytes per token" not in told


def test_info_verifies_every_byte(tmp_path, capsys):
    folder = write_rows(tmp_path / "shards", [np.arange(15)], 1600)
    (folder / "shard-00000.npy").write_bytes((folder / "shard-00000.npy").read_bytes()[:-1] + b"\1")
    assert main(["data", "info", str(folder)]) == 2
    assert "shards as they were written" in capsys.readouterr().err
    (folder / MANIFEST).unlink()
    assert main(["data", "info", str(folder)]) == 2

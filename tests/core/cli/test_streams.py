"""Commands whose output is closed, full or of another encoding, and names that would control a terminal."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import python_path
from recordings import side
from rich.text import Text

from palm.checkpoint.checkpoint import save_arrays
from palm.cli.display import Terminal
from palm.cli.main import main
from palm.files.names import visible
from palm.parity.recording.bundle import write_bundle

INFO = ["info", "tiny"]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
EVIL = "\x1b[31mred\u202e"


def shell(words: str, *arguments: str, flags: tuple[str, ...] = (), **environment: str):
    """palm in a shell, where `words` say where its streams go."""
    command = [sys.executable, *flags, "-m", "palm", *arguments]
    return subprocess.run(
        ["sh", "-c", f'"$@" {words}', "sh", *command],
        env={**os.environ, "PYTHONPATH": python_path(), **environment},
        capture_output=True,
        check=False,
    )


def lines(stream: bytes) -> list[str]:
    return stream.decode().splitlines()


@FULL
@pytest.mark.parametrize("arguments", [INFO, ["--version"], ["--help"], ["info", "--help"]])
@pytest.mark.parametrize(("words", "reason"), [(">/dev/full", "No space"), (">&-", "Bad file descriptor")])
def test_output_that_cannot_be_written_is_one_line_and_status_2(words, reason, arguments):
    done = shell(words, *arguments)
    [line] = lines(done.stderr)
    assert line.startswith(f"palm: standard output must be writable; got {reason}")
    assert done.returncode == 2


@FULL
@pytest.mark.parametrize("words", ["2>&-", "2>/dev/full"])
def test_without_standard_error_a_command_does_its_work(words):
    done = shell(words, *INFO)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "191,744" in done.stdout.decode()


@FULL
@pytest.mark.parametrize("words", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_an_error_that_nobody_sees_is_not_on_standard_output(words):
    done = shell(words, "info", "nothing")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.mark.parametrize("flags", [("-O",), ("-OO",)])
@pytest.mark.parametrize("arguments", [INFO, ["--help"], ["train", "--help"], ["compare", "--help"]])
def test_it_runs_without_docstrings_and_assertions(arguments, flags):
    done = shell("", *arguments, flags=flags)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
@pytest.mark.parametrize("arguments", [INFO, ["--help"], ["compare", "--help"], ["info", "é"]])
def test_it_runs_where_there_is_only_ascii(arguments, environment):
    done = shell("", *arguments, **environment)
    assert done.returncode == (2 if "é" in arguments else 0)
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_a_path_that_is_no_text_is_shown_by_its_bytes(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff"
    command = [os.fsencode(sys.executable), b"-m", b"palm", b"info", name]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}/\\xff" in done.stderr.decode()


@pytest.fixture(params=["checkpoint", "bundle"])
def evil(request, tmp_path):
    path = tmp_path / EVIL
    if request.param == "checkpoint":
        one = side("torch")
        save_arrays(one.config, dict(one.weights), path)
        return ["info", str(path)]
    write_bundle(side("torch"), path)
    return ["compare", str(path), str(path), "--out", str(tmp_path / "out")]


def test_names_do_not_control_the_terminal_or_the_page(evil, capsys, tmp_path):
    assert main(evil) == 0
    assert main([evil[0], f"{evil[1]}/nowhere", *evil[2:]]) == 2
    told = capsys.readouterr()
    pages = [file.read_text() for file in tmp_path.glob("out/*")]
    for text in (told.out, told.err, *pages):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\\x1b[31mred\\u202e" in told.out


def test_what_a_line_of_a_terminal_shows_has_no_control_characters():
    told = io.StringIO()
    console = Terminal()
    console.file = told
    console.print(f"[b]{EVIL}[/b]\nnext", Text(EVIL))
    assert "\x1b" not in told.getvalue()
    assert told.getvalue().count("\\x1b[31mred\\u202e") == 2
    assert told.getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("name", "shown"), [("é 表", "é 表"), ("\udcff", "\\xff"), ("\x9b\u2028", "\\x9b\\u2028")]
)
def test_names_are_shown_whole(name, shown):
    assert visible(name) == shown


@pytest.mark.parametrize(
    "arguments",
    [[EVIL], ["info", "tiny", EVIL], ["train", "--backend", EVIL], ["train", f"--{EVIL}", "3"]],
    ids=["command", "argument", "choice", "flag"],
)
def test_the_parser_shows_what_it_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert told.out == ""
    assert "\\x1b[31mred" in told.err
    assert all(line.isprintable() for line in told.err.splitlines())

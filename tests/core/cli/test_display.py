"""What a command prints: wrapped on a terminal of 80 columns, one line for each row where there is none."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from reports import recording

from palm.parity.recording.bundle import write_bundle
from palm.parity.recording.excerpt import excerpt_of

LONG = "a-folder-whose-name-is-longer-than-a-terminal-is-wide-" * 3


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The command that compares two bundles, one of which is faulty, and the report's folder."""
    folder = tmp_path_factory.mktemp("bundles") / LONG
    for name, side in (("a", recording("torch", 1)), ("b", recording("jax", 2, faulty=True))):
        write_bundle(excerpt_of(side), folder / name)
    out = folder / "out"
    return ["compare", str(folder / "a"), str(folder / "b"), "--out", str(out)], out


def on_a_terminal(arguments, columns):
    """What a command prints on a terminal of so many columns, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "palm", *arguments], stdout=slave, stderr=subprocess.PIPE, env=environment
    )
    os.close(slave)
    read = b""
    try:
        while chunk := os.read(master, 1 << 16):
            read += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    _, errors = process.communicate()
    assert process.returncode in (0, 1), errors
    return re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).replace("\r\n", "\n")


def in_a_pipe(arguments, **environment):
    command = [sys.executable, "-m", "palm", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


# CI systems set FORCE_COLOR, and a shell may export COLUMNS: neither makes a pipe a terminal.
@pytest.mark.parametrize("environment", [{"FORCE_COLOR": "1"}, {"COLUMNS": "60"}], ids=str)
def test_a_pipe_gets_each_row_and_each_sentence_in_one_line(compared, environment):
    arguments, out = compared
    lines = in_a_pipe(arguments, NO_COLOR="1", **environment).splitlines()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    verdict = report["verdict"].removeprefix(f"{report['outcome']} ")
    assert any(line.endswith(f"  {verdict}") for line in lines)
    assert str(out / "report.html") in lines
    assert max(map(len, lines)) > 80
    assert not any(line.endswith(" " * 30) for line in lines)  # no row is padded to the longest sentence
    rows = {line.split()[0]: line.split() for line in lines if line.strip() and line[0] != " "}
    for finding in report["findings"]:
        if finding["kind"] != "gradient":
            assert len(rows[finding["name"]]) == 7


def test_a_terminal_of_80_columns_gets_no_longer_line(compared):
    arguments, out = compared
    text = on_a_terminal(arguments, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert str(out / "report.html") in text.replace("\n", "")


def test_a_wider_terminal_is_used(compared):
    arguments, _ = compared
    assert 100 < max(map(len, on_a_terminal(arguments, 120).splitlines())) <= 120


@pytest.mark.parametrize("preset", ["tiny", "palm-540b"])
def test_other_commands_print_the_same_in_a_pipe_as_on_a_wide_terminal(preset):
    assert in_a_pipe(["info", preset]).split() == on_a_terminal(["info", preset], 200).split()

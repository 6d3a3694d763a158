import subprocess
import sys

import pytest

from palm.cli.main import main


def test_info_prints_the_papers_parameter_count(capsys):
    assert main(["info", "palm-540b"]) == 0
    printed = capsys.readouterr().out
    assert "540,356,474,880" in printed
    assert "blocks.feedforward.gate" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_python_m_palm_is_the_same_command():
    run = [sys.executable, "-m", "palm", "info", "tiny"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "191,744" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "palm-9b"], "preset must be one of"),
        (["compare", "--preset", "huge"], "preset must be one of"),
        (["compare", "--data", "/nowhere/text"], "data must be a readable file"),
        (["compare", "--checkpoint", "/nowhere"], "path must be a checkpoint directory"),
        (["compare", "--length", "99999999"], "at least one window"),
        (["compare", "--length", "1"], "length must be at least 2"),
        (["compare", "--batch", "0"], "batch must be at least 1"),
        (["compare", "--data", "short"], "got 5 tokens of short for a window of 256"),
        (["compare", "--data", "empty"], "got data=empty. It is empty"),
        (
            ["record", "torch", "--data", "short", "--out", "bundle"],
            "got 5 tokens of short for a window of 256",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_usage_is_one_line_and_status_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("short")
    (tmp_path / "empty").touch()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    "arguments", [[], ["paint"], ["compare", "--dtype", "float8"], ["info", "--length", "x"]]
)
def test_the_parser_refuses_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "None" not in capsys.readouterr().err


def test_choices_are_told_in_their_order(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["train", "--backend", "tensorflow"])
    assert "Expected one of ('torch', 'jax')." in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 60])
def test_help_is_no_wider_than_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "usage: palm generate" in lines[0]
    assert "Print what a trained model writes after a prompt" in " ".join(lines)

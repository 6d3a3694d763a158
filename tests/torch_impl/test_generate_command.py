"""`palm generate`: what it checks before it generates, and prompts from any locale."""

import json
import os
import subprocess
import sys

import pytest
from cases import python_path, small

import palm
from palm.cli.main import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    palm.save(palm.build(small(num_tokens=256), backend="torch"), path)
    return path


@pytest.mark.parametrize(("where", "why"), [("missing/file", "no folder"), (".", "a folder")])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_generated(
    where, why, checkpoint, tmp_path, capsys
):
    file = tmp_path / where
    assert main(["generate", str(checkpoint), "--prompt", "a", "--logprobs", str(file)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"logprobs must be a writable file; got {file}: {why}" in told.err


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("changes", [{}, ASCII, {"PYTHONIOENCODING": "ascii"}], ids=["UTF-8", "C", "ascii"])
def test_a_prompt_is_the_same_in_every_locale(changes, checkpoint, tmp_path):
    palm_command = [sys.executable, "-m", "palm", "generate", str(checkpoint), "--max-new-tokens", "3"]
    ids = {}
    for name, environment in (("here", {}), ("there", changes)):
        log = tmp_path / name
        done = subprocess.run(
            [*palm_command, "--prompt", "é", "--logprobs", str(log)],
            env={**os.environ, "PYTHONPATH": python_path(), **environment},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        ids[name] = [json.loads(line) for line in log.read_text().splitlines()]
    assert ids["here"] == ids["there"]

"""`palm generate --prompts`: a line for each prompt, whatever the batch, and the same in both frameworks."""

import io
import json
import os
import subprocess
import sys

import pytest
from cases import python_path, small

import palm
from palm.cli import text as command
from palm.cli.main import main

PROMPTS = [
    {"prompt": "The ", "id": "a"},
    {"prompt": [7], "more": [1, {"x": None}]},
    {"prompt": "A longer prompt than the others é"},
    {"prompt": "\n"},
    {"prompt": "The "},
]
SAMPLINGS = {
    "greedy": ["--temperature", "0"],
    "drawn": ["--temperature", "0.9", "--top-k", "40", "--seed", "3"],
}


@pytest.fixture(scope="module")
def model():
    return palm.build(small(num_tokens=256, depth=1), backend="torch", seed=1)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "checkpoint"
    palm.save(model, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(fields) + "\n" for fields in PROMPTS))
    return path


@pytest.fixture
def written(checkpoint, file, capsys):
    def write(*arguments: object, prompts: object = file) -> list[str]:
        count = ["--max-new-tokens", "12"]
        assert (
            main(["generate", str(checkpoint), "--prompts", str(prompts), *count, *map(str, arguments)]) == 0
        )
        return capsys.readouterr().out.splitlines()

    return write


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_lines_are_the_same_whatever_the_batch_and_the_framework(sampling, written):
    lines = written(*sampling)
    assert [{**PROMPTS[i], **json.loads(line)} for i, line in enumerate(lines)] == [*map(json.loads, lines)]
    assert len(lines) == 5
    for size in (1, 2, 5):
        assert written("--batch", size, *sampling) == lines
    assert written("--batch", 2, "--backend", "jax", *sampling) == lines
    texts = [json.loads(line)["text"] for line in lines]
    # Prompts 0 and 4 are the same, and are drawn each from its own noise.
    assert (texts[0] == texts[4]) is (sampling == SAMPLINGS["greedy"])


def test_a_line_says_what_palm_generate_returns(model, written):
    options = {"max_new_tokens": 12, "temperature": 0.9, "stop": ["e"], "stop_tokens": [65]}
    lines = written(
        "--temperature", "0.9", "--stop", "e", "--stop-tokens", "65", "--logprobs", "-", "--batch", 2
    )
    found = palm.generate(model, [fields["prompt"] for fields in PROMPTS], **options)
    for line, fields, one in zip(map(json.loads, lines), PROMPTS, found, strict=True):
        logprobs = line.pop("logprobs")
        told = {"text": one.text, "ids": one.tokens.tolist(), "finish": one.finish}
        assert line == {**fields, **told}
        assert logprobs == pytest.approx(one.logprobs.tolist(), abs=1e-5)


def test_a_part_of_a_list_is_written_as_in_the_list(model):
    prompts = [fields["prompt"] for fields in PROMPTS]
    whole = palm.generate(model, prompts, max_new_tokens=12)
    part = palm.generate(model, prompts[3:], max_new_tokens=12, first_row=3)
    assert [one.tokens.tolist() for one in part] == [one.tokens.tolist() for one in whole[3:]]
    other = palm.generate(model, prompts[3:], max_new_tokens=12)
    assert [one.tokens.tolist() for one in other] != [one.tokens.tolist() for one in part]
    with pytest.raises(palm.ConfigError, match="first_row must be a whole number of at least 0"):
        palm.generate(model, [1], first_row=-1)


def test_a_prompt_of_the_file_is_written_as_it_is_alone(checkpoint, tmp_path, written, capsys):
    (tmp_path / "one.txt").write_text("The \n")
    [line] = written(prompts=tmp_path / "one.txt")
    assert main(["generate", str(checkpoint), "--prompt", "The ", "--max-new-tokens", "12"]) == 0
    assert json.loads(line)["text"] == capsys.readouterr().out


def test_nothing_is_written_if_any_line_is_wrong(checkpoint, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prompt": [1]}\n{"prompt": [256]}\n')
    assert main(["generate", str(checkpoint), "--prompts", str(tmp_path / "p.jsonl"), "--batch", "1"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "p.jsonl, line 2: tokens must lie in [0, num_tokens) = [0, 256); got token=256" in told.err


@pytest.mark.parametrize("backend", palm.available_backends())
def test_a_prompt_is_held_to_the_positions_that_xpos_has(backend, tmp_path, capsys):
    """100 positions, which are no whole number of blocks: 90 and ten more fit, and 91 and ten more do not."""
    config = small(num_tokens=256, depth=1, positions="xpos", xpos_base=100 / 48)
    palm.save(palm.build(config, backend=backend), tmp_path / "xpos")
    command = ["generate", str(tmp_path / "xpos"), "--backend", backend, "--batch", "1", "--prompts"]
    for longest, status in ((90, 0), (91, 2)):
        (tmp_path / "p.txt").write_text("ab\n" + "x" * longest + "\n")
        assert main([*command, str(tmp_path / "p.txt"), "--max-new-tokens", "10"]) == status
        told = capsys.readouterr()
        assert told.out.count("\n") == (2 if status == 0 else 0)
    assert "p.txt, line 2: tokens must have at most 48·xpos_base = 100 positions" in told.err
    assert "got n=101" in told.err


def test_the_lines_of_a_batch_go_as_soon_as_it_is_done(checkpoint, file, monkeypatch):
    seen, raw = [], io.BytesIO()
    right = command.generate_text

    def generate_text(*arguments, **options):
        seen.append(raw.getvalue().count(b"\n"))
        return right(*arguments, **options)

    monkeypatch.setattr(command, "generate_text", generate_text)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=False))
    options = ["--batch", "2", "--max-new-tokens", "1"]
    assert main(["generate", str(checkpoint), "--prompts", str(file), *options]) == 0
    assert seen == [0, 2, 4]


def shell(words: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "palm", "generate", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", words, "bash", *command],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        check=False,
    )


def test_a_reader_that_has_enough_ends_it_quietly(checkpoint, tmp_path):
    (tmp_path / "p.txt").write_text("The \n" * 400)
    options = (checkpoint, "--prompts", tmp_path / "p.txt", "--batch", 4, "--max-new-tokens", 4)
    done = shell('"$@" | head -n 1; exit ${PIPESTATUS[0]}', *options)
    assert (done.returncode, done.stderr) == (141, b"")
    assert json.loads(done.stdout)["prompt"] == "The "


def test_prompts_come_from_standard_input(checkpoint):
    options = (checkpoint, "--prompts", "-", "--batch", 1, "--max-new-tokens", 2, "--temperature", 0)
    done = shell('printf "The \\nThe \\n" | "$@"', *options)
    assert (done.returncode, done.stderr) == (0, b"")
    one, two = done.stdout.splitlines()
    assert one == two

"""`palm info` describes a preset, a run and a checkpoint, without reading weights."""

import json
import re
import shutil
from io import StringIO

import pytest
from cases import ROOT
from fuzz.readers import reseal
from rich.console import Console

from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.cli.main import main
from palm.training.run_folder import Run

WRITTEN = ROOT / "tests/fixtures/v0_1_0"


def shown(capsys, *arguments) -> dict[str, str]:
    """What is printed, by the words before it."""
    assert main(["info", *map(str, arguments)]) == 0
    lines = (line.strip() for line in capsys.readouterr().out.splitlines())
    return dict(re.split(" {2,}", line) for line in lines if line)


@pytest.mark.parametrize("name", ["run-torch", "run-torch/best", "run-torch/step-00000004"])
def test_a_run_is_described_by_its_newest_its_best_or_any_checkpoint(name, capsys):
    run = WRITTEN / "run-torch"
    told = shown(capsys, WRITTEN / name)
    settings = json.loads((run / "run.json").read_text())
    first, *_, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert told["checkpoint"] == str(run / "step-00000004")
    assert told["step"] == f"4 of {settings['recipe']['steps']}"
    assert told["trained in"] == settings["backend"]
    losses = f"{first['loss']:.4f} → {last['loss']:.4f} nats, steps 1 → 4"
    assert told["training loss"] == losses
    assert told["validation"] == f"{last['val_loss']:.4f} nats"
    assert told["checkpoints"] == "4 (best)"
    assert told["tokenizer"] == "bytes"
    config, arrays = load_arrays(run)
    fields = {name: str(value) for name, value in config.to_dict().items() if name != "norm"}  # also a kind
    assert fields.items() <= told.items()
    assert told["parameters"] == f"{sum(array.size for array in arrays.values()):,}"


def with_settings(tmp_path, **changes):
    """A copy of a run whose settings say more, as sealed as they were."""
    run = Run(shutil.copytree(WRITTEN / "run-torch", tmp_path / "run"))
    settings = run.settings()
    recipe = {**settings["recipe"], **changes.pop("recipe", {})}
    run.write_settings({**settings, **changes, "recipe": recipe})
    for file in run.path.glob("step-*/training.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "recipe": recipe}))
        reseal(file)
    return run.path


def test_a_run_shows_what_was_trained_and_from_what(tmp_path, capsys):
    origin = {"repository": "who/what", "revision": "e" * 40}
    start = {"checkpoint": "/x/runs/base/step-00000100", "weights": "ab" * 32, "origin": origin}
    turns = [{"after": 0, "backend": "torch"}, {"after": 3, "backend": "jax"}]
    recipe = {"freeze": "embedding", "pack": 7, "seed": 5, "learning_rate": 0.25}
    told = shown(capsys, with_settings(tmp_path, start=start, turns=turns, recipe=recipe))
    assert told["started from"] == "base/step-00000100 abababab"
    assert told["origin"] == "who/what " + "e" * 40
    assert told["trained in"] == "torch (steps 1–3), jax (steps 4–4)"
    assert told["frozen"] == f"embedding: {load_arrays(WRITTEN / 'run-torch')[1]['embedding'].size:,} weights"
    assert told["pack"] == "documents end with id 7"
    assert told["seed"] == "5"
    assert told["recipe"].startswith("adafactor, batch ")
    assert told["learning rate"].startswith("0.25, ")


def test_a_run_that_would_name_its_checkpoint_began_from_the_seed(tmp_path, capsys):
    path = with_settings(tmp_path, turns=[{"after": 0, "backend": "torch"}])
    assert shown(capsys, path)["started from"] == "weights of the seed"


def test_a_run_of_an_older_version_does_not_say_more_than_it_knows(capsys):
    told = shown(capsys, WRITTEN / "run-torch")
    assert told["started from"] == "weights of the seed, or not recorded"
    assert not {"frozen", "pack", "origin"} & told.keys()


@pytest.mark.parametrize(
    "start", [7, {}, {"checkpoint": None, "weights": "x"}, {"checkpoint": 7, "weights": "ab" * 32}]
)
def test_a_start_that_palm_does_not_write_is_refused(tmp_path, start, capsys):
    assert main(["info", str(with_settings(tmp_path, start=start))]) == 2
    assert "run.json must describe a run" in capsys.readouterr().err


def test_values_stand_behind_their_names_and_a_checksum_in_one_line(tmp_path, monkeypatch):
    config, arrays = load_arrays(WRITTEN / "checkpoint-torch")
    origin = {"source": "hub", "repository": "who/what", "revision": "e" * 40, "sha256": "ab" * 32}
    save_arrays(config, arrays, tmp_path / "base", origin=origin)
    monkeypatch.chdir(tmp_path)
    printed = StringIO()
    monkeypatch.setattr("palm.cli.info.Terminal", lambda: Console(file=printed, width=80))
    assert main(["info", "base"]) == 0
    lines = printed.getvalue().splitlines()
    assert "sha256      " + "ab" * 32 in map(str.rstrip, lines)
    assert all(not re.search(r"\S {30,}\S", line) for line in lines)


def test_a_runs_tokenizer_is_named(capsys):
    assert shown(capsys, WRITTEN / "run-jax-tokenizer")["tokenizer"] == "tokenizer.json"


def test_a_checkpoint_outside_of_a_run_is_described_without_a_training(capsys):
    told = shown(capsys, WRITTEN / "checkpoint-bfloat16")
    assert told["dtype"] == "bfloat16"
    assert told["depth"] == "2"
    assert not {"step", "trained in", "checkpoints"} & told.keys()


def test_a_checkpoint_need_not_say_what_trained_it(tmp_path, capsys):
    run = shutil.copytree(WRITTEN / "run-torch", tmp_path / "run")
    file = run / "step-00000004" / "training.json"
    fields = json.loads(file.read_text())
    del fields["backend"]
    file.write_text(json.dumps(fields))
    reseal(file)
    assert shown(capsys, run)["trained in"] == "torch"


def test_weights_are_not_read(tmp_path, capsys):
    copy = shutil.copytree(WRITTEN / "checkpoint-torch", tmp_path / "copy")
    for file in copy.glob("weights-*"):
        file.unlink()
    assert shown(capsys, copy)["depth"] == shown(capsys, WRITTEN / "checkpoint-torch")["depth"]


def test_an_open_preset_is_shown_as_one_original_with_a_word_about_the_other(capsys):
    for flags, one, other, positions in ([], "torch", "jax", "alibi"), (["jax"], "jax", "torch", "rotary"):
        told = shown(capsys, "tiny", *(["--architecture", *flags] if flags else []))
        assert told["architecture"] == f"of {one}; it depends on the backend (--architecture {other})"
        assert told["positions"] == positions
    assert "architecture" not in shown(capsys, "palm-8b", "--architecture", "torch")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["palm-9b"], "preset must be one of tiny, small"),
        (["palm-9b"], "Choose one. There is no folder of that name either."),
        (["./palm-9b"], "path must be a checkpoint directory"),
        ([str(WRITTEN)], "path must be a checkpoint directory"),
        ([str(WRITTEN / "run-torch"), "--architecture", "jax"], "--architecture must not be given with a"),
    ],
)
def test_what_cannot_be_described_is_said_in_a_line(arguments, words, capsys):
    assert main(["info", *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1


def test_a_changed_config_is_refused(tmp_path, capsys):
    copy = shutil.copytree(WRITTEN / "checkpoint-torch", tmp_path / "copy")
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("16", "32"))
    assert main(["info", str(copy)]) == 2
    assert "config.json" in capsys.readouterr().err

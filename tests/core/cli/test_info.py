"""`palm info` describes a preset, a run and a checkpoint, without reading weights."""

import json
import re
import shutil

import pytest
from cases import ROOT
from fuzz.readers import reseal

from palm.checkpoint.checkpoint import load_arrays
from palm.cli.main import main

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
    losses = f"{first['loss']:.4f} → {last['loss']:.4f} nats, 1 → 4"
    assert told["training loss, first → last step"] == losses
    assert told["validation loss"] == f"{last['val_loss']:.4f} nats"
    assert told["checkpoints"] == "4 (best)"
    assert told["tokenizer"] == "bytes"
    config, arrays = load_arrays(run)
    fields = {name: str(value) for name, value in config.to_dict().items() if name != "norm"}  # also a kind
    assert fields.items() <= told.items()
    assert told["parameters"] == f"{sum(array.size for array in arrays.values()):,}"


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

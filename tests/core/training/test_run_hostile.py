"""A run.json, or a log, that an enemy wrote: every read ends in a `RunError` or leaves the line out."""

import json
import os

import pytest
from cases import at_most, small
from run_settings import CONTENT

from palm import RunError
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.recipes import Recipe
from palm.training.run_files import check_own
from palm.training.run_folder import METRICS, SAMPLES, SETTINGS

INSIDE = [
    ("data", "path"),
    ("data", "digest"),
    ("data", "tokenizer"),
    ("cadence", "keep"),
    ("recipe", "steps"),
]


def refused(run):
    with pytest.raises(RunError) as raised:
        run.tokenizer()
    return str(raised.value)


@pytest.mark.parametrize("key", CONTENT)
def test_sealed_settings_without_a_key_are_refused(run, key):
    run.write_settings({name: value for name, value in CONTENT.items() if name != key})
    assert f"must name {key}" in refused(run)


@pytest.mark.parametrize("value", [None, 7, [], {}], ids=str)
@pytest.mark.parametrize("key", CONTENT)
def test_sealed_settings_of_other_types_are_refused(run, key, value):
    if (key, value) in (("device", None), ("recipe", {}), ("cadence", {})):
        pytest.skip("a run may have no device of its own, and defaults")
    run.write_settings({**CONTENT, key: value})
    assert "must describe a run" in refused(run)


@pytest.mark.parametrize("value", [7.5, [], {}, True], ids=str)
@pytest.mark.parametrize(("group", "key"), INSIDE)
def test_sealed_settings_of_other_types_inside_are_refused(run, group, key, value):
    run.write_settings({**CONTENT, group: {**CONTENT[group], key: value}})
    assert "must describe a run" in refused(run)


@pytest.mark.parametrize("data", [None, 7, {}, {"tokenizer": 7}, {"tokenizer": None, "path": 7}])
def test_a_checkpoints_tokenizer_is_not_looked_for_in_strange_settings(run, data):
    from cases import draw_weights

    from palm.checkpoint.checkpoint import save_arrays

    path = save_arrays(small(), draw_weights(small()), run.path / "model")
    run.write_settings({**CONTENT, "data": data})
    with pytest.raises(RunError, match="must describe a run"):
        checkpoint_tokenizer(path)


@pytest.mark.parametrize("name", [SETTINGS, METRICS, SAMPLES])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_at_once(run, name, make):
    file = run.path / name
    file.unlink(missing_ok=True)
    make(file)
    with at_most(3), pytest.raises(RunError):
        run.settings() if name == SETTINGS else run.entries(name)


@pytest.mark.parametrize(
    "line",
    [
        {"step": 2},
        *({"step": 2, "loss": value} for value in (None, "x", [1], True)),
        {"step": 2, "loss": 1, "val_loss": "x"},
        *({"step": value, "loss": 1} for value in (-1, 2.0, "2", True, None)),
    ],
    ids=str,
)
def test_a_line_of_other_types_is_no_line(run, line):
    run.log({"step": 1, "loss": 3.5})
    run.log(line)
    run.log({"step": 3, "loss": 2.5})
    assert [entry["step"] for entry in run.entries()] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "loss": NaN}',
        b'{"step": 2, "loss": 1, "loss": 2}',
        b"[" * 100_000,
        b'{"step": 2, "loss": 1e999}',
    ],
)
def test_a_line_that_is_no_bounded_json_is_no_line(run, line):
    (run.path / METRICS).write_bytes(b'{"step": 1, "loss": 1}\n' + line + b"\n")
    assert [entry["step"] for entry in run.entries()] == [1]


def test_a_sample_without_text_is_no_line(run):
    for text in ("a", None, 3):
        run.log({"step": 1, "text": text}, SAMPLES)
    assert run.entries(SAMPLES) == [{"step": 1, "text": "a"}]


@pytest.mark.parametrize(
    ("config", "recipe", "told"),
    [
        (small(dim=8), Recipe(seed=3), "dim=8"),
        (small(), Recipe(seed=4), "seed=4"),
        (small(), Recipe(seed=3, batch=7), "batch=7"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, config, recipe, told):
    with pytest.raises(RunError, match=f"must be a checkpoint of its run; got {told}"):
        check_own(tmp_path, config, {"recipe": recipe.to_dict()}, small(), Recipe(seed=3))


def test_a_checkpoint_of_the_run_is_its_own(tmp_path):
    for fields in ({}, {"recipe": Recipe(seed=3, steps=77).to_dict()}):
        check_own(tmp_path, small(), json.loads(json.dumps(fields)), small(), Recipe(seed=3))

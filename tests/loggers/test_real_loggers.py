"""The loggers with the real packages, without a network. `nox -s loggers` installs these."""

import os
import sys

from palm.training.loggers import About, make_loggers
from palm.training.onlookers import Onlookers

SETTINGS = {"config": {"dim": 16}, "recipe": {"seed": 3, "ramp": []}, "backend": "torch", "device": None}
# After a rewind a step comes again.
STEPS = (1, 2, 3, 2, 3, 4)


def follow(folder, name):
    """Log some steps; what failed."""
    run = About(folder.name, folder, SETTINGS)
    found = Onlookers(run, make_loggers([name], folder))
    for number, step in enumerate(STEPS):
        found.after({"step": step, "loss": 5.0 - number, "tokens": 8.0 * step})
    found.close()
    return found.failed


def test_wandb_writes_a_run_offline_into_the_folder_of_the_run(tmp_path, monkeypatch, capfd):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    stdout = sys.stdout
    (tmp_path / "run").mkdir()
    assert follow(tmp_path / "run", "wandb") == []
    [offline] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    [file] = offline.glob("run-*.wandb")
    content = file.read_bytes()
    assert b"loss" in content
    assert b"tokens" in content
    assert capfd.readouterr().out == ""  # standard output is palm's
    assert sys.stdout is stdout


def test_trackio_writes_a_run_into_its_own_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (tmp_path / "run").mkdir()
    assert follow(tmp_path / "run", "trackio") == []
    assert list((tmp_path / "trackio").rglob("*palm*"))
    assert capfd.readouterr().out == ""

"""Loggers and profiles follow a run, and nothing that they do ends it. Without a framework."""

import errno
import gc
import os
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cases import assert_explains

from palm import ConfigError
from palm.training.loggers import About, Calls, make_loggers
from palm.training.onlookers import WARM_UP, Onlookers, Profile

LINE = {"step": 4, "loss": 1.25, "val_loss": 2.0, "tokens_per_s": 12345.5}
SETTINGS = {"recipe": {"seed": 3}, "backend": "torch"}


def follow(tmp_path, *loggers, steps=range(1, 5)) -> Onlookers:
    """What followed a run of some steps."""
    run = About("a run", tmp_path, SETTINGS)
    found = Onlookers(run, make_loggers(loggers, tmp_path))
    for step in steps:
        found.before(step)
        found.after({**LINE, "step": step})
    found.close()
    return found


class Recorder:
    """A logger that keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails_at: str = "", step: int = 0) -> None:
        self.told, self.fails_at, self.step = [], fails_at, step

    def _hear(self, what, *values):
        self.told.append((what, *values))
        if what == self.fails_at and (what != "log" or values[0]["step"] == self.step):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, run):
        self._hear("open", run.name, run.folder, run.settings)

    def log(self, entry):
        self._hear("log", entry)

    def close(self):
        self._hear("close")


def test_a_logger_is_opened_with_the_first_line_told_each_and_closed(tmp_path):
    logger = Recorder()
    assert follow(tmp_path, logger).failed == []
    lines = [("log", {**LINE, "step": step}) for step in range(1, 5)]
    assert logger.told == [("open", "a run", tmp_path, SETTINGS), *lines, ("close",)]


def test_a_run_without_a_step_opens_none(tmp_path):
    logger = Recorder()
    assert follow(tmp_path, logger, steps=()).failed == []
    assert logger.told == []


@pytest.mark.parametrize(
    ("fails_at", "step", "told"),
    [("open", 0, ["open"]), ("log", 2, ["open", "log", "log", "close"]), ("close", 0, None)],
)
def test_a_logger_that_fails_is_told_once_and_the_others_get_every_line(tmp_path, fails_at, step, told):
    failing, other = Recorder(fails_at, step), Recorder()
    failed = follow(tmp_path, failing, other).failed
    at = {"open": 1, "log": 2, "close": 4}[fails_at]
    assert failed == [f"Recorder failed after step {at}: [Errno 28] No space left on device"]
    assert told is None or [what for what, *_ in failing.told] == told
    assert len(other.told) == 6


def test_a_logger_cannot_change_the_log(tmp_path):
    entry = {**LINE}
    found = Onlookers(About("a run", tmp_path, {}), [Calls(dict.clear)])
    found.after(entry)
    assert entry == LINE


def test_a_function_is_a_logger_of_its_own_name(tmp_path):
    steps = []

    def print_it(entry):
        steps.append(entry["step"])
        raise ValueError("too late")

    assert follow(tmp_path, print_it).failed == ["print_it failed after step 1: too late"]
    assert steps == [1]


@pytest.mark.parametrize(
    ("given", "out", "words"),
    [
        (["tensorbored"], "run", "loggers must be of tensorboard, wandb, trackio, or functions"),
        ([3], "run", "Give a function of an entry of the log"),
        ("wandb", "run", 'loggers must be a list; got loggers="wandb"'),
        (["tensorboard"], None, "must have the folder of a run; got out=None"),
    ],
)
def test_what_is_no_logger_is_refused_before_anything_is_written(given, out, words):
    with pytest.raises(ConfigError) as raised:
        make_loggers(given, out)
    assert_explains(raised, words)


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as raised:
        make_loggers([name], "run")
    assert_explains(raised, f"needs {module}", "not installed", f'pip install "palm-dual[{name}]"')


class Fake(ModuleType):
    """Stands for wandb and for trackio: keeps what it is called with."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name)
        self.calls, self.Settings = [], dict

    def init(self, **options):
        print("hello from", self.__name__)
        self.calls.append(("init", options))
        return self

    def __getattr__(self, what):
        if what.startswith("__"):
            raise AttributeError(what)
        return lambda *given, **named: self.calls.append((what, *given, *named.items()))


@pytest.fixture
def fake(request, monkeypatch):
    found = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return found


@pytest.mark.parametrize("fake", ["wandb"], indirect=True)
def test_wandb_is_offline_and_counts_its_steps_by_ours(fake, tmp_path, monkeypatch):
    assert follow(tmp_path, "wandb", steps=[1, 2, 1]).failed == []
    (_, options), defined, *lines, end = fake.calls
    assert options["mode"] == "offline"
    assert options["dir"] == tmp_path
    assert options["config"] == SETTINGS
    assert options["name"] == options["group"] == "a run"
    assert options["settings"] == {"console": "off", "silent": True}
    assert defined == ("define_metric", "*", ("step_metric", "step"))
    assert lines == [("log", {**LINE, "step": step}) for step in (1, 2, 1)]  # after a rewind
    assert end == ("finish",)
    monkeypatch.setenv("WANDB_MODE", "online")
    follow(tmp_path, "wandb")
    assert [options["mode"] for what, options in (call for call in fake.calls if call[0] == "init")] == [
        "offline",
        "online",
    ]


@pytest.mark.parametrize("fake", ["trackio"], indirect=True)
def test_trackio_is_given_numbers_by_step_and_greets_on_standard_error(fake, tmp_path, capsys):
    assert follow(tmp_path, "trackio", steps=[7]).failed == []
    (_, options), line, end = fake.calls
    assert options == {"project": "palm", "group": "a run", "config": SETTINGS, "embed": False}
    numbers = {name: value for name, value in LINE.items() if name != "step"}
    assert line == ("log", numbers, ("step", 7))
    assert end == ("finish",)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello from trackio\n")


def events(folder: Path) -> list[tuple[str, float, int]]:
    """What TensorBoard finds in the folder: name, value and step."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    [file] = folder.iterdir()
    content = file.read_bytes()
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        found += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
        content = content[16 + size :]
    return found


def test_tensorboard_is_given_every_number_of_a_step_at_once(tmp_path):
    pytest.importorskip("tensorboardX")
    found = Onlookers(About("a run", tmp_path, {}), make_loggers(["tensorboard"], tmp_path))
    found.after({"step": 3, "loss": 1.0, "tokens_per_s": 5.0})
    found.after(LINE)
    written = events(tmp_path / "tensorboard")
    assert written[:2] == [("loss", 1.0, 3), ("tokens_per_s", 5.0, 3)]
    assert written[2:] == [(name, pytest.approx(value), 4) for name, value in LINE.items() if name != "step"]
    found.close()
    assert events(tmp_path / "tensorboard") == written


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file nobody could close
@pytest.mark.parametrize("when", ["mkdir", "write_event", "flush", "close"])
def test_tensorboard_that_fails_is_told_once(tmp_path, monkeypatch, when):
    """On a full disk; tensorboardX's own writer waits for ever there."""
    writers = pytest.importorskip("tensorboardX.event_file_writer")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path if when == "mkdir" else writers.EventsWriter, when, full)
    failed = follow(tmp_path, "tensorboard").failed
    gc.collect()
    at = 4 if when == "close" else 1
    assert failed == [f"TensorBoard failed after step {at}: [Errno 28] No space left on device"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("10-12", (10, 12)), ("3-3", (3, 3)), ("3", (None, 3)), (3, (None, 3)), (1, (None, 1))],
)
def test_a_profile_is_two_steps_or_a_number_of_them(given, expected):
    found = Profile.of(given, "run")
    assert (found.first, found.last) == expected


@pytest.mark.parametrize("given", ["12-10", "0", "0-3", "-3", "3-", "a", "", "1-2-3", "1.5", 0, True, "٣"])
def test_what_is_no_profile_is_refused(given):
    with pytest.raises(ConfigError, match="profile must be a number of steps, or the first and the last"):
        Profile.of(given, "run")


def test_a_profile_needs_a_folder():
    with pytest.raises(ConfigError, match="a profile must have the folder of a run"):
        Profile.of("3", None)


def traced(tmp_path, given, steps, *, fails_at="") -> tuple[list[str], list[str]]:
    """What a profile of a run of these steps did, and what failed."""
    done = []

    @contextmanager
    def profiler(folder):
        done.append(f"begins {folder.relative_to(tmp_path)}")
        if fails_at == "begin":
            raise RuntimeError("another one profiles")
        yield
        done.append("ends")
        if fails_at == "end":
            raise OSError(errno.ENOSPC, "No space left on device")

    found = Onlookers(About("a run", tmp_path, {}), [], Profile.of(given, tmp_path), profiler)
    for step in steps:
        found.before(step)
        done.append(str(step))
        found.after({**LINE, "step": step})
    found.close()
    return done, found.failed


BEGINS = f"begins profile{os.sep}step-0000000"


@pytest.mark.parametrize(
    ("given", "steps", "expected"),
    [
        ("3-4", range(1, 6), ["1", "2", f"{BEGINS}3", "3", "4", "ends", "5"]),
        ("2", range(1, 6), ["1", "2", f"{BEGINS}3", "3", "4", "ends", "5"]),
        ("1", range(5, 9), ["5", "6", f"{BEGINS}7", "7", "ends", "8"]),  # a run that goes on from step 4
        ("3-9", range(1, 5), ["1", "2", f"{BEGINS}3", "3", "4", "ends"]),  # interrupted
        ("2-3", [1, 2, 1, 2, 3, 4], ["1", f"{BEGINS}2", "2", "1", "2", "3", "ends", "4"]),  # a rewind
    ],
)
def test_the_steps_that_are_asked_for_are_traced_once(tmp_path, given, steps, expected):
    assert traced(tmp_path, given, steps) == (expected, [])
    assert WARM_UP == 2


@pytest.mark.parametrize(
    ("fails_at", "step", "why"),
    [("begin", 0, "another one profiles"), ("end", 2, "[Errno 28] No space left on device")],
)
def test_a_profile_that_fails_is_told_once_and_the_steps_go_on(tmp_path, fails_at, step, why):
    at = {"begin": 1}.get(fails_at, 2)
    done, failed = traced(tmp_path, "2-2", range(1, 5), fails_at=fails_at)
    assert failed == [f"the profile failed after step {at}: {why}"]
    assert [what for what in done if what.isdigit()] == ["1", "2", "3", "4"]
    assert len([what for what in done if what.startswith("begins")]) == 1


def test_a_profile_of_steps_that_were_not_made_says_so(tmp_path):
    assert traced(tmp_path, "7-8", range(1, 4)) == (
        ["1", "2", "3"],
        ["the profile failed: step 7 was not made"],
    )

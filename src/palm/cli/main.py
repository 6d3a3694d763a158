"""The command line: one thin layer over the library. `palm --help`, `python -m palm --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import wraps
from io import StringIO
from pkgutil import resolve_name
from typing import Any

import tyro

import palm
from palm.cli.choices import CHOICES
from palm.cli.ending import Terminated, signals
from palm.cli.streams import prepare, why_lost
from palm.cli.wrapping import Wrapping
from palm.errors import PalmError, ProbeError
from palm.files.names import visible
from palm.interrupt import INTERRUPTED

DESCRIPTION = """The PaLM language model in PyTorch and in JAX/Equinox, and a comparison of the two.

palm COMMAND --help describes a command, palm --version tells the version."""
BAD_USAGE, SIDE_DIED, PIPE_CLOSED, TERMINATED = 2, 4, 141, 143
_FREE = "Send it to a place that takes it: palm … > FILE."
# Flags have the names of their fields alone, without their group's, and none takes the value None.
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
# Where each command is, and the first line of its help, so that a command that is not run need not load.
COMMANDS = {
    "compare": (
        "palm.cli.compare:compare",
        "Run one model on two sides. Report whether they differ; "
        "if so, where, how far beyond rounding, and why.",
    ),
    "record": (
        "palm.cli.record:record",
        "Run one side and write what it computed, so that it can be compared on another machine.",
    ),
    "train": ("palm.cli.train:train", "Train a model, or continue a run, in either framework."),
    "generate": (
        "palm.cli.text:generate",
        "Print what a trained model writes after a prompt: the text as it is written, and nothing else.",
    ),
    "eval": (
        "palm.cli.evaluate:evaluate",
        "Say how well a model predicts a text: nats per token, perplexity, bits per byte; "
        "or which of two does.",
    ),
    "data": (
        "palm.cli.data:data",
        "Fetch a public corpus, encode a large text into a folder of shards, or describe data.",
    ),
    "plan": (
        "palm.cli.plan:plan",
        "Say whether a training fits: memory of each device by what it is for, and a mesh.",
    ),
    "info": (
        "palm.cli.info:info",
        "Describe a preset, a run or a checkpoint: config, parameters by kind, FLOPs per token and memory.",
    ),
    "runs": (
        "palm.cli.runs:runs",
        "List the runs below a folder: steps, losses, and the settings in which they differ.",
    ),
    "compare-runs": (
        "palm.cli.compare_runs:compare_runs",
        "Say whether the gap between the validation losses of two groups of runs is noise.",
    ),
    "plot": ("palm.cli.runs:plot", "Draw the losses of several runs in one picture."),
    "doctor": (
        "palm.cli.doctor:doctor",
        "Say what is installed and what palm runs on, what is missing, and the command that installs it.",
    ),
    "import": (
        "palm.cli.models:import_",
        "Turn weights of an original model, or a folder for transformers, into a palm checkpoint.",
    ),
    "export": (
        "palm.cli.models:export",
        "Write the weights of a checkpoint for other tools, or for transformers, or the model as programs.",
    ),
    "push": (
        "palm.cli.models:push",
        "Upload a checkpoint to the Hugging Face hub, in the format of transformers.",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    prepare()
    try:
        try:
            return _status(sys.argv[1:] if arguments is None else arguments)
        finally:  # what could not be written is known now, and not when Python exits
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of standard output has closed it: `palm generate … | head`
        why_lost(sys.stdout)
        return PIPE_CLOSED
    except OSError:
        reason = why_lost(sys.stdout)
        if reason is None:
            raise
        print(f"palm: standard output must be writable; got {reason}. {_FREE}", file=sys.stderr)
        return BAD_USAGE


def _status(given: list[str]) -> int:
    """Run the command that is given."""
    if given == ["--version"]:
        print(f"palm {palm.__version__}")
        return 0
    try:
        functions = _functions(given)
        with CHOICES, signals():
            if not all(map(str.isprintable, given)):
                _refuse_visibly(given, functions)
            return _parse(given, functions)
    except PalmError as error:
        print("palm:", visible(str(error), keep="\n"), file=sys.stderr)
        return SIDE_DIED if isinstance(error, ProbeError) else BAD_USAGE
    except KeyboardInterrupt:  # palm train handles the first one itself; other commands save nothing
        print("palm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("palm: terminated", file=sys.stderr)
        return TERMINATED


def _parse(given: list[str], functions: Mapping[str, Callable[..., int]]) -> int:
    """Read the arguments, and run the function of the command that they name."""
    is_help = not {"-h", "--help"}.isdisjoint(given)
    stream: Any = Wrapping(sys.stdout) if is_help else sys.stdout
    with redirect_stdout(stream):
        return tyro.extras.subcommand_cli_from_dict(
            dict(functions), prog="palm", description=DESCRIPTION, args=given, config=STYLE
        )


def _refuse_visibly(given: list[str], functions: Mapping[str, Callable[..., int]]) -> None:
    """If the parser refuses the arguments, which it repeats, show what they hold: they may move a cursor.

    Nothing is run. The parser writes no colours where nothing is a terminal.
    """
    printed, complaint = StringIO(), StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(complaint):
            _parse(given, {name: _doing_nothing(function) for name, function in functions.items()})
    except SystemExit:
        print(visible(printed.getvalue(), keep="\n"), end="")
        print(visible(complaint.getvalue(), keep="\n"), end="", file=sys.stderr)
        raise


def _doing_nothing(function: Callable[..., int]) -> Callable[..., int]:
    return wraps(function)(lambda *_, **__: 0)


def _functions(given: list[str]) -> dict[str, Callable[..., int]]:
    """The function of the command that is given; of the others only their help, which loads nothing.

    Completions for a shell (tyro's --tyro-print-completion) need the options of all commands.
    """
    named = next((argument for argument in given if argument in COMMANDS), None)
    wanted = COMMANDS if given and given[0].startswith("--tyro-") else {named}
    return {
        name: resolve_name(where) if name in wanted else _only_help(summary)
        for name, (where, summary) in COMMANDS.items()
    }


def _only_help(summary: str) -> Callable[[], int]:
    def command() -> int:
        raise NotImplementedError

    command.__doc__ = summary
    return command

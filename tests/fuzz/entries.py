"""The ways into palm that take more than a call: commands, and what is made of several calls."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz import makers

import palm
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.transformers import read_folder
from palm.cli.main import main
from palm.data.corpus import open_corpus
from palm.data.tokenizer import load_tokenizer
from palm.errors import PalmError
from palm.files.read import read_file
from palm.parity.recording.bundle import read_bundle

SOURCE = "palm_jax.palm_lite"
Read = Callable[[Path], Any]


class Refused(PalmError):  # noqa: N818
    """A command ended with status 2."""


def exported(folder: Path) -> list[Any]:
    config, arrays, tokenizer = read_folder(folder)
    return [config, arrays, None if tokenizer is None else tokenizer.content]


def command(*arguments: object) -> str:
    """What a command prints. `Refused` if it ends with status 2; it may also find a difference."""
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    if status == 2:
        raise Refused(complaint.getvalue())
    if status not in (0, 1, 3):
        raise RuntimeError(f"ends with {status}: {complaint.getvalue()}")
    return said.getvalue()


def number(text: str) -> str:
    """A number as Python writes a float: 7 and 7.0 are one."""
    with contextlib.suppress(ValueError):
        return str(float(text))
    return text


def info(folder: Path) -> dict[str, str]:
    rows = [line.strip().rpartition("  ") for line in command("info", folder).splitlines()]
    # The config's norm comes before the count of its parameters.
    return {name.strip(): number(value) for name, _, value in reversed(rows)}


class _Reached(Exception):  # noqa: N818
    """The first step was made."""


def resume(folder: Path) -> list[float]:
    losses = []

    def stop(entry: dict[str, float]) -> None:
        losses.append(entry["loss"])
        raise _Reached

    # How fast the machine is takes longer to measure than all else.
    speed = mock.patch("palm.training.loop.mfu_per_rate", return_value=None)
    with speed, contextlib.suppress(_Reached):
        palm.resume(folder, data=makers.TEXT, steps=5, backend="torch", on_step=stop)
    return losses


def generate(folder: Path) -> str:
    return command("generate", folder, "--prompt", "the", "--max-new-tokens", 2, "--backend", "torch")


def load(backend: Any) -> Read:
    def read(folder: Path) -> object:
        model = palm.load(folder, backend=backend)
        return model.config, palm.to_numpy(model)

    return read


def replace_checkpoint(folder: Path) -> object:
    save_arrays(*load_arrays(makers.WRITTEN / "checkpoint-torch"), folder, overwrite=True)
    return load_arrays(folder)


def replace_bundle(folder: Path) -> object:
    makers.bundle(folder)
    return read_bundle(folder)


def compare_traces(folder: Path) -> str:
    other = makers.trace().save(folder / "other.trace")
    return command("compare", folder / "t.trace", other, "--out", folder / "report")


def import_(folder: Path) -> object:
    command("import", SOURCE, folder / "w.npz", folder / "imported")
    return load_arrays(folder / "imported")


def tokenize(file: Path) -> object:
    found = load_tokenizer(file)
    ids = found.encode("the palm, naïve: 🌴\n\0")
    stream = found.stream()
    return found.num_tokens, ids, found.decode(ids), [*map(stream.feed, ids[:8].tolist())]


def corpus(path: Path) -> object:
    found = open_corpus(path)
    return found.digest and found.read(0, len(found))


def _text(file: Path) -> str:
    """As the command line gives texts. Only regular files are read: what else there is would not end."""
    try:
        return read_file(file, 1 << 20).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise Refused(str(error)) from None


def config(file: Path) -> object:
    return palm.PaLMConfig.from_json(_text(file)).resolve("torch")


def arguments(file: Path) -> str:
    """The lines of a file as the arguments of a command."""
    return command(*_text(file).split("\n"))


def boxes(folder: Path) -> dict[str, Any]:
    """Of each tensor of a checkpoint all but its first row."""
    found = Boxes(folder)
    return {
        name: found.read(name, (1, *(0 for _ in shape[1:])), (shape[0] - 1, *shape[1:]))
        for name, shape in found.shapes.items()
    }

"""The command line: one thin layer over the library. `palm --help`, `python -m palm --help`."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from tyro.conf import Positional

import palm
from palm import commands
from palm.checkpoint import load_arrays, save_arrays
from palm.compare.butterfly import RUNS
from palm.compare.html import write_html
from palm.compare.probe import STEPS
from palm.compare.processes import Source, compare_backends, train_backends, training_steps
from palm.compare.terminal import print_comparison, print_training
from palm.config import BACKENDS, Backend
from palm.data import read_text, sample_windows, standard_library_text
from palm.errors import ConfigError, PalmError
from palm.info import describe
from palm.params import DType
from palm.presets import preset as find_preset
from palm.recipe import recipe as find_recipe
from palm.upstream import read_upstream

AGREE, DIFFER, BAD_USAGE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
Attention = Literal["fused", "textbook"]


def compare(
    preset: str = "small",
    checkpoint: Path | None = None,
    architecture: Backend = "torch",
    dtype: DType = "float32",
    data: Path | None = None,
    batch: int = 2,
    length: int = 256,
    seed: int = 0,
    device: str | None = None,
    attention: Attention = "fused",
    train: int = 0,
    recipe: str = "adamw",
    out: Path = Path("palm-compare"),
) -> int:
    """Build one model in both wings and report where, and by how much more than rounding, they differ.

    Each side runs in its own process on the same real text; a float64 NumPy referee judges both.

    With --train N, both also learn from the same batches, and the torch side once more from weights that
    are one unit in the last place away: do the sides drift apart faster than that?

    Exit status: 0 agree, 1 differ, 2 bad usage.

    Args:
        preset: Which config to build from the seed; `palm info --help` lists them.
        checkpoint: Compare this checkpoint directory; preset and architecture are then not used.
        architecture: Whose original an open preset resolves to.
        dtype: Working precision of both sides; a checkpoint of another is cast.
        data: Text to run on, as bytes; default: Python's own standard library sources.
        batch: Number of text windows.
        length: Tokens in each window.
        seed: Draws the weights and the windows.
        device: Where both sides run: cpu or cuda, which both frameworks know.
        attention: Attention path of both sides.
        train: Training steps to compare; 0 leaves training out.
        recipe: Which recipe to train by, adamw, bytes or paper; steps, batch, length, precision and seed are
            the options here.
        out: Folder for report.json and report.html.
    """
    console = Console()
    if checkpoint is None:
        config = find_preset(preset).resolve(architecture)
    else:
        config, _ = load_arrays(checkpoint)
    text = standard_library_text() if data is None else read_text(data)
    tokens = sample_windows(text, config, batch=batch, length=length, seed=seed)
    if train < 0:
        raise ConfigError(f"train must be at least 0; got train={train}. 0 leaves training out.")
    own = {"steps": max(train, 1), "batch": batch, "length": length, "precision": dtype, "seed": seed}
    plan = find_recipe(recipe, **own, ramp=(), accumulate=1)
    source = Source(config.to_dict(), seed, None if checkpoint is None else str(checkpoint))
    with _progress() as progress:
        tasks: dict[str, TaskID] = {
            side: progress.add_task(side, total=len(STEPS), step="starting") for side in BACKENDS
        }
        tasks["referee"] = progress.add_task("referee", total=1, step="waiting")
        for run in RUNS if train else ():
            total = training_steps(plan)
            tasks[f"train {run}"] = progress.add_task(f"train {run}", total=total, step="waiting")

        def on_step(side: str, step: str) -> None:
            progress.update(tasks[side], advance=1, step=step)

        comparison = compare_backends(
            source, tokens, dtype=dtype, device=device, attention=attention, on_step=on_step
        )
        trained = None
        if train:
            trained = train_backends(
                source,
                text,
                plan,
                device=device,
                attention=attention,
                on_step=lambda run, step: on_step(f"train {run}", step),
            )
    settings = {
        "model": preset if checkpoint is None else str(checkpoint),
        "data": "standard library" if data is None else str(data),
        **{"dtype": dtype, "batch": batch, "length": length, "seed": seed, "attention": attention},
        **({"train": train, "recipe": recipe} if train else {}),
    }
    report = {**comparison.to_dict(), "run": settings}
    agree = comparison.agree
    if trained is not None:
        agree = agree and trained.agree
        verdict = f"{comparison.verdict.removesuffix('.')}; {trained.verdict}"
        report |= {"agree": agree, "verdict": verdict, "training": trained.to_dict()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        write_html(report, out / "report.html")
    except OSError as error:
        raise PalmError(f"out must be a writable folder; got out={out}: {error.strerror}.") from None
    told = ", ".join(f"{name} {value}" for name, value in settings.items()) + "\n"
    console.print(told, highlight=False, markup=False)
    print_comparison(comparison, console)
    if trained is not None:
        console.print()
        print_training(trained, console)
    console.print(f"\n{out / 'report.html'}\n{out / 'report.json'}", highlight=False, markup=False)
    return AGREE if agree else DIFFER


def info(preset: Positional[str] = "small", /, *, architecture: Backend = "torch", length: int = 2048) -> int:
    """Print a preset's config, parameters by kind, FLOPs per token and memory.

    Args:
        preset: tiny, small, palm-8b, palm-62b, palm-540b, palm_pytorch.palm_lite, palm_pytorch.palm_pytorch,
            palm_jax.palm or palm_jax.palm_lite.
        architecture: Whose original an open preset resolves to.
        length: Sequence length for attention's FLOPs.
    """
    config = find_preset(preset).resolve(architecture)
    sizes = describe(config, length)
    console = Console()
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in config.to_dict().items():
        table.add_row(name, str(value))
    table.add_section()
    for kind, count in sizes.parameters.items():
        table.add_row(kind, f"{count:,}")
    table.add_row("parameters", f"{sizes.total:,}")
    table.add_section()
    table.add_row(f"forward FLOPs per token at {length}", f"{sizes.forward_flops:.4g}")
    table.add_row("training FLOPs per token", f"{sizes.training_flops:.4g}")
    for dtype, size in sizes.weight_bytes.items():
        table.add_row(f"weights in {dtype}", _bytes(size))
    table.add_row("training state in float32, two moments", _bytes(sizes.training_bytes))
    table.add_row("keys and values of one position, bfloat16", _bytes(sizes.cache_bytes))
    console.print(table, highlight=False)
    return 0


def import_(source: Positional[str], file: Positional[Path], out: Positional[Path], /) -> int:
    """Turn weights of one of the four original models into a palm checkpoint.

    Args:
        source: Which original the weights belong to: palm_pytorch.palm_lite, palm_pytorch.palm_pytorch,
            palm_jax.palm or palm_jax.palm_lite.
        file: Its weights: .pt, .pth, .safetensors, .eqx (Equinox) or .npz.
        out: Checkpoint directory to write; it must not exist.
    """
    config, arrays = read_upstream(file, source)
    save_arrays(config, arrays, out)
    count = sum(array.size for array in arrays.values())
    # Read from the shapes alone: the one thing for a user to check.
    sizes = ", ".join(f"{name} {getattr(config, name)}" for name in ("depth", "dim", "heads", "dim_head"))
    Console().print(f"{out}: {source}, {count:,} parameters, {sizes}", highlight=False, markup=False)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a pipe that cannot carry − or ✓ shall not end the run
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"palm {palm.__version__}")
        return 0
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {
                "compare": compare,
                "train": commands.train,
                "generate": commands.generate,
                "data": commands.data,
                "info": info,
                "import": import_,
            },
            prog="palm",
            description=palm.__doc__,
            args=arguments,
        )
    except PalmError as error:
        print(f"palm: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:  # training takes the first one as a wish; elsewhere there is nothing to save
        print("palm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read standard output has seen enough: `palm generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains on its way out
        return PIPE_CLOSED


def _progress() -> Progress:
    # Progress is for the watcher and no part of the result: it goes to standard error, if that is a terminal.
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"

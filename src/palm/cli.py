"""The command line: one thin layer over the library. `palm --help`, `python -m palm --help`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import tyro
from rich.table import Table
from tyro.conf import Positional

import palm
from palm import commands
from palm.checkpoint import save_arrays
from palm.compare import command, record_command
from palm.config import Backend
from palm.display import Terminal
from palm.errors import PalmError, ProbeError
from palm.info import describe
from palm.presets import preset as find_preset
from palm.upstream import read_upstream

BAD_USAGE, SIDE_DIED, INTERRUPTED, PIPE_CLOSED = 2, 4, 130, 141


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
    console = Terminal()
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
    Terminal().print(f"{out}: {source}, {count:,} parameters, {sizes}", highlight=False, markup=False)
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
                "compare": command.compare,
                "record": record_command.record,
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
        return SIDE_DIED if isinstance(error, ProbeError) else BAD_USAGE
    except KeyboardInterrupt:  # training takes the first one as a wish; elsewhere there is nothing to save
        print("palm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read standard output has seen enough: `palm generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains on its way out
        return PIPE_CLOSED


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"

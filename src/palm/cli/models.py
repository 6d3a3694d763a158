"""The commands that describe a model and bring one in: `palm info`, `palm import`. A thin layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg

from palm.checkpoint.checkpoint import save_arrays
from palm.cli.display import Terminal
from palm.cli.flags import Request
from palm.config import Backend
from palm.presets import preset as find_preset
from palm.spec.sizes import describe
from palm.upstream.read import read_upstream


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


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What `palm import` is asked for."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """palm_pytorch.palm_lite, palm_pytorch.palm_pytorch, palm_jax.palm or palm_jax.palm_lite."""
    file: Positional[Annotated[Path, arg(metavar="FILE")]]
    """Its weights: .pt, .pth, .safetensors, .eqx (Equinox) or .npz."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Checkpoint directory to write. It must not exist."""


def import_(request: Request[ImportRequest]) -> int:
    """Turn weights of one of the four original models into a palm checkpoint."""
    config, arrays = read_upstream(request.file, request.source)
    save_arrays(config, arrays, request.out)
    count = sum(array.size for array in arrays.values())
    # Read from the shapes alone: the one thing for a user to check.
    sizes = ", ".join(f"{name} {getattr(config, name)}" for name in ("depth", "dim", "heads", "dim_head"))
    Terminal().print(
        f"{request.out}: {request.source}, {count:,} parameters, {sizes}", highlight=False, markup=False
    )
    return 0


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"

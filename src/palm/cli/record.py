"""The command that writes bundles: `palm record`. A thin layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from palm.cli.display import Terminal
from palm.cli.flags import Architecture, ModelFlags, PresetName, Request, Text, given
from palm.cli.progress import progress
from palm.cli.side_text import text_of_sides
from palm.cli.sides import config_of_sides, parse_side, refuse_ignored
from palm.errors import ConfigError
from palm.parity.recording.bundle import check_free
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import STEPS
from palm.parity.run.launch import Source, record_side
from palm.parity.run.sides import Side


@dataclass(frozen=True, kw_only=True)
class RecordRequest:
    """What `palm record` is asked for."""

    side: Positional[Annotated[str, arg(metavar="SIDE")]]
    """backend[:checkpoint][@key=value,…], as for palm compare."""
    out: Path
    """Folder of the bundle: a new one, an empty one, or a bundle to replace."""
    preset: PresetName = None
    """The config to build from the seed, unless the side has a checkpoint; palm info lists them."""
    architecture: Architecture = None
    """The original that a preset follows where it leaves the architecture open."""
    data: Text = None
    """What to run on: text, a folder, shards, or a .npy file of ids. Text is bytes without a tokenizer."""
    batch: int = 2
    """Number of text windows."""
    length: int = 256
    """Tokens in each window."""
    seed: int = 0
    """Seed of the weights and of the text windows."""
    complete: bool = False
    """Keep everything: weights, all taps and gradients, and the float64 run."""
    model: ModelFlags
    """These change single fields of the preset."""


def record(request: Request[RecordRequest]) -> int:
    """Run one side and write what it computed, so that it can be compared on another machine.

    The bundle holds taps, logits, loss, gradients, versions, flags, device and config. It is small: it keeps
    the first positions of every tap, and statistics, checksums and sketches of the rest. These still show
    whether two sides differ by more than rounding. palm compare BUNDLE BUNDLE needs no framework.
    """
    side, out = parse_side(request.side), request.out
    if not isinstance(side, Side) or side.is_served:
        raise ConfigError(
            "side must be a live side without decode, rows or padding, such as torch or jax:RUN; got "
            f"side={request.side}. Name one of them."
        )
    check_free(out)
    refuse_ignored((side,), request)
    config = config_of_sides((side,), request.preset, request.architecture, given(request.model))
    text = text_of_sides((side,), request.data)
    assert text is not None
    windows = {"batch": request.batch, "length": request.length, "seed": request.seed}
    tokens = text.windows(config.num_tokens, **windows)
    source = Source(config, request.seed, (tokens,))
    with progress({"a": len(STEPS)}, {"a": request.side}) as on_step:
        recorded = record_side(side, source, out, is_complete=request.complete, on_step=on_step)
    size = sum(file.stat().st_size for file in out.iterdir())
    what = "an excerpt" if isinstance(recorded, Excerpt) else "complete"
    Terminal().print(
        f"{out}: {what}, {size / 2**20:.1f} MiB; loss {recorded.loss:.9g} nats on "
        f"{' × '.join(map(str, recorded.tokens.shape))} tokens ({text.tokens})",
        highlight=False,
        markup=False,
    )
    return 0

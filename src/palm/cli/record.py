"""The command that writes bundles: `palm record`. A thin layer."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from palm.cli.display import Terminal
from palm.cli.flags import ModelFlags, given
from palm.cli.progress import progress
from palm.cli.sides import config_of_sides, parse_side, refuse_ignored
from palm.config import Backend
from palm.data.windows import read_text, sample_windows, standard_library_text
from palm.errors import ConfigError
from palm.parity.recording.bundle import check_free
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import STEPS
from palm.parity.run.launch import Source, record_side
from palm.parity.run.sides import Side


def record(
    side: Positional[str],
    /,
    *,
    out: Path,
    model: ModelFlags,
    preset: str | None = None,
    architecture: Backend | None = None,
    data: Path | None = None,
    batch: int = 2,
    length: int = 256,
    seed: int = 0,
    complete: bool = False,
) -> int:
    """Run one side where its framework lives and write down what it computed, to be compared elsewhere.

    The bundle holds taps, logits, loss, gradients, versions, flags, device and config. It is small: every tap
    whole at the first positions, and for the rest statistics, checksums and sketches, which still tell
    whether two sides differ by more than rounding. palm compare BUNDLE BUNDLE needs no framework.

    Args:
        side: backend[:checkpoint][@key=value,…], as for palm compare.
        out: Folder of the bundle.
        preset: Which config to build from the seed, unless the side has a checkpoint; small unless given.
        architecture: Whose original an open preset resolves to; torch unless given.
        data: Text to run on, as bytes; Python's own standard library sources unless given.
        batch: Number of text windows.
        length: Tokens in each window.
        seed: Draws the weights and the windows.
        complete: Keep everything, weights and float64 too: what palm compare uses of live sides.
    """
    parsed = parse_side(side)
    if not isinstance(parsed, Side):
        raise ConfigError(f"side must be torch or jax to be recorded; got side={side}. Record a live one.")
    check_free(out)
    own = {"preset": preset, "architecture": architecture, **given(model)}
    refuse_ignored((parsed,), {}, {}, {}, own)
    config = config_of_sides((parsed,), preset, architecture or "torch", given(model))
    text = standard_library_text() if data is None else read_text(data)
    source = Source(config, seed, (sample_windows(text, config, batch=batch, length=length, seed=seed),))
    with progress({"a": len(STEPS)}, {"a": side}) as on_step:
        recorded = record_side(parsed, source, out, is_complete=complete, on_step=on_step)
    size = sum(file.stat().st_size for file in out.iterdir())
    what = "an excerpt" if isinstance(recorded, Excerpt) else "complete"
    Terminal().print(
        f"{out}: {what}, {size / 2**20:.1f} MiB; loss {recorded.loss:.9g} nats on "
        f"{' × '.join(map(str, recorded.tokens.shape))} tokens",
        highlight=False,
        markup=False,
    )
    return 0

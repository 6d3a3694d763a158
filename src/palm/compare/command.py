"""The commands that compare: `palm compare`, `palm record`. A thin layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from palm.backends import from_numpy
from palm.checkpoint import load
from palm.compare.butterfly import RUNS, Butterfly
from palm.compare.comparison import Outcome
from palm.compare.excerpt import Excerpt
from palm.compare.foreign import compare_foreign
from palm.compare.html import write_html
from palm.compare.originals import original
from palm.compare.probe import STEPS
from palm.compare.processes import Source, compare_sides, record_side, train_backends, training_steps
from palm.compare.progress import progress
from palm.compare.sides import (
    Bundle,
    Original,
    Side,
    config_of_sides,
    model_name,
    parse_side,
    parse_sides,
)
from palm.compare.terminal import print_comparison, print_foreign, print_training
from palm.config import Backend
from palm.data import read_text, sample_windows, standard_library_text
from palm.errors import ConfigError, PalmError
from palm.fields import integer
from palm.flags import ModelFlags, given
from palm.params import DType
from palm.recipe import recipe as find_recipe

STATUS: dict[Outcome, int] = {
    "agree": 0,
    "differ": 1,
    "differ by rounding more than expected": 1,
    "cannot tell": 3,
}
Attention = Literal["fused", "textbook"]


def compare(
    a: Positional[str] = "torch",
    b: Positional[str] = "jax",
    /,
    *,
    model: ModelFlags,
    preset: str | None = None,
    checkpoint: Path | None = None,
    architecture: Backend = "torch",
    dtype: DType | None = None,
    data: Path | None = None,
    batch: int = 2,
    length: int = 256,
    seed: int = 0,
    device: str | None = None,
    attention: Attention = "fused",
    repeat: int = 1,
    train: int = 0,
    recipe: str = "adamw",
    out: Path = Path("palm-compare"),
) -> int:
    """Run one model on two sides and report where, by how much more than rounding, and why they differ.

    A side is backend[:checkpoint][@key=value,…], with the keys dtype, device, matmul (float32, tensorfloat32,
    bfloat16), attention (fused, textbook), compile (on, off) and remat (on, off); or the folder of a bundle
    that palm record wrote; or a published original, palm_pytorch.palm_lite[:weights], of which the logits are
    compared. palm compare torch torch@dtype=bfloat16 jax:RUN/step-00000100 are examples of sides.

    Each live side runs in its own process on the same real text; a float64 NumPy referee judges both.

    With --train N, both also learn from the same batches, and the torch side once more from weights that
    are one unit in the last place away: do the sides drift apart faster than that?

    Exit status: 0 agree, 1 differ, 2 bad usage, 3 cannot tell.

    Args:
        a: The first side.
        b: The second side.
        preset: Which config to build from the seed; `palm info --help` lists them. Default: small.
        checkpoint: The model of sides that name none; the weights of bundles that hold only their checksums.
        architecture: Whose original an open preset resolves to.
        dtype: Working precision of both sides; default: float32, or a bundle's own.
        data: Text to run on, as bytes; default: Python's own standard library sources.
        batch: Number of text windows.
        length: Tokens in each window.
        seed: Draws the weights and the windows.
        device: Where both sides run: cpu or cuda, which both frameworks know.
        attention: Attention path of both sides.
        repeat: How many times, with other weights and windows each time: how sure is it?
        train: Training steps to compare; 0 leaves training out.
        recipe: Which recipe to train by, adamw, bytes or paper; steps, batch, length, precision and seed are
            the options here.
        out: Folder for report.json and report.html.
    """
    console = Console()
    integer("repeat", repeat, least=1)
    integer("train", train, least=0)
    sides = parse_sides(a, b, checkpoint=checkpoint, dtype=dtype, device=device, attention=attention)
    config = config_of_sides(sides, preset, checkpoint, architecture, given(model))
    text = standard_library_text() if data is None else read_text(data)
    settings: dict[str, Any] = {"sides": f"{a} {b}"}
    settings |= {
        "model": model_name(sides, preset),
        "data": "standard library" if data is None else str(data),
    }
    settings |= {"batch": batch, "length": length, "seed": seed}
    if any(isinstance(side, Original) for side in sides):
        if train or repeat > 1:
            raise ConfigError("an original must come without --train and --repeat; got one. Leave it out.")
        return _compare_original(sides, text, settings, out, console)
    if any(isinstance(side, Bundle) for side in sides):  # it brings its own tokens
        _only_live(repeat=repeat > 1, train=train > 0, data=data is not None)
        tokens: tuple[np.ndarray, ...] = ()
        settings = {name: settings[name] for name in ("sides", "model")}
    else:
        tokens = tuple(
            sample_windows(text, config, batch=batch, length=length, seed=seed + i) for i in range(repeat)
        )
    source = Source(config, seed, tokens)
    path = None if checkpoint is None else str(checkpoint)
    own = {"steps": max(train, 1), "batch": batch, "length": length, "seed": seed}
    plan = find_recipe(recipe, **own, precision=dtype or "float32", ramp=(), accumulate=1)
    if train and (a, b) != ("torch", "jax"):
        raise ConfigError(f"--train must have the sides torch jax; got {a} {b}. Use the options for both.")
    totals = {
        key: repeat * len(STEPS) for key, side in zip("ab", sides, strict=True) if isinstance(side, Side)
    }
    totals |= {"referee": repeat, **dict.fromkeys(RUNS if train else (), training_steps(plan))}
    with progress(totals, dict(zip("ab", (a, b), strict=True))) as on_step:
        one, other = (side for side in sides if not isinstance(side, Original))
        found = compare_sides(one, other, source, checkpoint=path, on_step=on_step)
        trained = None
        if train:
            trained = train_backends(
                source, text, plan, checkpoint=path, device=device, attention=attention, on_step=on_step
            )
    settings |= {"repeat": repeat} if repeat > 1 else {}
    settings |= {"train": train, "recipe": recipe} if train else {}
    report = {**found.to_dict(), "run": settings}
    outcome = found.outcome
    if trained is not None:
        report = _with_training(report, trained)
        outcome = report["outcome"]
    _write_report(report, out)
    _tell(settings, console)
    print_comparison(found, console)
    if trained is not None:
        console.print()
        print_training(trained, console)
    console.print(f"\n{out / 'report.html'}\n{out / 'report.json'}", highlight=False, markup=False)
    return STATUS[outcome]


def record(
    side: Positional[str],
    /,
    *,
    out: Path,
    model: ModelFlags,
    preset: str = "small",
    architecture: Backend = "torch",
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
        preset: Which config to build from the seed, unless the side has a checkpoint.
        architecture: Whose original an open preset resolves to.
        data: Text to run on, as bytes; default: Python's own standard library sources.
        batch: Number of text windows.
        length: Tokens in each window.
        seed: Draws the weights and the windows.
        complete: Keep everything, weights and float64 too: what palm compare uses of live sides.
    """
    parsed = parse_side(side)
    if not isinstance(parsed, Side):
        raise ConfigError(f"side must be torch or jax to be recorded; got side={side}. Record a live one.")
    config = config_of_sides((parsed,), preset, None, architecture, given(model))
    text = standard_library_text() if data is None else read_text(data)
    source = Source(config, seed, (sample_windows(text, config, batch=batch, length=length, seed=seed),))
    with progress({"a": len(STEPS)}, {"a": side}) as on_step:
        recorded = record_side(parsed, source, out, is_complete=complete, on_step=on_step)
    size = sum(file.stat().st_size for file in out.iterdir())
    what = "an excerpt" if isinstance(recorded, Excerpt) else "complete"
    Console().print(
        f"{out}: {what}, {size / 2**20:.1f} MiB; loss {recorded.loss:.9g} nats on "
        f"{' × '.join(map(str, recorded.tokens.shape))} tokens",
        highlight=False,
        markup=False,
    )
    return 0


def _only_live(**options: bool) -> None:
    told = [f"--{name}" for name, is_given in options.items() if is_given]
    if told:
        raise ConfigError(f"a bundle must come without {', '.join(told)}; it is one run. Leave those out.")


def _compare_original(
    sides: tuple[Side | Original | Bundle, ...],
    text: bytes,
    settings: dict[str, Any],
    out: Path,
    console: Console,
) -> int:
    """One published original, live, against a model of palm's with its weights, or a checkpoint's."""
    live = next(side for side in sides if isinstance(side, Original))
    ours = next((side for side in sides if isinstance(side, Side)), None)
    if ours is None:
        raise ConfigError("an original must be compared with torch or jax; got two others. Name one of them.")
    function, config, arrays = original(
        live.source, None if live.file is None else Path(live.file), seed=settings["seed"]
    )
    options: dict[str, Any] = {"backend": ours.backend, "device": ours.device, "attention": ours.attention}
    if ours.checkpoint is None:
        model = from_numpy(config, arrays, **options)
    else:
        model = load(ours.checkpoint, **options)
        config = model.config
    tokens = sample_windows(
        text, config, batch=settings["batch"], length=settings["length"], seed=settings["seed"]
    )
    found = compare_foreign(function, model, tokens)
    _write_report({**found.to_dict(), "run": settings}, out)
    _tell(settings, console)
    print_foreign(found, console)
    console.print(f"\n{out / 'report.json'}", highlight=False, markup=False)
    return STATUS["agree" if found.agree else "differ"]


def _with_training(report: dict[str, Any], trained: Butterfly) -> dict[str, Any]:
    verdict = f"{report['verdict'].removesuffix('.')}; {trained.verdict}"
    outcome = report["outcome"] if trained.agree else "differ"
    own = {"outcome": outcome, "agree": outcome == "agree", "verdict": verdict}
    return {**report, **own, "training": trained.to_dict()}


def _write_report(report: dict[str, Any], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if report["schema"] == "palm-compare":
            write_html(report, out / "report.html")
    except OSError as error:
        raise PalmError(f"out must be a writable folder; got out={out}: {error.strerror}.") from None


def _tell(settings: Mapping[str, Any], console: Console) -> None:
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    console.print(f"{told}\n", highlight=False, markup=False)

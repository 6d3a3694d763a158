"""The command that compares: `palm compare`. A thin layer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from tyro.conf import Positional

from palm.checkpoint.checkpoint import load
from palm.cli.display import Terminal
from palm.cli.flags import Attention, ModelFlags, given
from palm.cli.progress import progress
from palm.cli.sides import config_of_sides, model_name, parse_sides, refuse_ignored
from palm.config import Backend, DType
from palm.data.windows import read_text, sample_windows, standard_library_text
from palm.errors import ConfigError, PalmError
from palm.fields import integer
from palm.models import from_numpy
from palm.parity.blackbox.compare import check_own, compare_foreign
from palm.parity.drift.drift import RUNS, Butterfly
from palm.parity.finding import Outcome
from palm.parity.recording.recording import STEPS
from palm.parity.report.html import write_html
from palm.parity.report.terminal import print_report
from palm.parity.run.launch import Source, compare_sides, train_backends, training_steps
from palm.parity.run.sides import Bundle, Original, Side
from palm.recipes import recipe as find_recipe
from palm.upstream.originals import original

STATUS: dict[Outcome, int] = {
    "agree": 0,
    "differ": 1,
    "differ by rounding more than expected": 1,
    "cannot tell": 3,
}


def compare(
    a: Positional[str] = "torch",
    b: Positional[str] = "jax",
    /,
    *,
    model: ModelFlags,
    preset: str | None = None,
    checkpoint: Path | None = None,
    architecture: Backend | None = None,
    dtype: DType | None = None,
    data: Path | None = None,
    batch: int | None = None,
    length: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    attention: Attention | None = None,
    repeat: int = 1,
    train: int = 0,
    recipe: str = "adamw",
    out: Path = Path("palm-compare"),
) -> int:
    """Run one model on two sides and report where, by how much more than rounding, and why they differ.

    A side is backend[:checkpoint][@key=value,…], with the keys dtype, device, matmul (float32, tensorfloat32,
    bfloat16), attention (auto, textbook, blockwise, …), compile (on, off) and remat (on, off, feedforward);
    or the folder of a bundle that palm record wrote; or a published original,
    palm_pytorch.palm_lite[:weights], of which the logits are compared. Examples of sides: torch,
    torch@dtype=bfloat16, jax:RUN/step-00000100, tpu-bundle/.

    Each live side runs in its own process on the same real text; a float64 NumPy referee judges both.

    With --train N, both also learn from the same batches, and the torch side once more from weights that
    are one unit in the last place away: do the sides drift apart faster than that?

    Exit status: 0 agree, 1 differ, 2 bad usage, 3 cannot tell, 4 a side died, 130 interrupted.

    Args:
        a: The first side.
        b: The second side.
        preset: Which config to build from the seed, `palm info --help` lists them; small unless given.
        checkpoint: The model of sides that name none; the weights of bundles that hold only their checksums.
        architecture: Whose original an open preset resolves to; torch unless given.
        dtype: Working precision of both sides; float32, or that of a bundle, unless given.
        data: Text to run on, as bytes; Python's own standard library sources unless given.
        batch: Number of text windows; 2 unless given.
        length: Tokens in each window; 256 unless given.
        seed: Draws the weights and the windows; 0 unless given.
        device: Where both sides run: cpu or cuda, which both frameworks know.
        attention: Attention path of both sides: auto (the default), textbook, blockwise.
        repeat: How many times, with other windows and other drawn weights each time: how sure is it?
        train: Training steps to compare; 0 leaves training out.
        recipe: Which recipe to train by, adamw, bytes or paper; steps, batch, length, precision and seed are
            the options here.
        out: Folder for report.json and report.html.
    """
    console = Terminal()
    integer("repeat", repeat, least=1)
    integer("train", train, least=0)
    check_writable(out)
    sides = parse_sides(
        a, b, checkpoint=checkpoint, dtype=dtype, device=device, attention=attention or "auto"
    )
    refuse_ignored(
        sides,
        {"batch": batch, "length": length, "seed": seed, "data": data},
        {"repeat": repeat > 1 or None, "train": train or None},
        {"dtype": dtype, "device": device, "attention": attention},
        {"preset": preset, "architecture": architecture, **given(model)},
    )
    batch, length, seed = (
        default if value is None else value for value, default in ((batch, 2), (length, 256), (seed, 0))
    )
    config = config_of_sides(sides, preset, architecture or "torch", given(model))
    text = standard_library_text() if data is None else read_text(data)
    settings: dict[str, Any] = {"sides": f"{a} {b}"}
    settings |= {
        "model": model_name(sides, preset),
        "data": "standard library" if data is None else str(data),
    }
    settings |= {"batch": batch, "length": length, "seed": seed}
    if any(isinstance(side, Original) for side in sides):
        return _compare_original(sides, text, settings, out, console)
    if any(isinstance(side, Bundle) for side in sides):  # it brings its own tokens
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
        raise ConfigError(
            f"--train must have the sides torch and jax, in that order; got {a} {b}. Leave them out and give "
            "--dtype, --device or --checkpoint for both."
        )
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
                source,
                text,
                plan,
                checkpoint=path,
                device=device,
                attention=attention or "auto",
                on_step=on_step,
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
    print_report(report, console)
    console.print(f"\n{out / 'report.html'}\n{out / 'report.json'}", highlight=False, markup=False)
    return STATUS[outcome]


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
    if (ours.compile, ours.matmul, ours.remat) != (None, None, "off"):
        raise ConfigError(
            "a side beside an original must have no compile, matmul or remat; got one. Leave it out."
        )
    options: dict[str, Any] = {"backend": ours.backend, "device": ours.device, "attention": ours.attention}
    options["dtype"] = ours.dtype
    if ours.checkpoint is None:
        model = from_numpy(config, arrays, **options)
    else:
        model = load(ours.checkpoint, **options)
        config = model.config
    tokens = sample_windows(
        text, config, batch=settings["batch"], length=settings["length"], seed=settings["seed"]
    )
    check_own(model, tokens)
    found = compare_foreign(function, model, tokens)
    report = {**found.to_dict(), "run": settings}
    _write_report(report, out)
    _tell(settings, console)
    print_report(report, console)
    console.print(f"\n{out / 'report.json'}", highlight=False, markup=False)
    return STATUS[found.outcome]


def _with_training(report: dict[str, Any], trained: Butterfly) -> dict[str, Any]:
    verdict = f"{report['verdict'].removesuffix('.')}; {trained.verdict}"
    outcome = report["outcome"] if trained.agree else "differ"
    own = {"outcome": outcome, "agree": outcome == "agree", "verdict": verdict}
    return {**report, **own, "training": trained.to_dict()}


def check_writable(out: Path) -> None:
    """Make the folder of the reports, before any work. Raises `PalmError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(0, "no permission to write")
    except OSError as error:
        raise PalmError(
            f"out must be a writable folder; got out={out}: {error.strerror}. Name another with --out."
        ) from None


def _write_report(report: dict[str, Any], out: Path) -> None:
    try:
        (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if report["schema"] == "palm-compare":
            write_html(report, out / "report.html")
    except OSError as error:
        raise PalmError(f"out must be a writable folder; got out={out}: {error.strerror}.") from None


def _tell(settings: Mapping[str, Any], console: Console) -> None:
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    console.print(f"{told}\n", highlight=False, markup=False)

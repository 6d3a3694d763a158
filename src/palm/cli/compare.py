"""The command that compares: `palm compare`. A thin layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import palm
from palm.checkpoint.checkpoint import load
from palm.cli.flags import (
    Architecture,
    Attention,
    ModelFlags,
    Optional,
    PresetName,
    Request,
    Text,
    default,
    given,
)
from palm.cli.program_files import compare_program_files, is_program
from palm.cli.progress import progress
from palm.cli.report import check_writable, show
from palm.cli.side_text import SideText, text_of_sides
from palm.cli.sides import config_of_sides, model_name, parse_sides, plain_and_served, refuse_ignored
from palm.config import DType
from palm.errors import ConfigError
from palm.fields import check_choice, integer
from palm.memory import check_fits
from palm.parity.blackbox.compare import check_own, compare_foreign
from palm.parity.drift.drift import RUNS, Drift
from palm.parity.recording.recording import STEPS
from palm.parity.run.launch import (
    OnStep,
    Source,
    compare_served,
    compare_sides,
    train_backends,
    training_steps,
)
from palm.parity.run.sides import Bundle, Original, Side
from palm.recipes import RECIPES
from palm.recipes import recipe as find_recipe
from palm.spec.sizes import check_training
from palm.upstream.originals import original


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What `palm compare` is asked for."""

    a: Positional[Annotated[str, arg(metavar="[A]")]] = "torch"
    """The first side."""
    b: Positional[Annotated[str, arg(metavar="[B]")]] = "jax"
    """The second side."""
    preset: PresetName = None
    """The config to build from the seed; palm info lists them."""
    checkpoint: Annotated[Path | None, Optional] = None
    """Checkpoint for each side that names none. For a bundle without weights: the checkpoint with them."""
    architecture: Architecture = None
    """The original that a preset follows where it leaves the architecture open."""
    dtype: Annotated[DType | None, default("float32, or that of a bundle")] = None
    """Working precision of both sides."""
    data: Text = None
    """What to run on: text, a folder, shards, or a .npy file of ids. Text is bytes without a tokenizer."""
    batch: Annotated[int | None, default("2")] = None
    """Number of text windows."""
    length: Annotated[int | None, default("256")] = None
    """Tokens in each window."""
    seed: Annotated[int | None, default("0")] = None
    """Seed of the weights and of the text windows."""
    device: Annotated[str | None, default("the backend's")] = None
    """Where both sides run: cpu or cuda, which both frameworks know."""
    attention: Annotated[Attention | None, default("auto")] = None
    """Attention path of both sides. Both frameworks have auto, textbook and blockwise."""
    repeat: int = 1
    """How often to compare, each time with other windows and other drawn weights."""
    train: int = 0
    """Training steps to compare as well. 0: no training."""
    recipe: str = "adamw"
    """Recipe of the training: adamw, bytes or paper. --batch, --length, --dtype and --seed apply to it."""
    inputs: Annotated[Path | None, default("none; two programs need it")] = None
    """What two programs are called with: an .npy file, or the arrays of an .npz file in their order."""
    python_a: Annotated[Path | None, default("this Python")] = None
    """The Python that runs the program on the first side."""
    python_b: Annotated[Path | None, default("this Python")] = None
    """The Python that runs the program on the second side."""
    out: Path = Path("palm-compare")
    """Folder of report.json and report.html."""
    model: ModelFlags
    """These change single fields of the preset."""

    @property
    def windows(self) -> dict[str, int]:
        """Which windows of the text are read."""
        asked = (("batch", self.batch, 2), ("length", self.length, 256), ("seed", self.seed, 0))
        return {name: usual if value is None else value for name, value, usual in asked}

    def settings(self, sides: Sequence[Side | Original | Bundle], text: SideText | None) -> dict[str, Any]:
        """What the report says of the run. A bundle has its own text."""
        told: dict[str, Any] = {"sides": f"{self.a} {self.b}", "model": model_name(sides, self.preset)}
        if text is not None:
            data = "standard library" if self.data is None else str(self.data)
            told |= {"data": data, "tokens": text.tokens, **self.windows}
        told |= {"repeat": self.repeat} if self.repeat > 1 else {}
        return told | ({"train": self.train, "recipe": self.recipe} if self.train else {})


def compare(request: Request[CompareRequest]) -> int:
    """Run one model on two sides. Report whether they differ; if so, where, how far beyond rounding, and why.

    A live side is backend[:checkpoint][@key=value,…]. The keys are dtype, device, matmul (float32,
    tensorfloat32, bfloat16), attention (auto, textbook, blockwise, …), compile (on, off) and remat (on, off,
    feedforward). Examples: torch, torch@dtype=bfloat16, jax:RUN, jax:RUN/step-00000100.

    decode=on, rows=alone and padding=left compute the logits as serving does: a token at a time with a cache,
    each sequence in a batch of its own, or behind other ids. One side has them, and only logits are compared:
    palm compare torch torch@decode=on

    A recorded side is the folder that palm record wrote. It needs no framework.

    Two programs of anyone's are FILE.py:NAME, a module or a function in a Python file, and FILE.py:NAME, or a
    trace that palm.trace recorded. Both are called with --inputs.

    A published original is palm_pytorch.palm_lite[:weights]. Only its logits are compared.

    Each live side runs in its own process on the same real text. A NumPy referee in float64 judges both.

    With --train N, both sides also train on the same batches. The torch side trains once more from weights
    that differ in their last bit: this shows whether the sides drift apart faster than rounding makes them.

    Exit status: 0 agree, 1 differ, 2 bad usage, 3 cannot tell, 4 a side died, 130 or 143 ended by a signal.
    """
    integer("repeat", request.repeat, least=1)
    integer("train", request.train, least=0)
    check_choice("recipe", request.recipe, RECIPES)
    check_writable(request.out)
    both = request.a, request.b
    if any(map(is_program, both)):
        pythons = request.python_a, request.python_b
        return show(compare_program_files(both, pythons, request.inputs), request.out)
    sides = parse_sides(
        request.a,
        request.b,
        checkpoint=request.checkpoint,
        dtype=request.dtype,
        device=request.device,
        attention=request.attention or "auto",
    )
    refuse_ignored(sides, request)
    text = text_of_sides(sides, request.data)
    if any(isinstance(side, Side) and side.is_served for side in sides):
        return _compare_served(request, sides, text)
    if any(isinstance(side, Original) for side in sides):
        return _compare_original(request, sides, text)
    one, other = (side for side in sides if not isinstance(side, Original))
    source = _source(request, (one, other), text)
    if request.train:
        return _compare_training(request, (one, other), source, text)
    return _compare_sides(request, (one, other), source, text)


def _compare_served(
    request: CompareRequest, sides: Sequence[Side | Original | Bundle], text: SideText | None
) -> int:
    """A side with decode, rows or padding against a plain one."""
    plain, own = plain_and_served(sides)
    assert text is not None
    source = _source(request, (plain, own), text)
    a, b = (request.a, request.b) if plain is sides[0] else (request.b, request.a)
    with progress({"a": len(STEPS), "b": 2, "referee": 1}, {"a": a, "b": b}) as on_step:
        found = compare_served(plain, own, source, on_step=on_step)
    return show({**found.to_dict(), "run": request.settings(sides, text)}, request.out)


def _source(request: CompareRequest, sides: Sequence[Side | Bundle], text: SideText | None) -> Source:
    """What the live sides run. A bundle has its own tokens."""
    config = config_of_sides(sides, request.preset, request.architecture, given(request.model))
    windows = request.windows
    if text is None:
        return Source(config, windows["seed"], ())
    ids = request.repeat * windows["batch"] * windows["length"]
    check_fits(f"the tokens of {request.repeat:,} repeats", 8 * ids, "Use a smaller --repeat.")
    seeds = [windows["seed"] + i for i in range(request.repeat)]
    tokens = tuple(text.windows(config.num_tokens, **{**windows, "seed": seed}) for seed in seeds)
    return Source(config, windows["seed"], tokens)


def _compare_sides(
    request: CompareRequest,
    sides: tuple[Side | Bundle, Side | Bundle],
    source: Source,
    text: SideText | None,
) -> int:
    """Two sides, live or recorded."""
    with _progress(request, sides, {}) as on_step:
        found = compare_sides(*sides, source, checkpoint=_checkpoint(request), on_step=on_step)
    report = {**found.to_dict(), "run": request.settings(sides, text)}
    return show(report, request.out)


def _compare_training(
    request: CompareRequest, sides: tuple[Side | Bundle, Side | Bundle], source: Source, text: SideText | None
) -> int:
    """Two live sides, and both wings' training."""
    if (request.a, request.b) != ("torch", "jax"):
        raise ConfigError(
            f"--train must have the sides torch and jax, in that order; got {request.a} {request.b}. "
            "Leave them out and give --dtype, --device or --checkpoint for both."
        )
    plan = find_recipe(
        request.recipe,
        **{**request.windows, "steps": request.train, "precision": request.dtype or "float32"},
        ramp=(),
        accumulate=1,
    )
    if request.device in (None, "cpu"):
        check_training(source.config, plan.master, batch=plan.batch, micro=plan.batch, length=plan.length)
    assert text is not None
    checkpoint = _checkpoint(request)
    with _progress(request, sides, dict.fromkeys(RUNS, training_steps(plan))) as on_step:
        found = compare_sides(*sides, source, checkpoint=checkpoint, on_step=on_step)
        trained = train_backends(
            source,
            text.corpus,
            plan,
            checkpoint=checkpoint,
            device=request.device,
            attention=request.attention or "auto",
            on_step=on_step,
        )
    report = {**_with_training(found.to_dict(), trained), "run": request.settings(sides, text)}
    return show(report, request.out)


def _with_training(report: dict[str, Any], trained: Drift) -> dict[str, Any]:
    """The report with a training in it: the sides agree only if both agree."""
    verdict = f"{report['verdict'].removesuffix('.')}; {trained.verdict}"
    outcome = report["outcome"]
    if trained.outcome == "differ" or outcome == "agree":
        outcome = trained.outcome
    own = {"outcome": outcome, "agree": outcome == "agree", "verdict": verdict}
    return {**report, **own, "training": trained.to_dict()}


def _compare_original(
    request: CompareRequest, sides: Sequence[Side | Original | Bundle], text: SideText | None
) -> int:
    """A published original against a palm model with its weights, or with those of a checkpoint."""
    live = next(side for side in sides if isinstance(side, Original))
    ours = next((side for side in sides if isinstance(side, Side)), None)
    if ours is None:
        raise ConfigError(
            "an original must be compared with torch or jax; got neither. Make one side torch or jax."
        )
    if (ours.compile, ours.matmul, ours.remat) != (None, None, "off"):
        raise ConfigError(
            "a side that is compared with an original must not set compile, matmul or remat; got one of "
            "these. Leave it out."
        )
    file = None if live.file is None else Path(live.file)
    function, config, arrays = original(live.source, file, seed=request.windows["seed"])
    options: dict[str, Any] = {"backend": ours.backend, "device": ours.device, "attention": ours.attention}
    options["dtype"] = ours.dtype
    if ours.checkpoint is None:
        model = palm.from_numpy(config, arrays, **options)
    else:
        model = load(ours.checkpoint, **options)
        config = model.config
    assert text is not None
    tokens = text.windows(config.num_tokens, **request.windows)
    check_own(model, tokens)
    found = compare_foreign(function, model, tokens)
    report = {**found.to_dict(), "run": request.settings(sides, text)}
    return show(report, request.out)


def _progress(
    request: CompareRequest, sides: Sequence[Side | Bundle], more: dict[str, int]
) -> AbstractContextManager[OnStep]:
    """Bars of the live sides, of the referee, and of `more`."""
    live = [key for key, side in zip("ab", sides, strict=True) if isinstance(side, Side)]
    totals = dict.fromkeys(live, request.repeat * len(STEPS)) | {"referee": request.repeat} | more
    return progress(totals, {"a": request.a, "b": request.b})


def _checkpoint(request: CompareRequest) -> str | None:
    return None if request.checkpoint is None else str(request.checkpoint)

"""`palm compare`: each side, and each training, in a process of its own; what judges them in this one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import check_installed
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.config import BACKENDS, DType, PaLMConfig
from palm.data.windows import Corpus, windows
from palm.errors import BundleError, ConfigError
from palm.files.arrays import npy_header
from palm.files.temporary import temporary_folder
from palm.parity.blackbox.compare import compare_logits
from palm.parity.blackbox.logits import Logits
from palm.parity.blackbox.result import ForeignComparison
from palm.parity.compare import judged
from palm.parity.drift.drift import RUNS, Drift, butterfly
from palm.parity.drift.trajectory import read_trajectory
from palm.parity.explain.explain import explained
from palm.parity.recording.bundle import read_bundle
from palm.parity.recording.excerpt import Excerpt
from palm.parity.recording.recording import Recording
from palm.parity.repeats import Repeated, Repeats
from palm.parity.run.child import Child
from palm.parity.run.sides import Bundle, Side, labels
from palm.recipes import Recipe
from palm.spec.mesh import check_batch
from palm.spec.rounding import coarsest
from palm.spec.sizes import check_comparison, check_model

OnStep = Callable[[str, str], None]


@dataclass(frozen=True)
class Source:
    """What live sides run: a resolved config and a seed for those without a checkpoint, and text by seed."""

    config: PaLMConfig
    seed: int
    tokens: tuple[np.ndarray, ...]


def compare_sides(
    a: Side | Bundle, b: Side | Bundle, source: Source, *, checkpoint: str | None, on_step: OnStep
) -> Repeated:
    """Record the sides that are live, one process each, and compare; once for each of the source's tokens.

    The i-th time weights are drawn from seed + i. Live sides of different dtype both get the weights rounded
    to the coarser one, so that they differ only in what they compute. A live side beside a bundle runs on its
    tokens and weights. `checkpoint` has the weights of a bundle that holds only their checksums.

    `on_step(side, step)` is called when a live side ("a", "b") finishes one of `recording.STEPS`, and when
    the referee is done. Raises `MissingFrameworkError`, `BundleError`, `ConfigError` for sequences that a
    side's mesh cannot share out, what a side refuses, and `ProbeError` if one dies.
    """
    sides = {"a": a, "b": b}
    live = {key: side for key, side in sides.items() if isinstance(side, Side)}
    for side in live.values():
        check_installed(side.backend)
    _check_room(live, source)
    weights = load_arrays(checkpoint)[1] if checkpoint is not None and len(live) < len(sides) else None
    recorded = {key: _labelled(side, weights) for key, side in sides.items() if isinstance(side, Bundle)}
    names = dict(zip(live, labels(*live.values()), strict=True))
    repeats = Repeats()
    with temporary_folder("compare") as folder, ExitStack() as stack:
        common = _common(source, list(live.values()), next(iter(recorded.values()), None), folder)
        children = {}
        for key, side in live.items():
            request = {**common, **side.to_dict(), "label": names[key], "out": str(folder / key)}
            children[key] = stack.enter_context(Child(names[key], request, partial(on_step, key)))
        for i, pair in enumerate(_pairs(children, recorded, folder, len(common["tokens"]))):
            repeats.add(common["seed"] + i, judged(*pair, on_step=partial(on_step, "referee")))
    found = repeats.result()
    return replace(found, shown=explained(found.shown))


def compare_served(plain: Side, own: Side, source: Source, *, on_step: OnStep) -> ForeignComparison:
    """Compare the logits of a side that is served (`palm.served`) with those of a plain one.

    Both have the same weights, of the checkpoint that one of them names or from the seed. `on_step(side,
    step)` is called with "a" for the plain side, "b" for the other, and "referee". Raises as `compare_sides`,
    and `ConfigError` for two checkpoints.
    """
    checkpoints = dict.fromkeys(side.checkpoint for side in (plain, own) if side.checkpoint is not None)
    if len(checkpoints) > 1:
        raise ConfigError(
            "checkpoint must be the same on both sides where one has decode, rows or padding; got "
            f"{' and '.join(checkpoints)}. Name one of them."
        )
    plain, own = (replace(side, checkpoint=next(iter(checkpoints), None)) for side in (plain, own))
    for side in (plain, own):
        check_installed(side.backend)
    _check_room({"a": plain, "b": own}, source)
    with temporary_folder("compare") as folder, ExitStack() as stack:
        common = _common(source, [plain, own], None, folder)
        children, names = [], labels(plain, own)
        for key, side, name in zip("ab", (plain, own), names, strict=True):
            request = {**common, **side.to_dict(), "label": name, "out": str(folder / key)}
            children.append(stack.enter_context(Child(name, request, partial(on_step, key))))
        for child in children:
            child.wait()
        logits = Logits(np.load(folder / "b.npy", allow_pickle=False).astype(np.float64), own.dtype)
        recording = read_bundle(folder / "a" / "0")
        assert isinstance(recording, Recording)
        found = compare_logits(names[1], logits, recording)
        on_step("referee", "referee")
        return found


def _check_room(live: Mapping[str, Side], source: Source) -> None:
    """Raise `ConfigError` for a comparison of two live sides that does not fit into memory."""
    if len(live) > 1:
        check_comparison(source.config, rows=source.tokens[0].size, sides=len(live))


def _pairs(
    children: Mapping[str, Child], recorded: Mapping[str, Recording | Excerpt], folder: Path, count: int
) -> Iterator[tuple[Recording | Excerpt, Recording | Excerpt]]:
    """What both sides recorded, `count` times, each as soon as it is written, until the children end."""
    for i in range(count):
        for child in children.values():
            child.wait_for(i + 1)
        a, b = (recorded[key] if key in recorded else read_bundle(folder / key / str(i)) for key in "ab")
        yield a, b
        for key in children:  # recordings are large
            shutil.rmtree(folder / key / str(i), ignore_errors=True)
    for child in children.values():
        child.wait()


def record_side(
    side: Side, source: Source, out: Path, *, is_complete: bool, on_step: OnStep
) -> Recording | Excerpt:
    """Record one live side in a process of its own into the bundle `out`. Raises as `compare_sides`."""
    check_installed(side.backend)
    check_model(source.config, side.dtype)
    with temporary_folder("record") as folder:
        common = _common(source, [side], None, folder)
        own = {"label": side.backend, "out": str(out), "is_excerpt": not is_complete}
        with Child(None, {**common, **side.to_dict(), **own}, partial(on_step, "a")) as child:
            child.wait()
    return read_bundle(out)


def _common(
    source: Source, live: Sequence[Side], bundle: Recording | Excerpt | None, folder: Path
) -> dict[str, Any]:
    """What every live side is asked for: config, seed, the weights' dtype, files of tokens."""
    dtypes: list[DType] = [side.dtype for side in live]
    tokens: Sequence[np.ndarray] = source.tokens
    common: dict[str, Any] = {"config": source.config.to_dict(), "seed": source.seed}
    if bundle is not None:
        tokens = [bundle.tokens]
        common = {"config": bundle.config.to_dict(), "seed": 0}
        dtypes.append(bundle.dtype)
        if live and bundle.weights is not None:
            save_arrays(bundle.config, dict(bundle.weights), folder / "weights")
            common["weights"] = str(folder / "weights")
        elif isinstance(bundle, Excerpt) and bundle.seed is not None:
            common |= {"seed": bundle.seed, "draw": bundle.draw}
        elif any(side.checkpoint is None for side in live):
            raise BundleError(
                f"{bundle.label} must be complete, drawn from a seed, or come with --checkpoint, because "
                "a live side needs its weights; the bundle has only checksums of them. Pass --checkpoint."
            )
    for side in live:  # each process would say so, after it has built its model
        check_batch(len(tokens[0]), 1, side.grid)
    for i, ids in enumerate(tokens):
        np.save(folder / f"tokens-{i}.npy", ids)
    common["tokens"] = [str(folder / f"tokens-{i}.npy") for i in range(len(tokens))]
    return {**common, "coarsest": coarsest(dtypes)}


def _labelled(side: Bundle, weights: Mapping[str, np.ndarray] | None) -> Recording | Excerpt:
    """A bundle's recording, called by its folder too; an excerpt with its weights, if they are known."""
    recording = side.recording
    own = replace(recording, label=f"{recording.label} ({side.path.name})")
    return own.with_weights(weights) if isinstance(own, Excerpt) and weights is not None else own


def train_backends(
    source: Source,
    corpus: Corpus,
    recipe: Recipe,
    *,
    checkpoint: str | None,
    device: str | None,
    attention: str,
    on_step: OnStep,
) -> Drift:
    """Train one model in both wings on the same batches, and once more in torch from weights an ulp away.

    One process after another: each has all cores and the device's memory to itself. `on_step(run, step)` is
    called as each run of `butterfly.RUNS` finishes one of its `training_steps`. Raises `DataError` if the
    text is shorter than a window, `MissingFrameworkError`, and `ProbeError` with the words of a run that
    fails.
    """
    for backend in BACKENDS:
        check_installed(backend)
    windows(corpus, seed=recipe.seed, first=0, rows=1, length=recipe.length)
    with temporary_folder("train") as folder:
        _save_ids(corpus, folder / "ids.npy")
        common = {"config": source.config.to_dict(), "seed": source.seed, "checkpoint": checkpoint}
        common |= {"dtype": recipe.precision, "device": device, "attention": attention}
        common |= {"recipe": recipe.to_dict(), "ids": str(folder / "ids.npy")}
        for run in RUNS:
            own = {"backend": "jax" if run == "jax" else "torch", "is_control": run == "control"}
            request = {**common, **own, "out": str(folder / run)}
            with Child(f"train {run}", request, partial(on_step, run)) as child:
                child.wait()
        return butterfly(*(read_trajectory(folder / run) for run in RUNS))


def _save_ids(corpus: Corpus, file: Path) -> None:
    """Write a corpus as one file of ids, piece by piece: it may be larger than the memory."""
    dtype = np.min_scalar_type(corpus.largest_possible).newbyteorder("<")
    with file.open("wb") as stream:
        stream.write(npy_header(dtype, len(corpus)))
        for _, ids in corpus.pieces():
            stream.write(ids.astype(dtype).tobytes())


def training_steps(recipe: Recipe) -> int:
    """How many steps a training reports: the build, and k = 0 … N."""
    return recipe.steps + 2

"""The steps of one run in one process: learn, measure, log, save, mend what diverges. See `palm.training`."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palm.backends import config_of, from_numpy, to_numpy, wing
from palm.checkpoint import Progress, load_progress, save_arrays
from palm.config import Backend
from palm.data import Corpus, split, validation_windows, windows
from palm.errors import ConfigError, DataError, DivergedError
from palm.fields import integer
from palm.generation import generate
from palm.hardware import peak_flops
from palm.info import describe
from palm.recipe import Outcome, Recipe
from palm.run import SAMPLES, Run
from palm.tokenizer import Tokenizer

# A run that diverges again and again needs another recipe, not other batches.
MAX_REWINDS = 10

Entry = dict[str, Any]
OnStep = Callable[[Entry], None]


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """What happens beside the steps, none of which changes the weights. Every count is of steps; 0 is never.

    - `checkpoint_every`: write a checkpoint; the first and the last step have one anyway.
    - `keep`: how many of the newest checkpoints are kept, besides the one of the lowest validation loss, and
      those that a rewind may need.
    - `validate_every`: measure the validation loss; it is measured at every regular checkpoint as well.
    - `validate_windows`: on how many windows at most.
    - `sample_every`: write a sample to samples.jsonl.
    - `sample_tokens`: its length.
    - `sample_prompt`: what it continues.
    """

    checkpoint_every: int = 200
    keep: int = 3
    validate_every: int = 100
    validate_windows: int = 64
    sample_every: int = 0
    sample_tokens: int = 200
    sample_prompt: str = "\n"

    def __post_init__(self) -> None:
        for name in ("keep", "validate_windows", "sample_tokens"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=1))
        for name in ("checkpoint_every", "validate_every", "sample_every"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=0))
        if not isinstance(self.sample_prompt, str) or not self.sample_prompt:
            raise ConfigError(
                f"sample_prompt must be text; got sample_prompt={self.sample_prompt!r}. "
                'Use "\\n" to start afresh.'
            )


@dataclass(frozen=True)
class Trained:
    """A run's end: the model, the log of its steps, the folder, and whether it was asked to stop early."""

    model: Any = field(repr=False)
    log: list[Entry] = field(repr=False)
    path: Path | None
    interrupted: bool

    @property
    def step(self) -> int:
        """The last step that was made."""
        return self.log[-1]["step"] if self.log else 0


class Loop:
    """The steps of one run in one process."""

    def __init__(
        self,
        folder: Run | None,
        recipe: Recipe,
        cadence: Cadence,
        corpus: Corpus,
        encoder: Tokenizer,
        backend: Backend,
        on_step: OnStep,
    ) -> None:
        self.folder, self.recipe, self.cadence = folder, recipe, cadence
        self.encoder, self.backend, self.on_step = encoder, backend, on_step
        self.learnt, held_out = split(corpus, recipe.validation)
        self.held_out = None if held_out is None else self._validation(held_out)
        if cadence.sample_every and not len(encoder.encode(cadence.sample_prompt)):
            raise ConfigError(
                "sample_prompt must have tokens; got "
                f"sample_prompt={cadence.sample_prompt!r}, which the tokenizer leaves out. Use a word."
            )
        self.bits_per_nat = 1 / math.log(2) / corpus.bytes_per_token
        self.step = 0
        self.row = 0  # the data cursor: rows of the data's order that were used or skipped so far
        self.rewinds = 0
        self.mfu_per_rate: float | None = None  # model FLOPs utilisation of one token a second
        self.saved: int | None = None
        self.log: list[Entry] = []

    def run(self, trainer: Any) -> Trained:
        """Make the steps that remain."""
        peak = peak_flops(wing(self.backend).device_name(trainer.model), self.recipe.precision)
        flops = describe(config_of(trainer.model), self.recipe.length).training_flops
        self.mfu_per_rate = None if peak is None else flops / peak
        with asked_to_stop() as asked:
            while self.step < self.recipe.steps and not asked.is_set():
                trainer = self._advance(trainer)
            self.save(trainer)
            if self.folder is not None:
                from palm.plot import plot_run  # noqa: PLC0415 - matplotlib takes a second to import

                plot_run(self.folder)
            interrupted = self.step < self.recipe.steps
        return Trained(trainer.model, self.log, self.folder.path if self.folder else None, interrupted)

    def save(self, trainer: Any) -> None:
        """Write the checkpoint of this step, unless it is there."""
        if self.folder is None or self.saved == self.step:
            return
        fields = {
            "step": self.step,
            "row": self.row,
            "rewinds": self.rewinds,
            "val_loss": self.log[-1].get("val_loss") if self.log else None,
            "backend": self.backend,
            "recipe": self.recipe.to_dict(),
        }
        self.folder.sync()  # a checkpoint's lines are on the disk before it is
        save_arrays(
            config_of(trainer.model),
            to_numpy(trainer.model),
            self.folder.path_of(self.step),
            progress=Progress(fields, trainer.moments()),
        )
        self.saved = self.step
        self.folder.prune(self.cadence.keep, since=self._way_back(self.step))

    def restore(self, path: Path, *, device: Any, attention: str) -> Any:
        """A trainer in the state of a checkpoint; the log and the data cursor go back with it."""
        assert self.folder is not None
        config, arrays, progress = load_progress(path)
        model = from_numpy(config, arrays, backend=self.backend, device=device, attention=attention)
        trainer = wing(self.backend).Trainer(model, self.recipe)
        trainer.set_moments(progress.moments)
        self.step, self.row = progress.fields["step"], progress.fields["row"]
        self.rewinds = max(self.rewinds, progress.fields["rewinds"])
        self.saved = self.step
        self.folder.cut(self.step)
        self.log = self.folder.entries()
        return trainer

    def _advance(self, trainer: Any) -> Any:
        """One step, and what is due after it; the trainer to go on with."""
        started = time.perf_counter()
        step, recipe = self.step + 1, self.recipe
        rows = recipe.batch_at(step)
        batch = windows(self.learnt, seed=recipe.seed, first=self.row, rows=rows, length=recipe.length)
        outcome = trainer.step(batch, recipe.rates(step))
        if not outcome.is_finite:
            return self._mend(trainer, outcome)
        seconds = time.perf_counter() - started
        self.step, self.row = step, self.row + rows
        entry: Entry = {
            "step": step,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "lr": recipe.lr(step),
            "tokens": recipe.rows_before(step + 1) * recipe.length,
            "tokens_per_s": rows * recipe.length / seconds,
            "seconds": seconds,
        }
        if math.isfinite(self.bits_per_nat):  # nobody knows the text of a file of ids
            entry["bits_per_byte"] = outcome.loss * self.bits_per_nat
        if self.mfu_per_rate is not None:
            entry["mfu"] = entry["tokens_per_s"] * self.mfu_per_rate
        is_last = step == recipe.steps
        saves = self.folder is not None and (_is_due(self.cadence.checkpoint_every, step) or is_last)
        if self.held_out is not None and (saves or is_last or _is_due(self.cadence.validate_every, step)):
            entry["val_loss"] = self._validate(trainer)
            if math.isfinite(self.bits_per_nat):
                entry["val_bits_per_byte"] = entry["val_loss"] * self.bits_per_nat
        self.log.append(entry)
        if self.folder is not None:
            self.folder.log(entry)
            if _is_due(self.cadence.sample_every, step):
                self.folder.log({"step": step, "text": self._sample(trainer)}, SAMPLES)
        if saves:
            self.save(trainer)
        self.on_step(entry)
        return trainer

    def _mend(self, trainer: Any, outcome: Outcome) -> Any:
        """Stop, or go back and skip what led here. The weights of before the step are untouched."""
        step = self.step + 1
        where = f"the gradient of {', '.join(outcome.bad[:3])}" if outcome.bad else "the loss"
        found = f"loss={outcome.loss}, grad_norm={outcome.grad_norm} at step {step}, first in {where}"
        if self.recipe.non_finite == "stop":
            self.save(trainer)
            kept = f" and saved in {self.folder.path_of(self.step)}" if self.folder else ""
            raise DivergedError(
                f"loss and gradient must be finite; got {found}. The weights are those of step "
                f"{self.step}{kept}. Lower learning_rate, or train with non_finite=rewind."
            )
        if self.rewinds == MAX_REWINDS:
            raise DivergedError(
                f"loss and gradient must be finite; got {found}, after {MAX_REWINDS} rewinds. "
                "Lower learning_rate."
            )
        assert self.folder is not None
        after_bad = self.row + self.recipe.batch_at(step)
        target = self._way_back(step)
        assert target is not None
        # Newest first, and before the log is cut: after a kill the newest one left still has its whole log.
        for later in sorted((s for s in self.folder.checkpoints() if s > target), reverse=True):
            self.folder.delete(later)
        device, attention = trainer.placement
        trainer = self.restore(self.folder.path_of(target), device=device, attention=attention)
        self.row = max(self.row + self.recipe.skip * self.recipe.batch_at(target + 1), after_bad)
        self.rewinds += 1
        return trainer

    def _way_back(self, step: int) -> int | None:
        """Which checkpoint a spike at `step` leads back to: a regular one, whatever was interrupted."""
        if self.recipe.non_finite == "stop" or self.folder is None:
            return None
        every = self.cadence.checkpoint_every
        return max(0, step - self.recipe.rewind) // every * every if every else 0

    def _validation(self, held_out: Corpus) -> np.ndarray:
        if len(held_out) <= self.recipe.length:
            raise DataError(
                f"validation must be a share of at least one window of {self.recipe.length + 1} tokens; got "
                f"validation={self.recipe.validation}, which is {len(held_out)} tokens. Use a larger share, "
                "a longer text, a smaller length, or validation=0."
            )
        found = validation_windows(held_out, length=self.recipe.length, limit=self.cadence.validate_windows)
        rows = self.recipe.batch // self.recipe.accumulate
        return found[: len(found) - len(found) % rows] if len(found) > rows else found

    def _validate(self, trainer: Any) -> float:
        assert self.held_out is not None
        rows = self.recipe.batch // self.recipe.accumulate
        chunks = [self.held_out[at : at + rows] for at in range(0, len(self.held_out), rows)]
        return sum(trainer.evaluate(chunk) * len(chunk) for chunk in chunks) / len(self.held_out)

    def _sample(self, trainer: Any) -> str:
        cadence = self.cadence
        generated = generate(
            trainer.model,
            cadence.sample_prompt,
            max_new_tokens=cadence.sample_tokens,
            tokenizer=self.encoder,
            seed=self.step,
        )
        return generated.text


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second one acts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0

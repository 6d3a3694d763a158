"""The steps of one run in one process: learn, measure, log, save, mend what diverges."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from palm.backends import wing
from palm.checkpoint.tokenizer import kept_file
from palm.config import Backend, PaLMConfig
from palm.data.remembered import remember_tokenizer
from palm.data.tokenizer import Tokenizer
from palm.data.windows import Batch, Corpus, batch_of, split
from palm.errors import CheckpointError, DivergedError, RunError
from palm.generation.generate import generate
from palm.generation.prompts import encode_prompt
from palm.recipes import Outcome, Recipe
from palm.training.alike import check_alike
from palm.training.cadence import Cadence, is_due
from palm.training.hardware import give_back_holes, mfu_per_rate
from palm.training.measures import Measures
from palm.training.onlookers import Onlookers
from palm.training.run_files import SAMPLES
from palm.training.run_folder import Run
from palm.training.saving import Saver, noted
from palm.training.start import turns
from palm.training.state import read_state
from palm.training.trained import Entry, OnStep, Trained
from palm.training.validation import Validation, check_trainable
from palm.wings import TrainerProtocol

# A run that diverges again and again at one place needs another recipe, not other batches.
MAX_REWINDS = 10


class Loop:
    """The steps of one run in one process."""

    def __init__(
        self,
        folder: Run | None,
        config: PaLMConfig,
        recipe: Recipe,
        cadence: Cadence,
        corpus: Corpus,
        tokenizer: Tokenizer | None,
        backend: Backend,
        on_step: OnStep,
        onlookers: Onlookers,
    ) -> None:
        self.folder, self.config, self.recipe, self.cadence = folder, config, recipe, cadence
        self.tokenizer, self.backend, self.on_step = tokenizer, backend, on_step
        self.onlookers = onlookers
        self.processes = wing(backend)  # of which each makes the same steps, and the first one writes
        # What cannot work must fail now, before anything is written.
        check_trainable(corpus, recipe)
        self.learnt, held_out = split(corpus, recipe.validation)
        self.validation = None if held_out is None else Validation(held_out, recipe, cadence.validate_windows)
        batch_of(self.learnt, seed=recipe.seed, first=0, rows=1, length=recipe.length)
        if cadence.sample_every:
            encode_prompt(cadence.sample_prompt, tokenizer, config, cadence.sample_tokens)
        self.measures = Measures(recipe, corpus.bytes_per_token)
        self.step = 0
        self.row = 0  # the data cursor: rows of the data's order that were used or skipped so far
        self.rewinds = 0  # without getting past them, the last one from step `spike`
        self.spike = 0
        self.saver = (
            Saver(folder, self.processes, kept_file(tokenizer), keep=cadence.keep) if folder else None
        )
        self.whole = True  # the trainer's state is that of `step`, which can be saved
        self.log: list[Entry] = []
        self.logged = 0  # entries of it that the folder has
        self.failed: dict[str, str] = {}  # what went wrong beside the steps, by what it was

    def run(self, trainer: TrainerProtocol[Any], asked: threading.Event) -> Trained[Any]:
        """Make the steps that remain, or until `asked` to stop."""
        self.measures.mfu_per_rate = mfu_per_rate(self.processes, trainer.model, self.recipe)
        try:
            while self.step < self.recipe.steps and not self.processes.agreed(asked.is_set()):
                trainer = self._advance(trainer)
            self.save(trainer)
        except BaseException as error:
            self._rescue(trainer, error)
            raise
        finally:
            self.onlookers.close()
        with self._beside("the plot"):
            self._draw()
        interrupted = self.step < self.recipe.steps
        remember_tokenizer(trainer.model, self.tokenizer)
        path = self.folder.path if self.folder else None
        failed = (*self.failed.values(), *self.onlookers.failed)
        return Trained(trainer.model, self.log, path, interrupted, self.tokenizer, failed)

    def save(self, trainer: TrainerProtocol[Any], *, behind: bool = False) -> None:
        """Write the checkpoint of this step, unless it is there; `behind` the steps, if that is asked."""
        if self.saver is None:
            return
        if self.saver.last == self.step:
            self.saver.finish()
            return
        fields = {
            "step": self.step,
            "row": self.row,
            "rewinds": self.rewinds,
            "spike": self.spike,
            "val_loss": self.log[-1].get("val_loss") if self.log else None,
            "backend": self.backend,
            "recipe": self.recipe.to_dict(),
        }
        self._write_log()
        self.saver.begin(self.step, trainer, fields, since=self._way_back(self.step), behind=behind)

    def _rescue(self, trainer: TrainerProtocol[Any], error: BaseException) -> None:
        """Save what an error has left whole, so that it costs no steps. That error is raised then.

        Of several processes only some may have failed, and a model is saved by all of them.
        """
        if self.folder is None or self.saver is None:
            return
        if self.processes.several():
            return self.saver.give_up()
        with noted(error, "An older step could not be saved"):
            self.saver.finish()
        is_mended = isinstance(error, DivergedError)  # what was worth it has been saved
        if is_mended or not self.whole or not self.folder.follow():
            return
        with noted(error, f"Step {self.step} could not be saved"):
            self.save(trainer)

    @contextmanager
    def _beside(self, what: str) -> Iterator[None]:
        """What goes wrong in something that is not the training itself is told at the end."""
        try:
            yield
        except Exception as error:
            self.failed.setdefault(what, f"{what} failed after step {self.step}: {error}")

    def _draw(self) -> None:
        if self.folder is not None and self.processes.is_first():
            from palm.training.plot import plot_run  # noqa: PLC0415 - matplotlib takes a second to import

            plot_run(self.folder)

    def _write_log(self) -> None:
        """Append to the log what it lacks."""
        if self.folder is not None:
            for entry in self.log[self.logged :]:
                self.folder.log(entry)
                self.logged += 1

    def restore(self, latest: float, *, device: Any, attention: str) -> TrainerProtocol[Any]:
        """A trainer in the state of the newest checkpoint up to step `latest`.

        The log and the data cursor go back with it, and later checkpoints go. Raises `CheckpointError` if it
        is damaged, `RunError` if there is none; nothing has changed then.
        """
        assert self.folder is not None
        assert self.saver is not None
        self.saver.finish()
        there = self.folder.checkpoints()
        usable = [step for step in there if step <= latest]
        if not usable:
            raise RunError(
                f"{self.folder.path} must have a checkpoint to continue from; it has none. Start a new run."
            )
        path = there[usable[-1]]
        check_alike(self.processes, checkpoint=path.name)
        try:
            fields, trainer = read_state(path, self.config, self.recipe, self.backend, device, attention)
        except CheckpointError as error:
            if len(usable) == 1:
                raise
            raise CheckpointError(
                f"{error} Or remove {path}: the run then goes on from step {usable[-2]}."
            ) from error
        self.processes.wait()  # before what others may still read is deleted
        self.whole = False  # of the old trainer, until all here is done
        self.saver.last = self.step = fields["step"]
        self.row = fields["row"]
        self.rewinds, self.spike = fields["rewinds"], fields["spike"]
        # Newest first, and before the log is cut: after a kill the newest one left still has its whole log.
        for later in sorted((step for step in there if step > self.step), reverse=True):
            self.folder.delete(later)
        self.folder.cut(self.step)
        self.processes.wait()
        self.log = self.folder.entries()
        self.logged, self.whole = len(self.log), True
        return trainer

    def _advance(self, trainer: TrainerProtocol[Any]) -> TrainerProtocol[Any]:
        """One step, and what is due after it; the trainer to go on with."""
        if self.saver is not None:
            self.saver.settle()
        step, recipe = self.step + 1, self.recipe
        self.onlookers.before(step)
        started = time.perf_counter()
        rows = recipe.batch_at(step)
        batch = batch_of(self.learnt, seed=recipe.seed, first=self.row, rows=rows, length=recipe.length)
        outcome = self._learn(trainer, batch)
        give_back_holes()
        if not outcome.is_finite:
            return self._mend(trainer, outcome)
        entry = self.measures.of_step(step, outcome, time.perf_counter() - started)
        self.step, self.row = step, self.row + rows
        self.log.append(entry)
        self.whole = True
        is_last = step == recipe.steps
        saves = self.folder is not None and (is_due(self.cadence.checkpoint_every, step) or is_last)
        if self.validation is not None and (saves or is_last or is_due(self.cadence.validate_every, step)):
            val_loss = self.validation.loss(trainer)
            if not math.isfinite(val_loss):
                self.whole = False
                self.step, self.row = step - 1, self.row - rows
                self.log.pop()
                return self._mend(trainer, outcome, val_loss)
            entry |= self.measures.of_validation(val_loss)
        self._write_log()
        if self.folder is not None and is_due(self.cadence.sample_every, step):
            with self._beside("a sample"):
                self.folder.log({"step": step, "text": self._sample(trainer)}, SAMPLES)
        if saves:
            self.save(trainer, behind=self.cadence.save_behind)
        self.onlookers.after(entry)
        self.on_step(entry)
        return trainer

    def _learn(self, trainer: TrainerProtocol[Any], batch: Batch) -> Outcome:
        """A step of the trainer. What it leaves is `whole` once the step counts, or if nothing changed."""
        self.whole = False
        try:
            outcome = trainer.step(batch, self.recipe.rates(self.step + 1))
        except Exception:
            self.whole = trainer.intact
            raise
        self.whole = not outcome.is_finite
        return outcome

    def _mend(
        self, trainer: TrainerProtocol[Any], outcome: Outcome, val_loss: float | None = None
    ) -> TrainerProtocol[Any]:
        """Stop, or go back and skip what led here.

        The weights of before the step are untouched; but a `val_loss` is of those after it, which its update
        has spoilt though loss and gradient were finite.
        """
        step = self.step + 1
        first = f"the gradient of {', '.join(outcome.bad[:3])}" if outcome.bad else "the loss"
        found = f"loss={outcome.loss}, grad_norm={outcome.grad_norm} at step {step}, first in {first}"
        if val_loss is not None:
            found = f"a validation loss of {val_loss} after step {step}, which its update made not finite"
        if self.recipe.non_finite == "stop":
            kept = ""
            if val_loss is None:
                self.save(trainer)
                kept = f" The weights are those of step {self.step}"
                kept += f" and saved in {self.folder.path_of(self.step)}." if self.folder else "."
            raise DivergedError(
                f"loss and gradient must be finite; got {found}.{kept} Lower learning_rate, or train with "
                "non_finite=rewind."
            )
        rewinds = self.rewinds + 1 if step <= self.spike + self.recipe.rewind else 1
        if rewinds > MAX_REWINDS:
            raise DivergedError(
                f"loss and gradient must be finite; got {found}, after {MAX_REWINDS} rewinds. "
                "Lower learning_rate."
            )
        after_bad = self.row + self.recipe.batch_at(step)
        target = self._way_back(step)
        assert target is not None
        assert self.folder is not None
        device, attention = trainer.placement
        trainer = self.restore(target, device=device, attention=attention)
        settings = self.folder.settings()
        self.folder.write_settings({**settings, **turns(settings, self.step, self.backend)})
        self.row = max(self.row + self.recipe.skip * self.recipe.batch_at(self.step + 1), after_bad)
        self.rewinds, self.spike = rewinds, step
        return trainer

    def _way_back(self, step: int) -> int | None:
        """Which checkpoint a spike at `step` leads back to: a regular one, whatever was interrupted."""
        if self.recipe.non_finite == "stop" or self.folder is None:
            return None
        every = self.cadence.checkpoint_every
        return max(0, step - self.recipe.rewind) // every * every if every else 0

    def _sample(self, trainer: TrainerProtocol[Any]) -> str:
        cadence = self.cadence
        generated = generate(
            trainer.model,
            cadence.sample_prompt,
            max_new_tokens=cadence.sample_tokens,
            tokenizer=self.tokenizer,
            seed=self.step,
        )
        return generated.text

"""What the log of a run says of a step."""

from __future__ import annotations

import math

from palm.recipes import Outcome, Recipe
from palm.training.trained import Entry


class Measures:
    """Turns what a step and a validation gave into entries of the log.

    `bytes_per_token`: NaN where nobody knows the text. `mfu_per_rate`: model FLOPs utilisation of one token a
    second, None where nobody knows the device's peak.
    """

    def __init__(self, recipe: Recipe, bytes_per_token: float) -> None:
        self._recipe = recipe
        self._bits_per_nat = 1 / math.log(2) / bytes_per_token
        self.mfu_per_rate: float | None = None

    def of_step(self, step: int, outcome: Outcome, seconds: float) -> Entry:
        """The entry of a step that took so long."""
        recipe = self._recipe
        rate = recipe.batch_at(step) * recipe.length / seconds
        entry: Entry = {
            "step": step,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "lr": recipe.lr(step),
            "tokens": recipe.rows_before(step + 1) * recipe.length,
            "tokens_per_s": rate,
            "seconds": seconds,
            **self._in_bits("bits_per_byte", outcome.loss),
        }
        if self.mfu_per_rate is not None and rate * self.mfu_per_rate > 1:
            self.mfu_per_rate = None  # a peak that a step exceeds was measured while others had the machine
        if self.mfu_per_rate is not None:
            entry["mfu"] = rate * self.mfu_per_rate
        return entry

    def of_validation(self, val_loss: float) -> Entry:
        """What a validation loss adds to the entry of its step."""
        return {"val_loss": val_loss, **self._in_bits("val_bits_per_byte", val_loss)}

    def _in_bits(self, name: str, loss: float) -> Entry:
        return {name: loss * self._bits_per_nat} if math.isfinite(self._bits_per_nat) else {}

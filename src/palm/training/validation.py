"""The validation loss of a run, and whether its data is long enough for that and for training."""

from __future__ import annotations

from typing import Any

from palm.data.corpus import Corpus
from palm.data.windows import validation_windows
from palm.errors import DataError
from palm.recipes import Recipe
from palm.wings import TrainerProtocol


class Validation:
    """The windows that are held out of training; as many as fill whole micro-batches, `limit` at most.

    Raises `DataError` if the held-out text is shorter than one window.
    """

    def __init__(self, held_out: Corpus, recipe: Recipe, limit: int) -> None:
        if len(held_out) <= recipe.length:
            raise DataError(
                f"validation must be a share of at least one window of {recipe.length + 1} tokens; got "
                f"validation={recipe.validation}, which is {len(held_out)} tokens. Use a larger share, "
                "a longer text, a smaller length, or validation=0."
            )
        found = validation_windows(held_out, length=recipe.length, limit=limit)
        self._rows = recipe.batch // recipe.accumulate
        self._windows = found[: len(found) - len(found) % self._rows] if len(found) > self._rows else found

    def loss(self, trainer: TrainerProtocol[Any]) -> float:
        """Mean loss of the model as it is, in nats per token."""
        windows, rows = self._windows, self._rows
        chunks = [windows[at : at + rows] for at in range(0, len(windows), rows)]
        return sum(trainer.evaluate(chunk) * len(chunk) for chunk in chunks) / len(windows)


def check_trainable(corpus: Corpus, recipe: Recipe) -> None:
    """Raise `DataError` if the data is too short for a window of training, and one of validation."""
    window = recipe.length + 1
    needed, also = (2 * window, " and one for validation") if recipe.validation else (window, "")
    if len(corpus) < needed:
        raise DataError(
            f"data must be at least {needed} tokens long, a window of length + 1 = {window} for training"
            f"{also}; got {len(corpus)} tokens of {corpus.name}. Use a longer text or a smaller length."
        )

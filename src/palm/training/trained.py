"""What a training run gives back, and one line of its log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from palm.data.tokenizer import Tokenizer

Entry = dict[str, float]
OnStep = Callable[[Entry], None]
M_co = TypeVar("M_co", covariant=True)


@dataclass(frozen=True, repr=False, eq=False)
class Trained(Generic[M_co]):
    """A run's end: the model, the log of its steps, the folder, and whether it was asked to stop early.

    `failed` says in a sentence each what went wrong beside the steps, which ends no run: a sample, the plot.
    `tokenizer` is the model's, which `palm.generate` takes for it; None for ids that came without one.
    """

    model: M_co
    log: list[Entry]
    path: Path | None
    interrupted: bool
    tokenizer: Tokenizer | None
    failed: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The last step that was made."""
        return int(self.log[-1]["step"]) if self.log else 0

    def __repr__(self) -> str:
        loss = f", loss={self.log[-1]['loss']:.4g}" if self.log else ""
        path = None if self.path is None else str(self.path)
        return f"Trained(step={self.step}{loss}, path={path!r}, interrupted={self.interrupted})"

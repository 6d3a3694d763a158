"""What a run does beside its steps, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from palm.errors import ConfigError
from palm.fields import integer


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

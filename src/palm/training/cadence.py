"""What a run does beside its steps, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from palm.errors import ConfigError
from palm.fields import integer, named_fields


@named_fields("a cadence")
@dataclass(frozen=True, kw_only=True)
class Cadence:
    """What a run does beside its steps; none of it changes the weights. An interval of 0 means never."""

    checkpoint_every: int = 200
    """Steps between checkpoints. The first and the last step always have one."""
    keep: int = 3
    """How many of the newest checkpoints to keep. The one of the lowest validation loss, and those that a
    rewind may need, are kept as well."""
    save_behind: bool = False
    """Whether the next steps go on while a checkpoint is written. That needs memory of the host for a second
    copy of weights and moments."""
    validate_every: int = 100
    """Steps between measurements of the validation loss. Every regular checkpoint measures it too."""
    validate_windows: int = 64
    """Largest number of windows in such a measurement."""
    sample_every: int = 0
    """Steps between samples in samples.jsonl."""
    sample_tokens: int = 200
    """Length of a sample in tokens."""
    sample_prompt: str = "\n"
    """The prompt that a sample continues."""

    def __post_init__(self) -> None:
        for name in ("keep", "validate_windows", "sample_tokens"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=1))
        for name in ("checkpoint_every", "validate_every", "sample_every"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=0))
        if not isinstance(self.sample_prompt, str) or not self.sample_prompt:
            raise ConfigError(
                f"sample_prompt must be text; got sample_prompt={self.sample_prompt!r}. "
                'Use "\\n" to generate without a prompt.'
            )


def is_due(every: int, step: int) -> bool:
    """Whether a step is one of those with such an interval between them."""
    return every > 0 and step % every == 0

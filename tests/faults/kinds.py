"""A kind of fault: what it is called by rights, and how one of it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import palm

# A random number generator and a config -> the tap that is wrong first, and what stands for the piece.
Draw = Callable[[np.random.Generator, palm.PaLMConfig], tuple[str, Callable[..., Any]]]
# The same -> weights of one side, which are changed in place, and the first tap they act on.
WeightDraw = Callable[[np.random.Generator, palm.PaLMConfig, dict[str, np.ndarray]], str]
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Kind:
    """`cause` is the name that it must be given. `config` is what the fault needs of the config to be one.

    `everywhere`: not in one block but in all of them, or where there is only one place. `lossy`: a precision
    is lost, which float32 sides alone have. `shift`: the mean of the embeddings.
    """

    name: str
    cause: str
    piece: str
    draw: Draw | WeightDraw
    config: dict[str, Any] = field(default_factory=dict)
    everywhere: bool = False
    lossy: bool = False
    length: int = 40
    shift: float = 0.0


KINDS: dict[str, Kind] = {}


def kind(name: str, cause: str, piece: str, **options: Any) -> Callable[[Any], Any]:
    """Enter a draw into `KINDS`."""

    def enter(draw: Any) -> Any:
        config = options.pop("config", {})
        KINDS[name] = Kind(name, cause, piece, draw, config, **options)
        return draw

    return enter


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def far_from_one(rng: np.random.Generator) -> float:
    """A factor that is not near 1, nor one that anybody would choose."""
    return log_uniform(rng, 1.3, 4.0) ** float(rng.choice([-1, 1]))

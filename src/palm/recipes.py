"""The training recipe: a frozen dataclass and its schedules, in plain float64 Python, shared by both wings.

Letters: k step, counted from 1. Source: PaLM (arXiv:2204.02311) §5 unless said.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from palm.config import DType
from palm.errors import ConfigError
from palm.fields import check_choice, from_fields, integer, named_fields, real

OptimizerKind = Literal["adamw", "adafactor"]
ScheduleKind = Literal["constant", "cosine", "inverse_sqrt"]
NonFinite = Literal["stop", "rewind"]
Remat = bool | Literal["feedforward"]

# β₂ = 1 − k^−0.8 (paper §5; Adafactor, arXiv:1804.04235 §7.2).
BETA2_EXPONENT = 0.8
# The smallest scale that Adafactor's parameter scaling lets a parameter have (arXiv:1804.04235 §8).
SCALE_FLOOR = 1e-3
# Added to squared gradients, so that a gradient of 0 gives an update of 0 (there, ε₁).
SQUARE_FLOOR = 1e-30


def check_remat(remat: Any) -> None:
    """Raise `ConfigError` unless `remat` is one of the choices."""
    if not (isinstance(remat, bool) or (isinstance(remat, str) and remat == "feedforward")):
        raise ConfigError(f'remat must be true, false or "feedforward"; got remat={remat!r}. Choose one.')


class Rates(NamedTuple):
    """Every scalar of one optimiser step, formed in float64 on the host.

    `rest1` is 1 − β₁ and `rest2` is 1 − β₂: formed from a rounded β₂ they would lose half their digits.
    `decay` is the share of each matrix that the step takes away. `correction1` and `correction2` divide the
    moments (1 − βᵏ for AdamW, 1 for Adafactor).
    """

    lr: float
    decay: float
    beta1: float
    rest1: float
    beta2: float
    rest2: float
    correction1: float
    correction2: float


class Outcome(NamedTuple):
    """What one step reports: mean loss in nats and global gradient norm, both of before the update.

    `bad` names every parameter whose gradient is not finite. If it or the loss is not, nothing was updated.
    """

    loss: float
    grad_norm: float
    bad: list[str]

    @property
    def is_finite(self) -> bool:
        """Whether the update was made."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@named_fields("a recipe")
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: everything but the model and the data that decides what the weights become.

    Raises `ConfigError` if a field is unknown or breaks its invariant.
    """

    optimizer: OptimizerKind = "adamw"
    """AdamW (arXiv:1711.05101), or the paper's Adafactor: not factored, with parameter scaling.
    `palm.spec.optimizer` writes both out."""
    steps: int = 1000
    """Number of updates. The cosine schedule ends at the last one."""
    batch: int = 16
    """Sequences in a step."""
    ramp: tuple[tuple[int, int], ...] = ()
    """Later batch sizes: pairs of first step and batch, in ascending order of steps."""
    length: int = 256
    """Tokens predicted in each sequence."""
    accumulate: int = 1
    """Number of micro-batches in a step. Their mean gradient is the gradient of the whole batch."""
    learning_rate: float = 2e-3
    """The highest learning rate."""
    schedule: ScheduleKind = "cosine"
    """How the learning rate falls: constant does not; cosine falls to `final_fraction` of the highest rate;
    inverse_sqrt holds for `hold` steps, then falls as 1/√k."""
    warmup: int = 50
    """Steps of linear rise to the highest learning rate."""
    hold: int = 0
    """Steps at the highest learning rate before inverse_sqrt falls."""
    final_fraction: float = 0.1
    """Where cosine ends, as a share of the highest learning rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of AdamW's second moment. Adafactor's is 1 − k^−0.8 at step k."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.1
    """Weight decay w. A step of AdamW takes lr·w of each matrix away, a step of Adafactor lr²·w. Norm scales
    are not decayed."""
    clip: float = 1.0
    """Largest global norm of the gradient. 0 does not clip."""
    z_loss: float = 1e-4
    """Weight of the mean of log²Z in the loss, Z being the softmax denominator."""
    precision: DType = "float32"
    """Data type of the model's computation. Weights, moments, gradients, norms, softmax and loss are kept in
    float32 or wider."""
    remat: Remat = False
    """What the backward pass computes again instead of storing it: nothing (False), the feed-forward of each
    block (feedforward), or whole blocks (True). In long texts the feed-forward is most of what is stored
    and little of the work."""
    validation: float = 0.05
    """Share of the data that is not trained on. It is the last part."""
    pack: int | None = None
    """The id that ends each document, if attention is to stay inside documents. Then no position sees another
    document, and the first token of a document is predicted by none."""
    freeze: str | None = None
    """A regular expression. Weights whose canonical names match it in full stay as they are, and count
    neither for the norm of the gradient nor for its clipping."""
    non_finite: NonFinite = "stop"
    """What a loss or gradient that is not finite does: stop ends the run; rewind, as in the paper, goes back
    and skips the batches that led there."""
    rewind: int = 100
    """Least number of steps to go back."""
    skip: int = 200
    """Number of batches to skip from there."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "accumulate", "rewind", "skip"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=1))
        for name in ("warmup", "hold"):
            object.__setattr__(self, name, integer(name, getattr(self, name), least=0))
        if self.pack is not None:
            object.__setattr__(self, "pack", integer("pack", self.pack, least=0))
        if self.freeze is not None:
            _check_pattern(self.freeze)
        object.__setattr__(self, "seed", integer("seed", self.seed, least=0, below=math.inf))
        check_choice("optimizer", self.optimizer, get_args(OptimizerKind))
        check_choice("schedule", self.schedule, get_args(ScheduleKind))
        check_choice("non_finite", self.non_finite, get_args(NonFinite))
        check_choice("precision", self.precision, get_args(DType))
        check_remat(self.remat)
        for name, least, most in (
            ("learning_rate", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("clip", 0.0, math.inf),
            ("z_loss", 0.0, math.inf),
            ("final_fraction", 0.0, 1.0),
            ("beta1", 0.0, 1.0),
            ("beta2", 0.0, 1.0),
            ("validation", 0.0, 1.0),
        ):
            object.__setattr__(self, name, real(name, getattr(self, name), least=least, below=most))
        object.__setattr__(self, "eps", real("eps", self.eps, least=0.0, below=1.0, strict=True))
        object.__setattr__(self, "ramp", _ramp(self.ramp))
        for batch in (self.batch, *(size for _, size in self.ramp)):
            if batch % self.accumulate:
                raise ConfigError(
                    "batch must be a multiple of accumulate because micro-batches have one size; got "
                    f"batch={batch}, accumulate={self.accumulate}. Change one of them."
                )

    def batch_at(self, step: int) -> int:
        """Sequences in step k."""
        return [size for first, size in ((1, self.batch), *self.ramp) if first <= step][-1]

    @property
    def master(self) -> DType:
        """What the weights are kept in while they are trained: float32, or float64 if the precision is."""
        return "float64" if self.precision == "float64" else "float32"

    def rows_before(self, step: int) -> int:
        """Sequences that all steps before k have used together."""
        starts = [(1, self.batch), *self.ramp]
        ends = [first for first, _ in starts[1:]] + [step]
        spans = zip(starts, ends, strict=True)
        return sum(size * max(0, min(end, step) - first) for (first, size), end in spans)

    def lr(self, step: int) -> float:
        """The learning rate of step k."""
        rise = min(1.0, step / self.warmup) if self.warmup else 1.0
        if self.schedule == "inverse_sqrt":
            return self.learning_rate * rise * math.sqrt(min(1.0, max(self.hold, self.warmup, 1) / step))
        if self.schedule == "cosine" and step > self.warmup:
            passed = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
            fall = 0.5 * (1 + math.cos(math.pi * passed))
            return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * fall)
        return self.learning_rate * rise

    def rates(self, step: int) -> Rates:
        """The scalars of step k."""
        lr = self.lr(step)
        if self.optimizer == "adafactor":
            rest2 = step**-BETA2_EXPONENT
            decay = lr**2 * self.weight_decay
            return Rates(lr, decay, self.beta1, 1 - self.beta1, 1 - rest2, rest2, 1.0, 1.0)
        return Rates(
            lr=lr,
            decay=lr * self.weight_decay,
            beta1=self.beta1,
            rest1=1 - self.beta1,
            beta2=self.beta2,
            rest2=1 - self.beta2,
            correction1=1 - self.beta1**step,
            correction2=1 - self.beta2**step,
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values, as JSON holds them."""
        return {**dataclasses.asdict(self), "ramp": [list(pair) for pair in self.ramp]}

    def to_json(self) -> str:
        """The recipe as a JSON object, one field a line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`. Raises `ConfigError` for unknown fields."""
        return from_fields(cls, fields, "a recipe")


def _check_pattern(freeze: Any) -> None:
    try:
        re.compile(freeze if isinstance(freeze, str) else "(")
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"freeze must be a regular expression; got freeze={freeze!r}: {error}. "
            r"'embedding|blocks\.[0-5]\..*' freezes the embedding and the first six blocks."
        ) from None


def _ramp(pairs: Any) -> tuple[tuple[int, int], ...]:
    try:
        ramp = tuple(
            (integer("ramp", first, least=2), integer("ramp", size, least=1)) for first, size in pairs
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"ramp must be (first step, batch) pairs; got ramp={pairs!r}. Use ((50_001, 1024), …)."
        ) from None
    firsts = [first for first, _ in ramp]
    if firsts != sorted(set(firsts)):
        raise ConfigError(f"ramp must have ascending steps; got ramp={ramp}. Sort it.")
    return ramp


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Learns bytes well on a CPU in minutes: benchmarks/learning.py. Embeddings start at size 1, matrices
        # at 1/√d: a rate relative to each parameter's size learns faster than AdamW's one rate for all.
        "bytes": Recipe(optimizer="adafactor", learning_rate=4e-2),
        # The fields' own defaults: what most others use.
        "adamw": Recipe(),
        # §5, and the batch schedule of the 540B model.
        "paper": Recipe(
            optimizer="adafactor",
            steps=255_000,
            batch=512,
            ramp=((50_001, 1024), (115_001, 2048)),
            length=2048,
            learning_rate=1e-2,
            schedule="inverse_sqrt",
            warmup=0,
            hold=10_000,
            weight_decay=1.0,
            precision="bfloat16",
            remat=True,
            non_finite="rewind",
        ),
    }
)


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe of that name, with some fields changed: `palm.recipe("paper", batch=8)`.

    Raises `ConfigError` for an unknown name or field, or a value that breaks an invariant.
    """
    check_choice("recipe", name, RECIPES)
    return Recipe.from_dict({**RECIPES[name].to_dict(), **changes})

"""The logits of a program that is not palm's: called, read, and the type it computes in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from palm.config import DType, PaLMConfig
from palm.errors import ProbeError
from palm.parity.judge.need import LOW, Format, formats, rounded
from palm.spec.arrays import as_numpy
from palm.spec.rounding import UNIT_ROUNDOFF


class Logits(NamedTuple):
    """Logits in float64, and the type that they were computed in, or at least rounded to."""

    values: np.ndarray
    dtype: Format


def logits_of(
    function: Callable[[np.ndarray], Any], ids: np.ndarray, config: PaLMConfig, label: str, coarsest: DType
) -> Logits:
    """Call it. `coarsest`: the type of what has none, such as a list. Raises `ProbeError`."""
    try:
        array, own = as_numpy(_called(function, ids))
        name = own or coarsest  # a list's numbers are wide whatever they were
    except Exception as error:
        raise ProbeError(
            f"{label} must give logits for an int64 array of ids; it raised {type(error).__name__}: {error}. "
            "Wrap it in a function that converts ids and logits."
        ) from error
    shape = (*ids.shape, config.num_tokens)
    if array.shape == (1, *shape):  # a batch of one
        array = array[0]
    if array.shape != shape or name not in formats():
        raise ProbeError(
            f"{label} must give logits of shape {shape} in {', '.join(formats())}; got "
            f"{name}{list(array.shape)}. Wrap it in a function that returns them so."
        )
    values = array.astype(np.float64)
    return Logits(values, _computed_in(values, next(f for f in formats() if f == name), config.logit_scale))


def _called(function: Callable[..., Any], ids: np.ndarray) -> Any:
    """What it gives for the ids, of a torch module as a tensor; what it does to them is its own affair."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(function, torch.nn.Module):
        return _output(function(ids.copy()))
    try:
        return _output(function(torch.from_numpy(ids.copy())))
    except Exception:
        with suppress(Exception):  # it may convert ids itself; else the first error tells
            return _output(function(ids.copy()))
        raise


def _output(given: Any) -> Any:
    """The logits of what Hugging Face's models return."""
    return getattr(given, "logits", given)


def _computed_in(values: np.ndarray, name: Format, scale: float) -> Format:
    """The type they are returned in, or a lower one to which all are rounded: `logits.float()`.

    A factor on the logits may come after the cast.
    """
    if name in LOW or not np.isfinite(values).all():
        return name
    for factor in (1.0, scale):
        numbers = values / factor
        # Chance gives a float32 number 16 zero bits once in 65,536: all of them only by a cast.
        slack = 0.0 if factor == 1.0 else 4 * UNIT_ROUNDOFF["float32"]
        for low in reversed(LOW):
            off = np.abs(rounded(numbers, low) - numbers)
            if np.unique(numbers).size > 1 and (off <= slack * np.abs(numbers)).all():
                return low
    return name

"""What the causes are made of: the referee's operations with a config, a weight or a number changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from palm.spec.forward import REFEREE, Operation, Place

# What a variant is called, and the operations it changes.
Variant = tuple[str, Mapping[str, Operation]]


def with_config(kinds: tuple[str, ...], **changes: Any) -> Mapping[str, Operation]:
    """The referee's operations under another config."""

    def under(operation: Operation) -> Operation:
        return lambda at: operation(dataclasses.replace(at, config=dataclasses.replace(at.config, **changes)))

    return {kind: under(REFEREE[kind]) for kind in kinds}


def with_weight(kind: str, name: str, change: Callable[[Place, np.ndarray], np.ndarray]) -> Operation:
    """The referee's operation with one weight changed."""

    def operation(at: Place) -> np.ndarray:
        weights = {**at.weights, at.prefix + name: change(at, at.weight(name))}
        return REFEREE[kind](dataclasses.replace(at, weights=weights))

    return operation


def times(factor: float, operation: Operation) -> Operation:
    """The operation with a factor on what it gives."""
    return lambda at: factor * operation(at)


def bfloat16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, in float64."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)

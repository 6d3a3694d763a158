"""Ids that a port puts in front of those it is given: only the logits of the whole show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from palm.config import PaLMConfig
from palm.parity.explain.causes import Cause
from palm.parity.explain.causes.building_blocks import Variant
from palm.spec import forward
from palm.spec.forward import Operation, Place

_MULTIPLES = (8, 16, 32, 64, 128)


def preceding_ids(config: PaLMConfig) -> Iterator[Variant]:
    """Ids in front of those given, whose positions are cut off again: a mark, or padding that is seen."""
    for front in dict.fromkeys((0, 1, 2, config.num_tokens - 1)):
        if front < config.num_tokens:
            yield f"an id {front} comes before the ids", _after(front)
            for size in _MULTIPLES:
                yield (
                    f"the ids are padded on the left with id {front} to a multiple of {size}, and see it",
                    _after(front, multiple=size),
                )


def _after(front: int, multiple: int | None = None) -> Mapping[str, Operation]:
    """Logits behind one id more, or as many as make it a multiple."""

    def operation(at: Place) -> np.ndarray:
        n = at.tokens.shape[-1]
        count = 1 if multiple is None else -n % multiple
        before = np.full((*at.tokens.shape[:-1], count), front, at.tokens.dtype)
        ids = np.concatenate((before, at.tokens), -1)
        return forward.run(at.config, at.weights, ids)["logits"][..., -n:, :]

    return {"logits": operation}


PRECEDING_IDS = Cause(
    "preceding ids", "Give the model the ids alone, or mask what comes before them.", preceding_ids
)

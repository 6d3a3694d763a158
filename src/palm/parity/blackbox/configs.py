"""Other configs than the model's, for a port of which only logits are seen: "it uses ALiBi, not rotary".

The weights stay what they are, read as the other config reads them. Fields that a cause of
`explain.causes` is about (eps, its mode, θ, the mean) are told by that cause where they alone differ.

Letters: d dim, h heads, e dim_head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from palm.config import PaLMConfig
from palm.presets import PRESETS
from palm.spec.forward import REFEREE, Operation, Place
from palm.upstream.tensors import SOURCES

Changed = Mapping[str, Operation]
Weights = Callable[[Place], Mapping[str, np.ndarray]]

# (norm, mode, eps): what libraries have by default, and the originals; eps 0 stands for 1e-5 / d.
_NORMS = (
    ("rmsnorm", "clamp", 1e-8),
    ("rmsnorm", "add", 0.0),
    ("rmsnorm", "add", 1e-5),
    ("rmsnorm", "add", 1e-6),
    ("rmsnorm", "add", 1e-8),
    ("layernorm", "add", 1e-5),
    ("layernorm", "add", 1e-6),
    ("layernorm", "add", 1e-12),
)
# What makes an architecture, besides sizes.
_ARCHITECTURE = ("positions", "norm", "norm_eps_mode", "share_kv", "tie_embeddings")


class _Choice(NamedTuple):
    """Some fields of the config changed, the weights that go with them, and a remark."""

    fields: Mapping[str, Any]
    weights: Weights | None = None
    note: str = ""


_OWN = _Choice({})


@dataclasses.dataclass(frozen=True)
class Alternative:
    """The model under another config. `choices`: how many differ, of how many `fields`."""

    config: PaLMConfig
    detail: str
    fix: str
    choices: int
    fields: int
    weights: tuple[Weights, ...]

    def under(self, changed: Changed) -> Changed:
        """The whole program under this config, with some of its operations replaced."""

        def moved(operation: Operation) -> Operation:
            def run(at: Place) -> np.ndarray:
                weights = dict(at.weights)
                for change in self.weights:
                    weights.update(change(at))
                return operation(dataclasses.replace(at, config=self.config, weights=weights))

            return run

        return {kind: moved(operation) for kind, operation in {**REFEREE, **changed}.items()}


def alternatives(config: PaLMConfig) -> list[Alternative]:
    """Every combination of other positions, norm, keys and values, and ties; fewest choices first."""
    found = {}
    for chosen in product(_positions(config), _norms(config), _keys_and_values(config), _ties(config)):
        fields = {name: value for one in chosen for name, value in one.fields.items()}
        differing = {name: value for name, value in fields.items() if value != getattr(config, name)}
        # Rotary needs an even e; θ means nothing without rotary.
        positions = fields.get("positions", config.positions)
        if positions != "alibi" and fields.get("dim_head", config.dim_head) % 2:
            continue
        notes = tuple(one.note for one in chosen if one.note)
        if _told_by_a_cause(differing) and not notes:
            continue
        made = _alternative(config, differing, notes, chosen)
        found[made.config, notes] = made
    return sorted(found.values(), key=lambda one: one.choices)


def _told_by_a_cause(differing: Mapping[str, Any]) -> bool:
    return set(differing) in (set(), {"norm"}, {"tie_embeddings"}) or set(differing) <= {
        "norm_eps",
        "norm_eps_mode",
    }


def _alternative(
    config: PaLMConfig, differing: Mapping[str, Any], notes: tuple[str, ...], chosen: tuple[_Choice, ...]
) -> Alternative:
    other = dataclasses.replace(config, **differing)
    settings = {name: f"{name}={_plain(value)}" for name, value in differing.items()}
    told = [f"{setting} instead of {_plain(getattr(config, name))}" for name, setting in settings.items()]
    sources = [
        source
        for source in SOURCES
        if all(getattr(PRESETS[source], name) == getattr(other, name) for name in _ARCHITECTURE)
    ]
    like = f", the architecture of {' and '.join(sources)}," if sources and len(differing) > 1 else ","
    # No model is trained to be read so, but an import can take one original for another.
    imported = " For imported weights, pass the right source=." if "dim_head" in differing else ""
    return Alternative(
        config=other,
        detail=", ".join((*told, *notes)),
        fix=f"Build the model with {', '.join(settings.values())}{like} or fix the port.{imported}",
        choices=sum(bool(one.fields) for one in chosen),
        fields=len(differing),
        weights=tuple(one.weights for one in chosen if one.weights is not None),
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _positions(config: PaLMConfig) -> Iterator[_Choice]:
    yield _OWN
    if config.rotates:
        yield _Choice({"positions": "alibi"})
        yield _Choice({"positions": "xpos" if config.positions == "rotary" else "rotary"})
    else:
        for theta in dict.fromkeys((config.rope_theta, 10_000.0)):
            yield _Choice({"positions": "rotary", "rope_theta": theta})


def _norms(config: PaLMConfig) -> Iterator[_Choice]:
    yield _OWN
    own = (config.norm, config.norm_eps_mode, config.eps)
    for norm, mode, eps in dict.fromkeys((n, m, eps or 1e-5 / config.dim) for n, m, eps in _NORMS):
        if (norm, mode, eps) != own:
            yield _Choice({"norm": norm, "norm_eps_mode": mode, "norm_eps": eps})


def _keys_and_values(config: PaLMConfig) -> Iterator[_Choice]:
    """One tensor for two or two for one; of the columns of both, if the port reads the fused matrix so.

    Heads of another size have no scales, if queries and keys are normed.
    """
    yield _OWN
    h, e = config.heads, config.dim_head

    def shared(parts: tuple[str, ...]) -> Weights:
        def weights(at: Place) -> dict[str, np.ndarray]:
            if not at.prefix:
                return {}
            matrices = [at.weight(f"attention.{part}") for part in parts]
            return {f"{at.prefix}attention.key_value": np.concatenate(matrices, 1)}

        return weights

    def halves(at: Place) -> dict[str, np.ndarray]:
        if not at.prefix:
            return {}
        matrix = at.weight("attention.key_value")
        return {
            f"{at.prefix}attention.key": matrix[:, : e // 2],
            f"{at.prefix}attention.value": matrix[:, e // 2 :],
        }

    if not config.share_kv:
        yield _Choice({"share_kv": True}, shared(("key",)), "the matrix of the keys for both")
        yield _Choice({"share_kv": True}, shared(("value",)), "the matrix of the values for both")
        if h % 2 == 0 and not config.qk_norm:
            fields = {"share_kv": True, "heads": h // 2, "dim_head": 2 * e}
            yield _Choice(fields, shared(("key", "value")), "keys and values side by side for both")
    elif e % 2 == 0 and not config.qk_norm:
        yield _Choice(
            {"share_kv": False, "heads": 2 * h, "dim_head": e // 2}, halves, "one half of the matrix for each"
        )


def _ties(config: PaLMConfig) -> Iterator[_Choice]:
    yield _OWN
    if not config.tie_embeddings:
        yield _Choice({"tie_embeddings": True})
        # Tied tensors are one: of two that are loaded into it the second stays.
        yield _Choice(
            {"tie_embeddings": True},
            lambda at: {"embedding": at.weights["unembedding"].T},
            "the output matrix for both",
        )

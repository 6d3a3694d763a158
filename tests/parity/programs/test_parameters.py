"""Where the parameters of one program are in the other, by their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import palm
from palm.parity.programs.parameters import Parameter

_DRAW = np.random.default_rng(3)
X = _DRAW.standard_normal((5, 6))
Q, K, V = (_DRAW.standard_normal((2, 6, n)).astype(np.float32) for n in (8, 4, 4))


def turned(x: Any, q: Any, k: Any, v: Any) -> Any:
    """One layer, the same in both frameworks."""
    return x + (x @ q)[..., :6] * (x @ k).sum(-1, keepdims=True) + (x @ v).sum(-1, keepdims=True)


class Separate(torch.nn.Module):
    """A matrix (out, in) for each of the three in each layer: q0, k0, v0, q1, …"""

    def __init__(self, changed: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        held = {f"{n}{i}": w[i].T for i in range(2) for n, w in zip("qkv", (Q, K, V), strict=True)}
        for name, w in {**held, **(changed or {})}.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(np.ascontiguousarray(w))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(2):
            x = turned(x, *(getattr(self, f"{n}{i}").T for n in "qkv"))
        return x


def in_jax(weights: dict[str, Any], read: Callable[..., Any]) -> Any:
    """A port; `read` gives the three matrices (in, out) of a layer."""
    held = {name: jnp.asarray(w) for name, w in weights.items()}

    def port(x: Any) -> Any:
        for i in range(2):
            x = turned(x, *read(held, i))
        return x

    return port


def fused() -> Any:
    """One matrix for all three, one for each layer."""
    held = {f"qkv{i}": np.concatenate((Q[i], K[i], V[i]), 1) for i in range(2)}
    return in_jax(held, lambda w, i: jnp.split(w[f"qkv{i}"], (8, 12), 1))


def stacked() -> Any:
    """One array for each of the three, all layers in it."""
    return in_jax({"q": Q, "k": K, "v": V}, lambda w, i: [w[n][i] for n in "qkv"])


def both() -> Any:
    """One array for everything."""
    held = {"qkv": np.concatenate((Q, K, V), 2)}
    return in_jax(held, lambda w, i: jnp.split(w["qkv"][i], (8, 12), 1))


def found(port: Any, own: Any = None) -> dict[str, Parameter]:
    got = palm.compare(own or Separate(), port, X, frameworks=("torch", "jax"))
    return {short(one.name): one for one in got.parameters}


def short(name: str) -> str:
    return name.rpartition(".")[2]


def known(got: Mapping[str, Parameter]) -> dict[str, tuple[list[str], str]]:
    return {name: ([short(n) for n in one.counterparts], one.how) for name, one in got.items()}


def test_a_fused_matrix_is_the_joined_ones_and_they_are_its_slices():
    got = known(found(fused()))
    assert got["qkv0"] == (["q0", "k0", "v0"], "joined along axis 1")
    assert got["q1"] == (["qkv1"], "slices 0 to 7 of axis 1")
    assert got["v1"] == (["qkv1"], "slices 12 to 15 of axis 1")
    assert len(got) == 8


def test_stacked_layers_are_those_of_the_separate_ones():
    got = known(found(stacked()))
    assert got["k"] == (["k0", "k1"], "joined along axis 0")
    assert got["k1"] == (["k"], "slice 1 of axis 0")


def test_stacked_and_fused_layers_are_those_of_the_separate_ones():
    got = known(found(both()))
    assert set(got["qkv"][0]) == {f"{n}{i}" for i in range(2) for n in "qkv"}
    assert got["q1"][0] == ["qkv"]


@pytest.mark.parametrize("port", [fused, stacked])
def test_a_parameter_with_other_numbers_has_no_counterpart(port):
    got = found(port(), Separate({"k1": (K[1] * np.float32(1.01)).T}))
    alone = {name for name, one in got.items() if not one.counterparts}
    assert alone == ({"k1", "qkv1"} if port is fused else {"k1", "k"})


def test_the_nearest_parameter_is_named_with_its_distance():
    got = palm.compare(Separate({"k1": (K[1] * np.float32(1.01)).T}), Separate(), X)
    alone = [one for one in got.parameters if not one.counterparts]
    assert [(one.name, one.nearest) for one in alone] == [("k1", "k1")] * 2
    exact = 0.01 / (1 + 1.01**2) ** 0.5  # the difference over the rms of both
    assert all(abs(one.distance - exact) < 1e-6 for one in alone)
    assert "nearest is k1, 7.0e-03 apart" in str(got)
    assert "nearest is k1" in got.to_html()


def test_a_trace_brings_no_numbers_of_parameters(tmp_path):
    path = palm.trace(Separate(), X).save(tmp_path / "a.trace")
    assert palm.compare(path, Separate(), X).parameters == ()

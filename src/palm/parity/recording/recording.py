"""Run one side and write down what it computed."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from palm.backends import backend_of, config_of, dtype_of, model_of, wing_of
from palm.config import DType, PaLMConfig
from palm.parity.recording.checksums import digest_of, each
from palm.recipes import Remat
from palm.spec.arrays import Named
from palm.spec.tokens import check_tokens

OnStep = Callable[[str], None]
STEPS = ("build", "forward", "gradients", "float64 forward", "float64 gradients")
# How sides say what the backward pass computes again.
REMAT: dict[str, Remat] = {"on": True, "off": False, "feedforward": "feedforward"}
_PACKAGES = ("palm-dual", "numpy", "torch", "jax", "jaxlib", "equinox")


@dataclass(frozen=True)
class Mode:
    """How a side runs what it computes: `compile` by torch.compile or jax.jit, `remat`, `matmul` precision.

    None: as the wing does unasked. `matmul` is global in both frameworks: the process that records sets it.
    """

    compile: bool | None = None
    remat: Remat = False
    matmul: str | None = None

    @property
    def forward(self) -> dict[str, Any]:
        """What a wing's `activations` takes."""
        return {} if self.compile is None else {"compiled": self.compile}

    @property
    def backward(self) -> dict[str, Any]:
        """What a wing's `value_and_grad` takes."""
        return {**self.forward, "remat": self.remat}


@dataclass(frozen=True, eq=False)
class Recording:
    """What one side computed in one forward and backward pass.

    `taps`, `loss` and `grads` are in working precision; the `exact_*` ones are the same program in float64
    on the same weights. `environment` holds versions and device.
    """

    label: str
    config: PaLMConfig
    dtype: DType
    tokens: np.ndarray
    weights: Mapping[str, np.ndarray] = field(repr=False)
    taps: Named = field(repr=False)
    grads: Named = field(repr=False)
    loss: float
    exact_taps: Named = field(repr=False)
    exact_grads: Named = field(repr=False)
    exact_loss: float
    environment: dict[str, str]

    @property
    def weights_digest(self) -> str:
        """SHA-256 over all weights, names and numbers, whatever their dtype."""
        return digest(each(digest_of, self.weights))


def quietly(step: str) -> None:
    """Tell nobody about a finished step."""


def record(
    model: Any, tokens: Any, *, label: str | None = None, mode: Mode | None = None, on_step: OnStep = quietly
) -> Recording:
    """Record a live model, completely.

    Raises `TokenError`, and `BackendError` if the model is not palm's.
    """
    wing, mode = wing_of(model), mode or Mode()
    model = wing.settled(model_of(model))
    ids = check_tokens(tokens, config_of(model), at_least=2)
    with wing.ahead(model, ids, **mode.backward):
        taps = wing.activations(model, ids, **mode.forward)
        on_step("forward")
        loss, grads = wing.value_and_grad(model, ids, **mode.backward)
        on_step("gradients")
    with wing.widened(model) as wide:
        exact_taps = wing.activations(wide, ids, **mode.forward)
        on_step("float64 forward")
        exact_loss, exact_grads = wing.value_and_grad(wide, ids, **mode.backward)
        on_step("float64 gradients")
    return Recording(
        label=label or backend_of(model),
        config=config_of(model),
        dtype=dtype_of(model),
        tokens=ids,
        weights=wing.to_arrays(model),
        taps=taps,
        grads=grads,
        loss=loss,
        exact_taps=exact_taps,
        exact_grads=exact_grads,
        exact_loss=exact_loss,
        environment=environment_of(model, mode),
    )


def digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 over those of all weights and their names."""
    return hashlib.sha256(
        "".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()
    ).hexdigest()


def environment_of(model: Any, mode: Mode) -> dict[str, str]:
    """Versions, machine, device, and how the model was run on it."""
    own = {
        "device": wing_of(model).device_name(model),
        "mesh": str(wing_of(model).mesh_of_model(model)),
        "attention": wing_of(model).attention_of(model),
        "compile": "as the backend does" if mode.compile is None else "on" if mode.compile else "off",
        "remat": next(name for name, remat in REMAT.items() if remat == mode.remat),
        "matmul": mode.matmul or "as the backend does",
    }
    return {**environment(), **own}


def environment() -> dict[str, str]:
    """Versions of what takes part, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.platform(), "cpus": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found

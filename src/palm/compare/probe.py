"""Run one side and write down what it computed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from palm.backends import backend_of, config_of, dtype_of, to_numpy, wing_of
from palm.config import PaLMConfig
from palm.params import DType
from palm.tokens import check_tokens

Arrays = dict[str, np.ndarray]
STEPS = ("build", "forward", "gradients", "float64 forward", "float64 gradients")
_PACKAGES = ("palm-dual", "numpy", "torch", "jax", "jaxlib", "equinox")


@dataclass(frozen=True)
class Recording:
    """One side's reading of one forward and backward pass.

    `taps`, `loss` and `grads` are in working precision; the `exact_*` ones are the same program in float64
    on the same weights. `environment` holds versions and device.
    """

    label: str
    config: PaLMConfig
    dtype: DType
    tokens: np.ndarray
    weights: Arrays = field(repr=False)
    taps: Arrays = field(repr=False)
    grads: Arrays = field(repr=False)
    loss: float
    exact_taps: Arrays = field(repr=False)
    exact_grads: Arrays = field(repr=False)
    exact_loss: float
    environment: dict[str, str]

    @property
    def weights_digest(self) -> str:
        """SHA-256 over all weights, names and bits."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode() + self.weights[name].tobytes())
        return digest.hexdigest()


def record(
    model: Any, tokens: Any, *, label: str | None = None, on_step: Callable[[str], None] = lambda step: None
) -> Recording:
    """Record a live model. Raises `TokenError`, and `BackendError` if the model is not palm's."""
    wing = wing_of(model)
    ids = check_tokens(tokens, config_of(model), at_least=2)
    taps = wing.activations(model, ids)
    on_step("forward")
    loss, grads = wing.value_and_grad(model, ids)
    on_step("gradients")
    with wing.widened(model) as wide:
        exact_taps = wing.activations(wide, ids)
        on_step("float64 forward")
        exact_loss, exact_grads = wing.value_and_grad(wide, ids)
        on_step("float64 gradients")
    return Recording(
        label=label or backend_of(model),
        config=config_of(model),
        dtype=dtype_of(model),
        tokens=ids,
        weights=to_numpy(model),
        taps=taps,
        grads=grads,
        loss=loss,
        exact_taps=exact_taps,
        exact_grads=exact_grads,
        exact_loss=exact_loss,
        environment={**environment(), "device": wing.device_name(model)},
    )


def environment() -> dict[str, str]:
    """Versions of what takes part, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.platform(), "cpus": str(os.cpu_count())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_recording(recording: Recording, folder: Path) -> None:
    """Hand a recording to another process: `recording.json` and `arrays.safetensors` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"tokens": recording.tokens}
    for group in ("weights", "taps", "grads", "exact_taps", "exact_grads"):
        for name, array in getattr(recording, group).items():
            arrays[f"{group}/{name}"] = np.ascontiguousarray(array)
    save_file(arrays, folder / "arrays.safetensors")
    fields = {
        "label": recording.label,
        "config": recording.config.to_dict(),
        "dtype": recording.dtype,
        "loss": recording.loss,
        "exact_loss": recording.exact_loss,
        "environment": recording.environment,
        # safetensors sorts its names; the report walks them in dataflow order.
        "order": list(arrays),
    }
    (folder / "recording.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")


def read_recording(folder: Path) -> Recording:
    """Inverse of `write_recording`."""
    fields = json.loads((folder / "recording.json").read_text(encoding="utf-8"))
    groups: dict[str, Any] = {}
    with safe_open(folder / "arrays.safetensors", framework="np") as file:
        for name in fields.pop("order"):
            group, _, rest = name.partition("/")
            if rest:
                groups.setdefault(group, {})[rest] = file.get_tensor(name)
            else:
                groups[group] = file.get_tensor(name)
    fields["config"] = PaLMConfig.from_dict(fields["config"])
    return Recording(**fields, **groups)

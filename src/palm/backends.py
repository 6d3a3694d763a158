"""From a backend's name to its wing, and the doors that lead to both.

A wing is imported when it is first asked for: `import palm` must work, and be quick, where only one
framework, or neither, is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from palm.config import BACKENDS, Backend, DType, PaLMConfig, check_backend
from palm.errors import BackendError, ConfigError, MissingFrameworkError
from palm.fields import check_choice
from palm.spec.parameters import DTYPES, Parameter, check_array, check_names, numpy_dtype, parameters

_FRAMEWORKS: dict[Backend, tuple[str, ...]] = {"torch": ("torch",), "jax": ("jax", "equinox")}
# The ways to compute attention, and "auto": the fastest on the model's device.
ATTENTION_PATHS: dict[Backend, tuple[str, ...]] = {
    "torch": ("auto", "textbook", "blockwise", "sdpa", "flex"),
    "jax": ("auto", "textbook", "blockwise", "cudnn", "splash", "pallas"),
}


def available_backends() -> tuple[Backend, ...]:
    """The backends whose frameworks are installed here. Imports neither."""
    return tuple(backend for backend in BACKENDS if not _missing(backend))


def first_backend(wanted: Backend | None = None) -> Backend:
    """`wanted` if it is installed, or else the first backend that is. Raises `BackendError`."""
    here = available_backends()
    if not here:
        raise BackendError('backend must be installed; got none. Run: pip install "palm-dual[torch]".')
    return wanted if wanted in here else here[0]


def wing(backend: Backend) -> ModuleType:
    """The wing's package, `palm.torch_impl` or `palm.jax_impl`. Raises what `check_installed` raises."""
    check_installed(backend)
    return importlib.import_module(f"palm.{backend}_impl")


def check_installed(backend: Backend) -> None:
    """Raise `BackendError` for an unknown backend, `MissingFrameworkError` if it lacks its framework."""
    check_backend(backend)
    if missing := _missing(backend):
        raise MissingFrameworkError(
            f'backend="{backend}" needs {" and ".join(_FRAMEWORKS[backend])}; {missing[0]} is not installed. '
            f'Run: pip install "palm-dual[{backend}]".'
        )


def is_model(model: Any) -> bool:
    """Whether palm built it."""
    return _wing_of(model) is not None


def wing_of(model: Any) -> ModuleType:
    """The wing a model belongs to. Raises `BackendError` if it is not one of palm's."""
    found = _wing_of(model)
    if found is not None:
        return found
    if isinstance(model, (str, os.PathLike)):
        raise BackendError(
            f"model must be one that palm built; got the path {model}. Load it: palm.load(path, backend=…)."
        )
    raise BackendError(
        f"model must be one that palm built; got {type(model).__module__}.{type(model).__qualname__}. "
        "Bring models from elsewhere in with palm.from_upstream."
    )


def backend_of(model: Any) -> Backend:
    """The name of the backend a model belongs to."""
    module = wing_of(model)
    return next(backend for backend in BACKENDS if module.__name__ == f"palm.{backend}_impl")


def config_of(model: Any) -> PaLMConfig:
    """The resolved config of a model. Raises `BackendError` if it is not one of palm's."""
    wing_of(model)
    return model.config


def dtype_of(model: Any) -> DType:
    """The name of the dtype of a model's weights. Raises `ConfigError` if it was cast to one palm lacks."""
    return wing_of(model).dtype_of(model)


def build(
    config: PaLMConfig,
    *,
    backend: Backend,
    seed: int = 0,
    dtype: DType = "float32",
    device: Any = None,
    attention: str = "auto",
) -> Any:
    """A freshly initialised model: an `nn.Module` (torch) or an `eqx.Module` (jax).

    Open choices of the config are resolved to the backend's original. The same seed gives bit-identical
    weights in both backends. `device` is the framework's own or its name; `attention` is a path of the
    backend ("textbook", "blockwise", …; "auto" is the fastest there) and changes speed and rounding, never
    the function.

    Raises `ConfigError`, `BackendError` (unknown backend or device) or `MissingFrameworkError`.
    """
    implementation = wing(backend)
    _check_config(config)
    _check_options(backend, dtype, attention)
    return implementation.initialise(
        config.resolve(backend), seed, dtype=dtype, device=device, attention=attention
    )


def from_numpy(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    attention: str = "auto",
) -> Any:
    """A model with the given weights, by canonical name and in canonical layout.

    `dtype` None keeps the arrays' own, which must then be one and the same. Checked as a whole before
    anything is built: raises `WeightsError` for missing, unknown, mis-shaped, wrong-dtype or non-finite
    arrays, and what `build` raises.
    """
    implementation = wing(backend)
    _check_config(config)
    resolved = config.resolve(backend)
    check_names(resolved, arrays)
    for name, parameter in parameters(resolved).items():
        check_array(parameter, np.asarray(arrays[name]))
    dtype = dtype or common_dtype(arrays)
    _check_options(backend, dtype, attention)

    def fetch(parameter: Parameter) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = np.asarray(arrays[parameter.name]).astype(numpy_dtype(dtype))
        check_array(parameter, array, source=f"weights in {dtype}")
        return array

    return implementation.from_arrays(resolved, fetch, dtype=dtype, device=device, attention=attention)


def to_numpy(model: Any) -> dict[str, np.ndarray]:
    """A model's weights by canonical name, in canonical layout, copied; bfloat16 is `ml_dtypes.bfloat16`."""
    return wing_of(model).to_arrays(model)


def convert(
    model: Any, *, backend: Backend, dtype: DType | None = None, device: Any = None, attention: str = "auto"
) -> Any:
    """The same model in `backend`; bitwise, unless `dtype` asks for another precision.

    Raises what `from_numpy` raises.
    """
    return from_numpy(
        config_of(model), to_numpy(model), backend=backend, dtype=dtype, device=device, attention=attention
    )


def keep_programs(folder: str | os.PathLike[str] | None, backend: Backend) -> None:
    """Keep what `backend` compiles from now on in `folder`, and take it from there; None does nothing.

    JAX compiles everything it runs, torch only what runs on a GPU. Raises what `build` raises.
    """
    if folder is not None:
        wing(backend).keep_programs(Path(folder))


def check_attention(attention: str, backend: Backend) -> None:
    """Raise `ConfigError` unless it names an attention path of `backend`."""
    paths = ATTENTION_PATHS[backend]
    others = [name for name in BACKENDS if isinstance(attention, str) and attention in ATTENTION_PATHS[name]]
    if others and attention not in paths:
        raise ConfigError(
            f'attention must be one of {", ".join(paths)}, the paths of backend="{backend}"; got '
            f'attention={attention!r}, which only backend="{others[0]}" has. Choose one.'
        )
    check_choice("attention", attention, paths)


def activations(model: Any, tokens: Any) -> dict[str, np.ndarray]:
    """Every tap of one forward pass, in dataflow order, under the same names in both backends.

    `embed`; `blocks.{i}.norm`, `.q`, `.k`, `.v` (after the position step, before the scale), `.attention`
    (heads merged), `.attention_out`, `.feedforward` (the gated product), `.feedforward_out`, `.out`; `norm`;
    `logits`. Shapes (..., n, width). Raises `TokenError`.
    """
    return wing_of(model).activations(model, tokens)


def value_and_grad(model: Any, tokens: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Mean next-token cross-entropy in nats, and its gradient by canonical name.

    Raises `TokenError`, also if n < 2.
    """
    return wing_of(model).value_and_grad(model, tokens)


def common_dtype(arrays: Mapping[str, np.ndarray]) -> DType:
    """The one dtype all arrays have. Raises `ConfigError` if they differ or palm has no such dtype."""
    found = sorted({np.asarray(array).dtype.name for array in arrays.values()})
    known: list[DType] = [name for name in DTYPES if name in found]
    if len(found) != 1 or not known:
        raise ConfigError(
            f"dtype must be given unless all weights are of one of {', '.join(DTYPES)}; got dtype=None for "
            f"weights of {', '.join(found) or 'no dtype'}. Pass dtype=."
        )
    return known[0]


def _wing_of(model: Any) -> ModuleType | None:
    for backend in BACKENDS:
        loaded = sys.modules.get(f"palm.{backend}_impl")
        if loaded is not None and isinstance(model, loaded.PaLM):
            return loaded
    return None


def _check_config(config: PaLMConfig) -> None:
    if not isinstance(config, PaLMConfig):
        raise ConfigError(f"config must be a PaLMConfig; got {type(config).__name__}. See palm.PaLMConfig.")


def _check_options(backend: Backend, dtype: DType, attention: str) -> None:
    numpy_dtype(dtype)
    check_attention(attention, backend)


def _missing(backend: Backend) -> list[str]:
    return [name for name in _FRAMEWORKS[backend] if importlib.util.find_spec(name) is None]

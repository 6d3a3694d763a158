"""From a backend's name to its wing, and the doors that lead to both.

A wing is imported when it is first asked for: `import palm` must work, and be quick, where only one
framework, or neither, is installed.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from palm.config import BACKENDS, Backend, DType, PaLMConfig, check_backend
from palm.errors import BackendError, ConfigError, MissingFrameworkError
from palm.fields import check_choice
from palm.spec.mesh import AnyMesh, mesh_of
from palm.wings import Wing

if TYPE_CHECKING:
    from palm import jax_impl, torch_impl

    TorchModel: TypeAlias = torch_impl.PaLM
    JaxModel: TypeAlias = jax_impl.PaLM

# A model of either backend.
Model: TypeAlias = "TorchModel | JaxModel"

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


def wing(backend: Backend) -> Wing[Any]:
    """The wing's package, `palm.torch_impl` or `palm.jax_impl`. Raises what `check_installed` raises."""
    check_installed(backend)
    name = f"palm.{backend}_impl"
    if name in sys.modules or not gc.isenabled():
        return cast("Wing[Any]", importlib.import_module(name))
    # A framework is some hundred thousand objects that stay: to look for garbage among them, again and again
    # while it is imported, takes a fifth of the import.
    gc.disable()
    try:
        return cast("Wing[Any]", importlib.import_module(name))
    finally:
        gc.enable()


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
    return _found(model) is not None


def wing_of(model: Any) -> Wing[Any]:
    """The wing a model belongs to. Raises what `model_of` raises."""
    return _known(model)[0]


def model_of(model: Any) -> Any:
    """The model itself, without torch.compile, DistributedDataParallel or DataParallel around it.

    Raises `BackendError` if it is not one of palm's, or is inside a wrapper that may compute something else.
    """
    return _known(model)[1]


def _known(model: Any) -> tuple[Wing[Any], Any]:
    found = _found(model)
    if found is not None:
        return found
    if isinstance(model, (str, os.PathLike)):
        raise BackendError(
            f"model must be one that palm built; got the path {model}. Load it: palm.load(path, backend=…)."
        )
    raise BackendError(
        f"model must be one that palm built; got {type(model).__module__}.{type(model).__qualname__}. "
        "Put your own weights into one with palm.from_numpy(config, weights, backend=…), and those of a "
        "published original with palm.from_upstream."
    )


def backend_of(model: Any) -> Backend:
    """The name of the backend a model belongs to."""
    found = wing_of(model)
    return next(backend for backend in BACKENDS if found is sys.modules.get(f"palm.{backend}_impl"))


def config_of(model: Any) -> PaLMConfig:
    """The resolved config of a model. Raises `BackendError` if it is not one of palm's."""
    config: PaLMConfig = model_of(model).config
    return config


def dtype_of(model: Any) -> DType:
    """The name of the dtype of a model's weights. Raises `ConfigError` for several, or one palm lacks."""
    module, own = _known(model)
    return module.dtype_of(own)


def placed(backend: Backend, device: Any, mesh: AnyMesh) -> Any:
    """Where a model goes: a device or, of the framework's own kind, a mesh of several.

    Raises `ConfigError` for both at once, and what `mesh_of` and a wing's `device_mesh` raise.
    """
    found = mesh_of(mesh)
    if found.size == 1:
        return device
    if device is not None:
        raise ConfigError(
            f"device must be None where a mesh of several devices is given; got device={device!r} and "
            f"mesh={found}. Leave one of them out."
        )
    return wing(backend).device_mesh(found)


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


def _found(model: Any) -> tuple[Wing[Any], Any] | None:
    for backend in BACKENDS:
        loaded = sys.modules.get(f"palm.{backend}_impl")
        own = None if loaded is None else loaded.find_model(model)
        if loaded is not None and own is not None:
            return loaded, own
    return None


def _missing(backend: Backend) -> list[str]:
    return [name for name in _FRAMEWORKS[backend] if importlib.util.find_spec(name) is None]

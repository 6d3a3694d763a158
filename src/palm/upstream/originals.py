"""A published original as a side of a comparison: its own package, unmodified, and palm's reading of it.

Packages: PaLM-pytorch 0.2.2 and PaLM-jax 0.1.2, imported only when they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from palm.backends import check_installed, wing
from palm.config import Backend, DType, PaLMConfig
from palm.errors import MissingFrameworkError
from palm.models import common_dtype
from palm.presets import PRESETS
from palm.upstream.read import read_upstream
from palm.upstream.tensors import SOURCES, check_source, read_tensors, tensor_names

_PACKAGES: dict[str, tuple[Backend, str]] = {
    "palm_pytorch": ("torch", "PaLM-pytorch==0.2.2"),
    "palm_jax": ("jax", "PaLM-jax==0.1.2"),
}

Forward = Callable[[np.ndarray], np.ndarray]
Tensors = Mapping[str, np.ndarray]


def original(
    source: str, file: Path | str | None = None, *, seed: int = 0
) -> tuple[Forward, PaLMConfig, dict[str, np.ndarray]]:
    """A published original, live, and its weights as palm reads them.

    Gives (function, config, arrays): `function`, called `source`, takes int64 ids (..., n) to the original's
    own logits (..., n, v), in the data type of the weights; `palm.from_numpy(config, arrays, backend=…)` is
    the palm model beside it, so that

        palm.compare(function, palm.from_numpy(config, arrays, backend="jax"), tokens)

    agrees. `source` and `file` are those of `read_upstream`, which tells the sizes; without a file the
    original has the sizes of `palm.preset(source)` and the initial values it draws from `seed`.

    Raises `MissingFrameworkError` if the original's package or its framework is not installed,
    `UpstreamError` for an unknown source or a file that is not the source's, `ConfigError` for weights of
    several data types.
    """
    check_source(source, SOURCES)
    module = _import(source)
    build = _build_torch if source.startswith("palm_pytorch") else _build_jax
    if file is None:
        model, forward = build(module, _sizes(PRESETS[source]), {}, "float32", seed)
        config, arrays = read_upstream(model, source)
    else:
        config, arrays = read_upstream(file, source)
        tensors, _ = read_tensors(file, source)
        _, forward = build(module, _sizes(config), tensors, common_dtype(arrays), seed)

    def function(ids: np.ndarray) -> np.ndarray:
        # The torch originals take batches with one axis only.
        logits = forward(ids.reshape(-1, ids.shape[-1])).reshape(*ids.shape, config.num_tokens)
        # In bfloat16 one of their constants upcasts logits that are rounded already.
        return logits.astype(arrays["embedding"].dtype)

    function.__name__ = function.__qualname__ = source
    return function, config, arrays


def _import(source: str) -> ModuleType:
    package = source.partition(".")[0]
    backend, requirement = _PACKAGES[package]
    check_installed(backend)
    if importlib.util.find_spec(package) is None:
        raise MissingFrameworkError(
            f'source="{source}" needs the original\'s package {package}; it is not installed. '
            f"Run: pip install --no-deps {requirement}."
        )
    with _quiet():
        return importlib.import_module(source)


def _sizes(config: PaLMConfig) -> dict[str, int]:
    names = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
    return {name: getattr(config, name) for name in names}


def _build_torch(
    module: ModuleType, sizes: Mapping[str, int], tensors: Tensors, dtype: DType, seed: int
) -> tuple[Any, Forward]:
    """The torch original with these weights, or with its initial ones, and its forward pass."""
    torch = importlib.import_module("torch")
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            # ALiBi slopes are no weights: made in float32 and cast later, they would stay rounded to it.
            torch.set_default_dtype(getattr(torch, dtype))
            model = module.PaLM(**sizes).to(getattr(torch, dtype)).eval()
        finally:
            torch.set_default_dtype(before)
    if tensors:
        names = tensor_names(module.__name__, sizes["depth"])
        state = {name: wing("torch").weights.to_tensor(array.copy()) for name, array in tensors.items()}
        output = state.get(names["unembedding"])
        if output is not None and not torch.equal(output, state[names["embedding"]]):
            # Tied weights are one tensor: loading the second would overwrite the first.
            model[-1].weight = torch.nn.Parameter(torch.empty_like(model[-1].weight))
        # read_upstream has checked the names; a tied matrix may be saved once, a constant not at all.
        model.load_state_dict(state, strict=False)

    def forward(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return wing("torch").weights.to_array(model(torch.from_numpy(ids)))

    return model, forward


def _build_jax(
    module: ModuleType, sizes: Mapping[str, int], tensors: Tensors, dtype: DType, seed: int
) -> tuple[Any, Forward]:
    """The jax original with these weights, or with its initial ones, and its forward pass."""
    jax = importlib.import_module("jax")

    # A float64 model needs JAX's x64 mode, and a float32 one must not have it: the originals' constants
    # would be float64, and all that they touch.
    def mode() -> Any:
        return jax.enable_x64(dtype == "float64")

    def make(length: int) -> Any:
        # palm_lite holds the biases of the longest sequence it takes, (h, n, n).
        longest = {"max_seq_len": length} if module.__name__ == "palm_jax.palm_lite" else {}
        with mode(), _quiet():
            return module.PaLM(**sizes, **longest, key=jax.random.PRNGKey(seed))

    def load(path: Any, leaf: Any) -> Any:
        return jax.numpy.asarray(tensors[jax.tree_util.keystr(path, simple=True, separator=".")])

    with mode():
        model = jax.tree_util.tree_map_with_path(load, make(1)) if tensors else make(1)

    undecorated = vars(type(model))["__call__"].__wrapped__

    @lru_cache(maxsize=2)
    def compiled(length: int) -> Any:
        structure = jax.tree.structure(make(length))

        # Under a jit of this model alone: by the original's own, a second model of the same shape is an
        # error, because arrays among its static fields have no equality.
        def call(leaves: Any, ids: Any) -> Any:
            return undecorated(jax.tree.unflatten(structure, leaves), ids)

        return jax.jit(call)

    def forward(ids: np.ndarray) -> np.ndarray:
        with mode():
            return np.asarray(compiled(ids.shape[-1])(jax.tree.leaves(model), ids.astype(np.int32)))

    return model, forward


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings that the originals raise at import and construction, and no others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*static_field` is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "A JAX array is being set as static", UserWarning)
        yield

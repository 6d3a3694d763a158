"""The four originals, built by their own published packages, as oracles in float64.

Nothing here skips: where a package is missing these tests fail.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cases import ROOT

SOURCES = ("palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch", "palm_jax.palm", "palm_jax.palm_lite")
SIZES = {"num_tokens": 29, "dim": 24, "depth": 2, "heads": 3, "dim_head": 10, "ff_mult": 2}


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


@pytest.fixture(params=("torch", "jax"))
def backend(request):
    return request.param


@pytest.fixture(autouse=True, scope="module")
def x64():
    """JAX in float64, for these tests only."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@contextmanager
def quiet():
    """Silences what the originals do at import and construction, and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*static_field` is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "A JAX array is being set as static", UserWarning)
        yield


@dataclass(frozen=True)
class Original:
    """An original model, and the doors to it that the tests need."""

    source: str
    model: Any

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Its own forward pass."""
        if self.source.startswith("palm_pytorch"):
            import torch

            with torch.no_grad():
                return self.model(torch.from_numpy(tokens)).numpy()
        import jax

        # Under a jit of this model alone: with its own, a second model of the same shape is an error (see
        # test_upstream_defects).
        forward = partial(type(self.model).__call__.__wrapped__, self.model)
        return np.asarray(jax.jit(forward)(tokens))

    def tensors(self) -> dict[str, np.ndarray]:
        """Its weights by the names they have there."""
        if self.source.startswith("palm_pytorch"):
            from palm.torch_impl.weights import to_array

            return {name: to_array(tensor).copy() for name, tensor in self.model.state_dict().items()}
        import jax

        leaves = jax.tree_util.tree_leaves_with_path(self.model)
        return {jax.tree_util.keystr(path, simple=True, separator="."): np.array(x) for path, x in leaves}


class Originals:
    """Builds originals with every weight, norm scales included, drawn at random."""

    sizes = SIZES
    quiet = staticmethod(quiet)

    def module(self, source: str) -> ModuleType:
        """The original's own module."""
        with quiet():
            return importlib.import_module(source)

    def build(self, source: str, *, seed: int = 0, **changes: Any) -> Original:
        """An original in float64."""
        module, sizes, draw = self.module(source), {**SIZES, **changes}, np.random.default_rng(seed)
        if source == "palm_jax.palm_lite":
            sizes.setdefault("max_seq_len", 64)  # by default it holds h·2048² biases
        build = _build_torch if source.startswith("palm_pytorch") else _build_jax
        with quiet():
            return Original(source, build(module, sizes, draw))


@pytest.fixture(scope="session")
def originals() -> Originals:
    return Originals()


class RLHF:
    """Builds models of palm-rlhf-pytorch, of two versions, in float64, with every weight drawn at random."""

    versions = ("0.2.1", "0.8.0")

    def module(self, version: str) -> ModuleType:
        """The module of the model alone: the package itself imports trainers."""
        folder = ROOT / ".nox" / "rlhf" / version / "palm_rlhf_pytorch"
        assert folder.is_dir(), f"{folder} is missing: nox -s upstream installs it"
        others = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith(folder.name)}
        package = types.ModuleType(folder.name)
        package.__path__ = [str(folder)]
        sys.modules[folder.name] = package
        try:
            return importlib.import_module(f"{folder.name}.palm")
        finally:
            for name in [name for name in sys.modules if name.startswith(folder.name)]:
                del sys.modules[name]
            sys.modules.update(others)

    def build(self, version: str, *, use_xpos: bool = True, seed: int = 0, **sizes: Any) -> Any:
        """A model whose norm scales are around one in either convention."""
        import torch

        draw = np.random.default_rng(seed)
        model = self.module(version).PaLM(**sizes).double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                weight = _weight(name, tuple(parameter.shape), parameter.shape[-1], draw)
                is_gamma = name.endswith("gamma") and version != "0.2.1"
                parameter.copy_(torch.from_numpy(weight - is_gamma))
            for part in model.modules():
                if hasattr(part, "inv_freq"):  # rounded to float32 before .double()
                    e = sizes.get("dim_head", 64)
                    pairs = torch.arange(0, e, 2, dtype=torch.float64)
                    part.inv_freq = 1.0 / (10000 ** (pairs / e))
                    part.scale = (pairs + 0.4 * e) / (1.4 * e)
                    part.use_xpos = use_xpos
        return model


@pytest.fixture(scope="session")
def rlhf() -> RLHF:
    return RLHF()


@pytest.fixture(scope="session")
def run_python():
    """Runs a program in an interpreter of its own and returns what it prints."""
    import subprocess

    def run(program: str, *arguments: Any) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _weight(name: str, shape: tuple[int, ...], fan_in: int, draw: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return 1 + 0.3 * draw.standard_normal(shape)
    if name in ("0.weight", "embedding"):
        weight = 0.02 * draw.standard_normal(shape)
        weight[0] *= 1e-7  # a token so small that eps decides what the first norm makes of it
        return weight
    return draw.standard_normal(shape) * fan_in**-0.5


def _build_torch(module: ModuleType, sizes: dict[str, int], draw: np.random.Generator) -> Any:
    import torch

    model = module.PaLM(**sizes).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = _weight(name, tuple(parameter.shape), parameter.shape[-1], draw)
            parameter.copy_(torch.from_numpy(weight))
        # Both constants were rounded to float32 before .double() widened them, which alone would be an
        # error of 1e-8. What the original means are these numbers, so it gets them in full.
        for part in model.modules():
            if hasattr(part, "inv_freq"):
                e = sizes["dim_head"]
                part.inv_freq = 1.0 / (10000 ** (torch.arange(0, e, 2, dtype=torch.float64) / e))
            if hasattr(part, "slopes"):
                slopes = torch.tensor(part._get_slopes(sizes["heads"]), dtype=torch.float64)
                part.slopes = slopes[:, None, None]
    return model


def _build_jax(module: ModuleType, sizes: dict[str, int], draw: np.random.Generator) -> Any:
    import jax
    import jax.numpy as jnp

    model = module.PaLM(**sizes, key=jax.random.PRNGKey(0))

    # Its own N(0, 1) matrices would blow the activations up: scaled by fan_in^-1/2, as palm's are.
    def redraw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jnp.asarray(_weight(name, leaf.shape, leaf.shape[0], draw))

    return jax.tree_util.tree_map_with_path(redraw, model)

"""The parameter table: canonical name -> shape, logical axes, initialiser; computed from the config.

Both wings, checkpoints, importers and reports use only these names. Matrices are applied from the right
(`x @ W`, shape `(in, out)`). Letters: d dim, h heads, e dim_head, f ff_mult·dim, v num_tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import ml_dtypes
import numpy as np

from palm.config import BACKENDS, Backend, DType, PaLMConfig
from palm.errors import ConfigError, WeightsError
from palm.spec.arrays import Named

Axis = Literal["vocab", "embed", "heads", "kv", "ff", "layers"]

DTYPES: dict[DType, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    `axes` names each dimension for sharding; a wing that stacks its blocks puts `layers` before them.
    `std` is the standard deviation of the initial N(0, std²); None means ones.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    std: float | None

    @property
    def kind(self) -> str:
        """The name without its block index: `blocks.attention.query` for `blocks.3.attention.query`."""
        return ".".join(part for part in self.name.split(".") if not part.isdecimal())

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@lru_cache(maxsize=32)
def parameters(config: PaLMConfig) -> Mapping[str, Parameter]:
    """The table of a resolved config, in dataflow order.

    Matrices start as N(0, 1/fan_in); embeddings as N(0, 1) ("paper", §5) or N(0, 0.02²) ("reference"). An
    untied output matrix starts like the embedding it replaces, so that untying does not change the scale
    of the logits. Raises `ConfigError` if the config is not resolved.
    """
    if not config.is_resolved:
        raise ConfigError(
            "config must be resolved because its parameters depend on the architecture; got "
            f"positions={config.positions!r}, norm={config.norm!r}, share_kv={config.share_kv!r}. "
            'Call config.resolve("torch") or config.resolve("jax").'
        )
    d, inner, e, f, v = config.dim, config.inner_dim, config.dim_head, config.ff_dim, config.num_tokens
    embedding_std = 1.0 if config.init == "paper" else 0.02
    table: dict[str, Parameter] = {}

    def add(name: str, shape: tuple[int, ...], axes: tuple[Axis, ...], std: float | None) -> None:
        table[name] = Parameter(name, shape, axes, std)

    def add_matrix(name: str, fan_in: int, fan_out: int, axes: tuple[Axis, Axis]) -> None:
        add(name, (fan_in, fan_out), axes, fan_in**-0.5)

    add("embedding", (v, d), ("vocab", "embed"), embedding_std)
    for i in range(config.depth):
        block = f"blocks.{i}"
        add(f"{block}.norm", (d,), ("embed",), None)
        add_matrix(f"{block}.attention.query", d, inner, ("embed", "heads"))
        for name in ("key_value",) if config.share_kv else ("key", "value"):
            add_matrix(f"{block}.attention.{name}", d, e, ("embed", "kv"))
        for name in ("query_norm", "key_norm") if config.qk_norm else ():
            add(f"{block}.attention.{name}", (e,), ("kv",), None)
        add_matrix(f"{block}.attention.out", inner, d, ("heads", "embed"))
        add_matrix(f"{block}.feedforward.up", d, f, ("embed", "ff"))
        add_matrix(f"{block}.feedforward.gate", d, f, ("embed", "ff"))
        add_matrix(f"{block}.feedforward.down", f, d, ("ff", "embed"))
    add("norm", (d,), ("embed",), None)
    if not config.tie_embeddings:
        add("unembedding", (d, v), ("embed", "vocab"), embedding_std)
    return MappingProxyType(table)


def frozen(config: PaLMConfig, freeze: str | None) -> frozenset[str]:
    """The names that a recipe's `freeze` matches in full: these weights do not learn. None: no names.

    Raises `ConfigError` if it matches no weight of the config, or every one.
    """
    if freeze is None:
        return frozenset()
    table = parameters(config)
    found = frozenset(name for name in table if re.fullmatch(freeze, name))
    if not 0 < len(found) < len(table):
        which = "all of them" if found else f"none of them, which are {', '.join([*table][:3])}, …"
        raise ConfigError(
            "freeze must match some weights in full, and not all; got "
            f"freeze={freeze!r}, which matches {which}. "
            r"'embedding|blocks\.0\..*' matches the embedding and the first block."
        )
    return found


def numpy_dtype(dtype: str) -> np.dtype:
    """NumPy's dtype of one of palm's dtype names. Raises `ConfigError` for any other."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got dtype={dtype!r}. Choose one.")
    return DTYPES[dtype]


def dtype_name(*dtypes: object) -> DType:
    """palm's name of one NumPy or framework dtype. Raises `ConfigError` for several, or one palm lacks."""
    names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if len(names) > 1:
        raise ConfigError(
            f"dtype must be one for all weights; got a model in {' and '.join(names)}. "
            "Cast all of it to one (torch: model.to(dtype))."
        )
    [name] = names
    for known in DTYPES:
        if known == name:
            return known
    raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got a model in dtype={name}. Cast it back.")


def check_names(config: PaLMConfig, names: Iterable[str], source: str = "weights") -> None:
    """Raise `WeightsError` naming every tensor that is missing from, or unknown to, the config's table."""
    table, given = parameters(config), set(names)
    missing = [name for name in table if name not in given]
    unknown = sorted(name for name in given if name not in table)
    problems = [
        f"{problem} {', '.join(found[:8])}" + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        for problem, found in (("miss", missing), ("have unknown", unknown))
        if found
    ]
    if problems:
        fix = "Check that config and weights belong together (palm.spec.parameters lists the names)."
        if any(name.removesuffix(".weight") in table for name in unknown):
            fix = (
                "Names in .weight are those of a state_dict, which has some matrices transposed too: "
                "palm.to_numpy(model) gives a palm model's weights by the names that are expected here."
            )
        raise WeightsError(
            f"{source} must have exactly the tensors of their config; they {'. They '.join(problems)}. {fix}"
        )


def check_array(parameter: Parameter, array: np.ndarray, source: str = "weights") -> None:
    """Raise `WeightsError` unless `array` fits its row: shape, floating dtype, all values finite."""
    where = f"{source}: {parameter.name}"
    if array.shape != parameter.shape:
        fix = "Check that config and weights belong together."
        if array.shape == parameter.shape[::-1]:
            layout = "(num_tokens, dim)" if parameter.axes[0] == "vocab" else "(in, out)"
            fix += f" If it is transposed, pass its .T: palm stores this matrix as {layout}."
        raise WeightsError(f"{where} must have shape {parameter.shape}; got shape={array.shape}. {fix}")
    if array.dtype not in DTYPES.values():
        raise WeightsError(
            f"{where} must be one of {', '.join(DTYPES)}; got dtype={array.dtype}. Cast it with .astype()."
        )
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise WeightsError(
            f"{where} must be finite; got {array[tuple(bad[0])]} at {tuple(bad[0].tolist())} and "
            f"{len(bad)} such elements in all. Go back to weights from before the run diverged."
        )


def check_weights(config: PaLMConfig, arrays: Named, backend: Backend) -> None:
    """Raise `WeightsError` unless `arrays` are the weights of the config, resolved for `backend`."""
    if not isinstance(arrays, Mapping):
        raise WeightsError(
            f"weights must be arrays by name; got {type(arrays).__name__}. palm.to_numpy(model) gives those "
            "of a palm model."
        )
    resolved = config.resolve(backend)
    try:
        check_names(resolved, arrays)
    except WeightsError as error:
        chosen = [n for n in ("positions", "norm", "share_kv") if getattr(config, n) is None]
        if not chosen:
            raise
        values = ", ".join(f"{name}={getattr(resolved, name)!r}" for name in chosen)
        other = next(name for name in BACKENDS if name != backend)
        raise WeightsError(
            f'{error} The config leaves choices open, which backend="{backend}" made: {values}. If the '
            f'weights are of the other architecture, pass config.resolve("{other}").'
        ) from None
    for name, parameter in parameters(resolved).items():
        try:
            array = np.asarray(arrays[name])
        except (RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"weights: {name} must be an array that NumPy can read; got {type(arrays[name]).__name__}: "
                f"{error} Convert it (torch: tensor.detach().float().cpu().numpy())."
            ) from None
        check_array(parameter, array)


def checked_weights(config: PaLMConfig, weights: Named) -> dict[str, np.ndarray]:
    """Every weight in float64. Raises `WeightsError` unless they are those of the config."""
    check_names(config, weights)
    for name, parameter in parameters(config).items():
        check_array(parameter, weights[name])
    return {name: upcast(array) for name, array in weights.items()}


def upcast(x: np.ndarray) -> np.ndarray:
    """x in float64; a complex x, of which a derivative is taken by a complex step, in complex128."""
    return np.asanyarray(x, np.result_type(x, np.float64))

"""Models of either backend: built, brought in and out as NumPy arrays, converted, and looked into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from palm.backends import check_attention, config_of, model_of, placed, wing, wing_of
from palm.config import Backend, DType, PaLMConfig
from palm.data.remembered import remember_tokenizer, remembered_tokenizer
from palm.data.tokenizer import Tokenizer
from palm.errors import ConfigError
from palm.spec.arrays import Arrays
from palm.spec.initial import Initial
from palm.spec.mesh import AnyMesh
from palm.spec.parameters import (
    DTYPES,
    Parameter,
    check_array,
    check_weights,
    numpy_dtype,
)
from palm.tracing.turns import shared

if TYPE_CHECKING:
    from palm.backends import JaxModel, Model, TorchModel


@overload
def build(
    config: PaLMConfig,
    *,
    backend: Literal["torch"],
    seed: int = ...,
    dtype: DType = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def build(
    config: PaLMConfig,
    *,
    backend: Literal["jax"],
    seed: int = ...,
    dtype: DType = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def build(
    config: PaLMConfig,
    *,
    backend: Backend,
    seed: int = ...,
    dtype: DType = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> Model: ...


def build(
    config: PaLMConfig,
    *,
    backend: Backend,
    seed: int = 0,
    dtype: DType = "float32",
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
) -> Model:
    """A freshly initialised model: an `nn.Module` (torch) or an `eqx.Module` (jax).

    Open choices of the config are resolved to the backend's original. The same seed gives bit-identical
    weights in both backends. `device` is the framework's own or its name; `attention` is a path of the
    backend ("textbook", "blockwise", …; "auto" is the fastest there) and changes speed and rounding, never
    the function. `mesh`, such as {"data": 4, "model": 2} or "data=4,model=2", cuts the weights over several
    devices in place of one (`palm.spec.mesh`): those of this process or, once it has joined others, of all.
    Each process draws the pieces of its own devices alone (`palm.spec.initial`).

    Raises `ConfigError`, `BackendError` (unknown backend or device, or too few devices for the mesh) or
    `MissingFrameworkError`.
    """
    implementation = wing(backend)
    _check_config(config)
    _check_options(backend, dtype, attention)
    return implementation.from_arrays(
        config.resolve(backend),
        lambda parameter: Initial(parameter, seed, dtype),
        dtype=dtype,
        device=placed(backend, device, mesh),
        attention=attention,
    )


@overload
def from_numpy(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def from_numpy(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    backend: Literal["jax"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def from_numpy(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    backend: Backend,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> Model: ...


def from_numpy(
    config: PaLMConfig,
    arrays: Mapping[str, np.ndarray],
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
) -> Model:
    """A model with the given weights, by canonical name and in canonical layout.

    `dtype` None keeps the arrays' own, which must then be one and the same. Checked as a whole before
    anything is built: raises `WeightsError` for missing, unknown, mis-shaped, wrong-dtype or non-finite
    arrays, and what `build` raises.
    """
    implementation = wing(backend)
    _check_config(config)
    resolved = config.resolve(backend)
    check_weights(config, arrays, backend)
    dtype = dtype or common_dtype(arrays)
    _check_options(backend, dtype, attention)

    def fetch(parameter: Parameter) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = np.asarray(arrays[parameter.name]).astype(numpy_dtype(dtype))
        check_array(parameter, array, source=f"weights in {dtype}")
        return array

    device = placed(backend, device, mesh)
    return implementation.from_arrays(resolved, fetch, dtype=dtype, device=device, attention=attention)


@shared()
def to_numpy(model: Any) -> Arrays:
    """A model's weights by canonical name, in canonical layout, copied; bfloat16 is `ml_dtypes.bfloat16`.

    Weights that are computed from others (`torch.nn.utils.parametrize`, `prune`) have their present values.
    Raises `BackendError` for a model that computes more than its weights say, by an adapter or a hook, and
    `WeightsError` for weights without values.
    """
    module = wing_of(model)
    own = module.settled(model_of(model))
    module.check_plain(own)
    return module.to_arrays(own)


@overload
def convert(
    model: Any,
    *,
    backend: Literal["torch"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> TorchModel: ...


@overload
def convert(
    model: Any,
    *,
    backend: Literal["jax"],
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> JaxModel: ...


@overload
def convert(
    model: Any,
    *,
    backend: Backend,
    dtype: DType | None = ...,
    device: Any = ...,
    mesh: AnyMesh = ...,
    attention: str = ...,
) -> Model: ...


def convert(
    model: Any,
    *,
    backend: Backend,
    dtype: DType | None = None,
    device: Any = None,
    mesh: AnyMesh = None,
    attention: str = "auto",
) -> Model:
    """The same model in `backend`, bitwise unless `dtype` asks for another precision, with its tokenizer.

    Raises what `from_numpy` raises.
    """
    where: dict[str, Any] = {"device": device, "mesh": mesh}
    converted = from_numpy(
        config_of(model), to_numpy(model), backend=backend, dtype=dtype, attention=attention, **where
    )
    remember_tokenizer(converted, tokenizer_of(model))
    return converted


def tokenizer_of(model: Any) -> Tokenizer | None:
    """The tokenizer that `model` was trained with, as far as palm knows; bytes where `num_tokens` is 256.

    A copy, and a JAX model that an update of your own made, has none until you pass `tokenizer=`."""
    return remembered_tokenizer(model_of(model), config_of(model).num_tokens)


def activations(model: Any, tokens: Any, *, segments: Any = None) -> Arrays:
    """Every tap of one forward pass, in dataflow order, under the same names in both backends.

    `embed`; `blocks.{i}.norm`, `.q`, `.k`, `.v` (after the position step, before the scale), `.attention`
    (heads merged), `.attention_out`, `.feedforward` (the gated product), `.feedforward_out`, `.out`; `norm`;
    `logits`. Shapes (..., n, width). A position sees only those earlier ones that have its integer of
    `segments` (..., n). Hooks and adapters of inner modules take part. Raises `TokenError`, `ConfigError` for
    sequences that a mesh cannot share out, and `BackendError` where taps would not show what it computes.
    """
    return wing_of(model).activations(model_of(model), tokens, segments=segments)


def value_and_grad(
    model: Any, tokens: Any, *, segments: Any = None, labels: Any = None
) -> tuple[float, Arrays]:
    """Mean next-token cross-entropy in nats, and its gradient by canonical name.

    With `segments` (..., n) no position sees or predicts a token of another one. With `labels` (..., n)
    position i predicts label i + 1 in place of the token there; a label of −100 does not count.

    Weights that are computed from others have gradients with respect to their present values. Raises
    `TokenError`, also if n < 2, `ConfigError` for sequences that a mesh cannot share out, and `WeightsError`
    where an adapter has taken a weight's place.
    """
    return wing_of(model).value_and_grad(model_of(model), tokens, segments=segments, labels=labels)


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


def _check_config(config: PaLMConfig) -> None:
    if not isinstance(config, PaLMConfig):
        raise ConfigError(f"config must be a PaLMConfig; got {type(config).__name__}. See palm.PaLMConfig.")


def _check_options(backend: Backend, dtype: DType, attention: str) -> None:
    numpy_dtype(dtype)
    check_attention(attention, backend)

"""Between the JAX wing's modules and the canonical parameter table.

A parameter `name` of the table is the attribute `name.weight`; those of blocks are stacked over layers.
Mirror: palm.torch_impl.weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from palm.config import DType, PaLMConfig
from palm.errors import BackendError, ConfigError
from palm.jax_impl.attention import choose_path
from palm.jax_impl.model import PaLM
from palm.jax_impl.sharding import fetched, kind_of, spec_of
from palm.jax_impl.wrapped import settled
from palm.spec.boxes import Piece, Sliceable, box_of, read_into
from palm.spec.mesh import Mesh
from palm.spec.parameters import Parameter, dtype_name, parameters
from palm.spec.sizes import check_model
from palm.tracing.turns import shared

_ALIGNED = 64
# Where a model is put; None: where JAX likes.
Place: TypeAlias = jax.Device | jax.sharding.Mesh | None


def from_arrays(
    config: PaLMConfig,
    fetch: Callable[[Parameter], Sliceable],
    *,
    dtype: DType,
    device: Place | str,
    attention: str,
) -> PaLM:
    """A model of the weights that `fetch` gives, in `dtype`, for each row of the table, one stack at a time.

    On a mesh of `palm.jax_impl.device_mesh` each device has the pieces that `palm.spec.mesh` cuts for it.
    Raises `ConfigError` for float64 without JAX's x64 mode, which would silently give float32.
    """
    target = find_device(device)
    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigError(
            'dtype must be float32 or bfloat16 while jax_enable_x64 is off; got dtype="float64". '
            'Call jax.config.update("jax_enable_x64", True) first, or set JAX_ENABLE_X64=1.'
        )
    is_traced = isinstance(jnp.zeros(()), jax.core.Tracer)
    with jax.ensure_compile_time_eval():
        platform = _platform(target) or next(iter(jnp.zeros(()).devices())).platform
    path = choose_path(attention, config, platform)
    if platform == "cpu" and not is_traced and jax.process_count() == 1:
        check_model(config, dtype)
    table = parameters(config)

    def fill(where: tuple[jax.tree_util.GetAttrKey, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        kind = kind_of(where)
        layers = kind.startswith("blocks.") and range(config.depth)

        def read(at: tuple[slice, ...] = tuple(slice(0, size) for size in leaf.shape)) -> np.ndarray:
            room = _room(box_of(at, leaf.shape).shape, leaf.dtype)
            if not layers:
                read_into(room, fetch(table[kind]), at)
                return room
            for i, layer in zip(layers[at[0]], room, strict=True):
                read_into(layer, fetch(table[kind.replace("blocks", f"blocks.{i}", 1)]), at[1:])
            return room

        place = _place_of(target, config, kind)
        # Traced, weights are fetched when the program runs; `jax.eval_shape` never does.
        if is_traced:
            return jax.device_put(jax.pure_callback(read, leaf), place)
        if isinstance(place, NamedSharding):
            return _shared_out(leaf.shape, place, read)
        return jax.device_put(read(), place)

    hollow = jax.eval_shape(
        lambda: PaLM(config, attention=path, dtype=jnp.dtype(dtype), key=jax.random.key(0))
    )
    return jax.tree_util.tree_map_with_path(fill, hollow)


@shared()
def to_arrays(model: PaLM, *, copied: bool = True) -> dict[str, np.ndarray]:
    """The model's weights under their canonical names; not `copied`, for a reader who lets them be.

    Raises what `settled` raises.
    """
    return canonical(model, settled(model), copied=copied)


def canonical(model: PaLM, tree: PaLM, *, copied: bool = True) -> dict[str, np.ndarray]:
    """The leaves of a tree shaped like `model` (its gradients, say), as arrays in the canonical layout."""
    stacks: dict[str, Any] = {}
    arrays = {}
    for name, parameter in parameters(model.config).items():
        if parameter.kind not in stacks:
            stacks[parameter.kind] = _readable(attrgetter(parameter.kind)(tree).weight)
        stack = stacks[parameter.kind]
        layer = name.split(".")[1] if name.startswith("blocks.") else None
        array = fetched(stack if layer is None else stack[int(layer)])
        arrays[name] = np.array(array, order="C") if copied else array
    return arrays


@shared()
def pieces(model: PaLM) -> Iterator[Piece]:
    """The pieces of the model's weights that this process owns, in the canonical layout, seen where they are.

    All processes of a mesh together own each weight once. Raises what `settled` raises.
    """
    return owned(model, settled(model))


def owned(model: PaLM, tree: PaLM) -> Iterator[Piece]:
    """The pieces that this process owns of the leaves of a tree shaped like `model`."""
    kinds = {
        parameter.kind: name.startswith("blocks.") for name, parameter in parameters(model.config).items()
    }
    for kind, is_stack in kinds.items():
        for shard in attrgetter(kind)(tree).weight.addressable_shards:
            if shard.replica_id:
                continue
            array, start = np.asarray(shard.data), tuple(part.start or 0 for part in shard.index)
            if not is_stack:
                yield Piece(kind, start, array)
                continue
            for i, layer in enumerate(array, start[0]):
                yield Piece(kind.replace("blocks", f"blocks.{i}", 1), start[1:], layer)


@shared()
def dtype_of(model: PaLM) -> DType:
    """The name of the dtype of the model's weights. Raises `ConfigError` for several, or one palm lacks."""
    return dtype_name(*{leaf.dtype for leaf in jax.tree.leaves(model)})


def find_device(device: Place | str) -> Place:
    """The device a user means: "cpu", "gpu", "gpu:1", … Raises `BackendError` if it does not exist here.

    A mesh is itself, unless it is of one device.
    """
    if isinstance(device, jax.sharding.Mesh):
        return device if device.size > 1 else device.devices.flat[0]
    if device is None or isinstance(device, jax.Device):
        return device
    platform, _, index = str(device).partition(":")
    try:
        known = jax.devices(platform)
        if index and not (index.isdecimal() and int(index) < len(known)):
            raise ValueError(f"{platform} devices have numbers from 0 to {len(known) - 1}")
        return known[int(index or 0)]
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(
            f"device must be available to jax; got device={device!r}: {reason}. "
            'Use "cpu", or a device that is here.'
        ) from None


def is_on_host(device: Place | str) -> bool:
    """Whether a model on that device is in this machine's memory. Raises `BackendError` as `find_device`."""
    return (_platform(find_device(device)) or jax.default_backend()) == "cpu"


def _platform(target: Place) -> str | None:
    device = target.devices.flat[0] if isinstance(target, jax.sharding.Mesh) else target
    return None if device is None else str(device.platform)


def _place_of(target: Place, config: PaLMConfig, kind: str) -> jax.Device | NamedSharding | None:
    if not isinstance(target, jax.sharding.Mesh):
        return target
    return NamedSharding(target, spec_of(config, Mesh(**target.shape), kind))


def _shared_out(
    shape: tuple[int, ...], place: NamedSharding, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> Array:
    """An array of which `read` gives the pieces of this process's devices, each once and one at a time."""
    parts: dict[jax.Device, Any] = dict(place.addressable_devices_indices_map(shape))
    arrays: dict[jax.Device, Array] = {}
    for at in {str(at): at for at in parts.values()}.values():  # slices are no keys on every Python
        piece = read(at)
        arrays |= {device: jax.device_put(piece, device) for device, part in parts.items() if part == at}
        jax.block_until_ready([*arrays.values()])
    return jax.make_array_from_single_device_arrays(shape, place, [arrays[device] for device in parts])


def _room(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Room for an array. On a CPU JAX takes what begins at a multiple of 64 as its own, and copies others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    content = np.empty(size + _ALIGNED, np.uint8)
    first = -content.ctypes.data % _ALIGNED
    return content[first : first + size].view(dtype).reshape(shape)


def _readable(stack: Array) -> Array | np.ndarray:
    # Of what lies on several processes one layer is fetched at a time.
    return stack if isinstance(stack, jax.Array) and not stack.is_fully_addressable else np.asarray(stack)

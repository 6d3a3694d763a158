"""Where the arrays of a program lie on a mesh of devices, as XLA is told: one program runs on all of them.

The type of an array names its mesh, also while a program is traced. So nobody says here which mesh is meant,
and without a mesh each function gives back what it is given: the program is that of one device.
Letters: b batch, n sequence, d dim, h heads, e dim_head, k what is summed over, c columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from palm.config import PaLMConfig
from palm.jax_impl.norm import widen
from palm.spec.boxes import Rows
from palm.spec.mesh import BATCH, Cut, Mesh, cuts

Attend = Callable[[Array, Array, Array, Array | None, Array | None], Array]
T = TypeVar("T")
# Numbers beside each other in a register of a TPU. To cut an array into parts that are no multiple of them,
# its compiler unrolls a program of hundreds of megabytes: of the 540B model's vocabulary, over 12 chips.
_LANES = 128


def mesh_on(x: Any) -> jax.sharding.Mesh | None:
    """The mesh of pod, data and model that an array outside of a program lies on, if it does."""
    # A tracer's mesh is abstract, and NumPy's arrays, which a model may have too, are on none.
    sharding = getattr(x, "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, jax.sharding.Mesh) and is_own(mesh) else None


def is_own(mesh: jax.sharding.Mesh | AbstractMesh) -> bool:
    """Whether a mesh is one of pod, data and model, of which XLA moves what lies along `model`."""
    axes = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(axes) == tuple(Mesh().shape) and axes["model"] == AxisType.Auto


def spec_of(config: PaLMConfig, mesh: Mesh, kind: str) -> PartitionSpec:
    """How the table of `palm.spec.mesh` cuts a weight, of blocks the stack of all layers."""
    dimensions = [*cuts(config, mesh)[kind.replace("blocks", "blocks.0", 1)]]
    if kind.startswith("blocks."):
        dimensions.insert(0, None)
    # As JAX itself writes the shardings of results.
    while dimensions and dimensions[-1] is None:
        dimensions.pop()
    return PartitionSpec(*dimensions)


def kind_of(where: tuple[Any, ...]) -> str:
    """The kind of the parameter that is the leaf at `where` of a model's tree."""
    return ".".join(key.name for key in where).removesuffix(".weight")


def in_place(tree: T, config: PaLMConfig) -> T:
    """Arrays of the shapes of a model's weights, each cut like the weight."""

    def place(where: tuple[Any, ...], leaf: Array) -> Array:
        mesh = _mesh(leaf)
        return leaf if mesh is None else _cut(leaf, spec_of(config, Mesh(**mesh.shape), kind_of(where)))

    return jax.tree_util.tree_map_with_path(place, tree)


def everywhere(tree: T) -> T:
    """Arrays that are whole on each device."""
    return jax.tree.map(lambda leaf: _cut(leaf, PartitionSpec()), tree)


def spread(matrix: Array) -> Array:
    """A matrix cut along its last dimension over all devices, or over `model` alone where it must be."""
    mesh = _mesh(matrix)
    if mesh is None or matrix.shape[-1] % mesh.size:
        return laid(matrix, "model")
    return _cut(matrix, PartitionSpec(None, mesh.axis_names))


def own_rows(windows: Rows, micros: int, weight: Array) -> np.ndarray | Array:
    """Windows on the devices of `weight`: on each its own of each micro-batch, or all if they cannot be
    shared evenly. Each process reads those of its devices alone, and each of them once.

    Shapes: (b, n) -> (b, n), or (micros, b / micros, n) of several micro-batches, int32.
    """
    rows, width = windows.shape
    size = rows // micros

    @cache
    def read(first: int, stop: int) -> np.ndarray:
        parts = [windows[at + first : at + stop] for at in range(0, rows, size)]
        return np.stack(parts).astype(np.int32)[0 if micros == 1 else slice(None)]

    def of_device(at: Any) -> np.ndarray:
        return read(*at[-2].indices(size)[:2])

    mesh = mesh_on(weight)
    if mesh is None:
        return read(0, size)
    # The micro-batches have a dimension here: made in the program, it would take the cut of the sequences.
    own = (BATCH if size % _replicas(mesh) == 0 else None, None)
    shape, spec = ((size, width), own) if micros == 1 else ((micros, size, width), (None, *own))
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(shape, place, of_device)


def share_out(ids: np.ndarray, weight: Array) -> np.ndarray | Array:
    """Ids on the devices of `weight`: on each its own sequences, or all if they cannot be shared evenly.

    Each process is given all of them.
    """
    mesh = mesh_on(weight)
    if mesh is None:
        return ids
    even = ids.ndim > 1 and len(ids) % _replicas(mesh) == 0
    spec = PartitionSpec(BATCH) if even else PartitionSpec()
    return jax.make_array_from_callback(ids.shape, NamedSharding(mesh, spec), lambda at: ids[at])


def on_each(array: np.ndarray, weight: Array) -> Array:
    """The array where a weight is; on a mesh one on each device. Shapes: (...) -> (...) or (devices, ...)."""
    mesh = mesh_on(weight)
    if mesh is None:
        return jax.device_put(array, weight.sharding)
    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, *array.shape), place, lambda _: array[None])


def fetched(x: Array) -> np.ndarray:
    """All values of an array. Where it lies on several processes, all of them must call this."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def laid(x: Array, width: Cut) -> Array:
    """x with its sequences shared out, and its last dimension cut along `width` or whole.

    Shapes: (..., n, width) -> (..., n, width).
    """
    mesh = _mesh(x)
    if mesh is None:
        return x
    batch = _batch(mesh, x.shape, 2)
    rest = [None] * (x.ndim - len(batch) - 1)
    return _cut(x, PartitionSpec(*batch, *rest, _if_even(mesh, width, x.shape[-1])))


def gathered(y: Array) -> Array:
    """What a norm gives, whole in its last dimension. Shapes: (..., n, d) -> (..., n, d)."""
    # First in parts, as the norm has read: XLA would else gather that, which is wider.
    return laid(laid(y, "model"), None)


def added(x: Array, attended: Array, fed: Array) -> Array:
    """x + attended + fed. Shapes: three of (..., n, d) -> (..., n, d).

    Where the two are sums over `model`, each device adds its parts of them, and one sum travels, not two.
    """
    if ways(x) == 1:
        return laid(x + attended + fed, "model")
    return laid(x + laid(attended + fed, "model"), "model")


def ways(x: Array) -> int:
    """Into how many parts `model` cuts what lies along it, on the mesh of x."""
    mesh = _mesh(x)
    return 1 if mesh is None else int(mesh.shape["model"])


def in_columns(weight: Array) -> Array:
    """A matrix cut along its columns over `model`, with columns of zeros at the end if they do not divide.

    Shapes: (k, c) -> (k, c and more).
    """
    columns = weight.shape[1]
    extra = -columns % (ways(weight) * _LANES) if columns % ways(weight) else 0
    return laid(jnp.pad(weight, ((0, 0), (0, extra))) if extra else weight, "model")


def on_each_device(
    attend: Attend, q: Array, k: Array, v: Array, slopes: Array | None, segments: Array | None
) -> Array:
    """A path of attention, which each device takes for its own sequences and heads.

    Shapes: q (..., n, h, e), k and v (..., n, e), slopes (h,) or None, segments (..., n) or None
    -> (..., n, h, e).
    """
    mesh = _mesh(q)
    if mesh is None:
        return attend(q, k, v, slopes, segments)

    def own(q: Array, k: Array, v: Array, slopes: Array | None, segments: Array | None) -> Array:
        return attend(q, k.astype(q.dtype), v.astype(q.dtype), slopes, segments)

    batch, heads = _batch(mesh, q.shape, 3), _if_even(mesh, "model", q.shape[-2])
    of_keys = PartitionSpec(*batch)
    of_queries = PartitionSpec(*batch, *[None] * (q.ndim - len(batch) - 2), heads, None)
    specs = (of_queries, of_keys, of_keys, PartitionSpec(heads), of_keys)
    mapped = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=of_queries, check_vma=False)
    # Wide: the gradients of the one key head are summed over the devices in the dtype that it has here.
    return mapped(q, widen(k), widen(v), slopes, segments)


def averaged(function: Callable[..., T], rows: Array, weight: Array, targets: Array) -> T:
    """`function(rows, weight, targets)`, means over sequences, of which each device takes its own.

    Shapes: rows (b, ..., k), weight (k, c), targets (b, ...).
    """
    mesh = _mesh(rows)
    batch = () if mesh is None else _batch(mesh, rows.shape, 2)
    if mesh is None or not batch or _replicas(mesh) == 1:
        return function(rows, weight, targets)

    def own(rows: Array, weight: Array, targets: Array) -> T:
        return jax.tree.map(lambda mean: mean[None], function(rows, weight.astype(rows.dtype), targets))

    axes = [axis for axis in BATCH if mesh.shape[axis] > 1]
    of_rows = PartitionSpec(tuple(axes))
    specs = (of_rows, PartitionSpec(), of_rows)
    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=specs, out_specs=of_rows, axis_names={*axes}, check_vma=False
    )
    # Wide: the gradients of the devices are summed in the dtype that the weight has here.
    return jax.tree.map(lambda means: means.mean(), mapped(rows, widen(weight), targets))


def _mesh(x: Any) -> AbstractMesh | None:
    """The mesh of a value of a program, None if there is nothing to tell XLA."""
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.core.Tracer) else None
    return mesh if mesh is not None and is_own(mesh) else None


def _cut(x: Array, spec: PartitionSpec) -> Array:
    mesh = _mesh(x)
    return x if mesh is None else lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _batch(mesh: AbstractMesh, shape: tuple[int, ...], own: int) -> tuple[tuple[str, ...], ...]:
    """How a batch dimension before the `own` last ones is cut, if there is one and it can be."""
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    is_shared = all(types[axis] == AxisType.Auto for axis in BATCH)
    return (BATCH,) if is_shared and len(shape) > own and shape[0] % _replicas(mesh) == 0 else ()


def _if_even(mesh: AbstractMesh, axis: Cut, size: int) -> Cut:
    return axis if axis is not None and size % mesh.shape[axis] == 0 else None


def _replicas(mesh: jax.sharding.Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH)


def arranged(mesh: Mesh, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    """JAX's mesh of these axes, with neighbours in `model` near each other where the network has a shape.

    Where a TPU's devices are of several slices, which another network joins, each slice is a pod.
    """
    types = (AxisType.Auto,) * len(mesh.shape)
    return jax.sharding.Mesh(_grid(mesh, devices), tuple(mesh.shape), axis_types=types)


def _grid(mesh: Mesh, devices: Sequence[jax.Device]) -> np.ndarray:
    if len({getattr(device, "slice_index", 0) for device in devices}) == 1:
        shape = tuple(mesh.shape.values())
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, among = (1, mesh.data, mesh.model), (mesh.pod, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, among, devices, allow_split_physical_axes=True)

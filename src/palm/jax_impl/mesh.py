"""The devices of a mesh, and whether a model lies on one. Mirror: palm.torch_impl.mesh."""

from __future__ import annotations

from typing import Any

import jax

from palm.errors import BackendError
from palm.jax_impl.sharding import arranged, is_own
from palm.spec.mesh import Mesh


def device_mesh(mesh: Mesh) -> jax.sharding.Mesh:
    """JAX's mesh of these axes: of the first devices of one process, or of all devices of several.

    Raises `BackendError` for more devices than there are, or if several processes have more than it has.
    """
    devices, several = jax.devices(), jax.process_count() > 1
    if len(devices) < mesh.size or (several and len(devices) > mesh.size):
        raise BackendError(
            f"mesh must be of {'all' if several else 'at most the'} {len(devices)} devices that jax has; got "
            f"mesh={mesh}, which is {mesh.size}. Change the mesh, or start more or fewer processes with "
            "jax.distributed.initialize."
        )
    return arranged(mesh, devices[: mesh.size])


def mesh_of_model(model: Any) -> Mesh:
    """The mesh that a model's weights lie on; `Mesh()` for one device, or a mesh that palm did not make."""
    mesh = jax.typeof(model.embedding.weight).sharding.mesh
    return Mesh(**mesh.shape) if is_own(mesh) else Mesh()


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return bool(jax.process_index() == 0)

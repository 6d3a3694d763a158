"""The mesh of processes that one model's weights are shared out to. Mirror: palm.jax_impl.mesh.

`torchrun` starts the processes, and each computes on a device of its own.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from palm.errors import BackendError
from palm.spec.mesh import Mesh
from palm.torch_impl.model import PaLM
from palm.torch_impl.pieces import is_placed, mesh_of_processes
from palm.torch_impl.processes import TIMEOUT, agreed, is_joined, join, share, together, wait
from palm.tracing.turns import interruptibly


@together()
def device_mesh(mesh: Mesh) -> Any:
    """A `DeviceMesh` of the axes pod, data and model over the processes that torchrun started.

    It joins these processes, unless that is done. A mesh of size 1 is torch's default device and needs no
    torchrun. Raises `BackendError` unless there are exactly `mesh.size` processes, all of them alive.
    """
    found = dist.get_world_size() if is_joined() else int(os.environ.get("WORLD_SIZE", "1"))
    if found != mesh.size:
        raise BackendError(
            f"mesh must have as many devices as there are processes; got mesh={mesh} of {mesh.size} for "
            f"{found}. Start {mesh.size}: torchrun --nproc-per-node {mesh.size} …, or change the mesh."
        )
    if mesh.size == 1:
        return torch.get_default_device()
    join()
    first = share(str(mesh).encode()).decode()
    if agreed(first != str(mesh)):  # or they would wait for each other, in groups that others do not know
        raise BackendError(
            f"mesh must be the same in all processes; got mesh={mesh} here, and {first} in the first "
            "one. Start all of them with the same command."
        )
    kind, names = "cuda" if "nccl" in dist.get_backend_config() else "cpu", tuple(mesh.shape)
    grid = torch.arange(mesh.size).view(*mesh.shape.values())
    groups = [_group_along(grid, dimension) for dimension in range(grid.ndim)]
    wait()  # one that has its own groups may end, and with it the store that others still need for theirs
    return dist.device_mesh.DeviceMesh.from_group(groups, kind, grid, mesh_dim_names=names)


def mesh_of_model(model: PaLM) -> Mesh:
    """The mesh that the model's weights lie on; `Mesh()` for one device."""
    weight = model.embedding.weight
    return mesh_of_processes(weight.device_mesh) if is_placed(weight) else Mesh()


def is_first() -> bool:
    """Whether this process prints and writes: the first of a mesh, or one without others."""
    return not is_joined() or dist.get_rank() == 0


def _group_along(grid: Tensor, dimension: int) -> Any:
    """This process and those that differ from it along one dimension. Only init_process_group's own group
    would have its timeout otherwise."""
    [line] = [line for line in grid.movedim(dimension, -1).flatten(0, -2) if dist.get_rank() in line]
    make = partial(dist.new_group, line.tolist(), timeout=TIMEOUT, use_local_synchronization=True)
    return interruptibly(make)

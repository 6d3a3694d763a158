"""The mesh of processes that one model's weights are shared out to. Mirror: palm.jax_impl.mesh.

`torchrun` starts the processes, and each computes on a device of its own.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from palm.errors import BackendError
from palm.spec.mesh import Mesh
from palm.torch_impl.model import PaLM
from palm.torch_impl.pieces import is_placed, mesh_of_processes

# A process that waits for another one so long takes it for lost: a batch takes seconds, a checkpoint minutes.
TIMEOUT = timedelta(minutes=10)


def device_mesh(mesh: Mesh) -> Any:
    """A `DeviceMesh` of the axes pod, data and model over the processes that torchrun started.

    torch.distributed is initialised, if it is not, from torchrun's environment: with NCCL where there are
    GPUs, a GPU a process by LOCAL_RANK, otherwise with Gloo. A mesh of size 1 is torch's default device and
    needs no torchrun. Raises `BackendError` unless there are exactly `mesh.size` processes.
    """
    found = dist.get_world_size() if _begun() else int(os.environ.get("WORLD_SIZE", "1"))
    if found != mesh.size:
        raise BackendError(
            f"mesh must have as many devices as there are processes; got mesh={mesh} of {mesh.size} for "
            f"{found}. Start {mesh.size}: torchrun --nproc-per-node {mesh.size} …, or change the mesh."
        )
    if mesh.size == 1:
        return torch.get_default_device()
    kind, names = _begin(), tuple(mesh.shape)
    grid = torch.arange(mesh.size).view(*mesh.shape.values())
    groups = [_group_along(grid, dimension) for dimension in range(grid.ndim)]
    return dist.device_mesh.DeviceMesh.from_group(groups, kind, grid, mesh_dim_names=names)


def mesh_of_model(model: PaLM) -> Mesh:
    """The mesh that the model's weights lie on; `Mesh()` for one device."""
    weight = model.embedding.weight
    return mesh_of_processes(weight.device_mesh) if is_placed(weight) else Mesh()


def is_first() -> bool:
    """Whether this process prints and writes: the first of a mesh, or one without others."""
    return not _begun() or dist.get_rank() == 0


def _begun() -> bool:
    return dist.is_available() and dist.is_initialized()


def _group_along(grid: Tensor, dimension: int) -> Any:
    """This process and those that differ from it along one dimension. Only init_process_group's own group
    would have its timeout otherwise."""
    [line] = [line for line in grid.movedim(dimension, -1).flatten(0, -2) if dist.get_rank() in line]
    return dist.new_group(line.tolist(), timeout=TIMEOUT, use_local_synchronization=True)


def _begin() -> str:
    """Initialise torch.distributed unless it is; the kind of device that each process has."""
    if _begun():
        return "cuda" if "nccl" in dist.get_backend_config() else "cpu"
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    except ValueError as error:
        raise BackendError(
            f"a mesh must have the environment that torchrun sets; got {error}. Start the processes with it."
        ) from None
    return kind

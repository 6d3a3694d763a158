"""Weights that lie on a mesh of processes: each has its piece of a DTensor, cut as `palm.spec.mesh` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from palm.config import PaLMConfig
from palm.spec.mesh import Cut, Mesh, MeshAxis, cuts
from palm.torch_impl.processes import together

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def is_mesh(device: object) -> TypeGuard[DeviceMesh]:
    """Whether `device` is a mesh that `palm.torch_impl.device_mesh` made."""
    names = getattr(device, "mesh_dim_names", None)
    return names is not None and tuple(names) == tuple(Mesh().shape)


def is_placed(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor lies on such a mesh."""
    return is_mesh(getattr(tensor, "device_mesh", None))


def mesh_of_processes(mesh: DeviceMesh) -> Mesh:
    """The sizes of a mesh of processes."""
    return Mesh(*mesh.shape)


def own_device(mesh: DeviceMesh) -> torch.device:
    """The device of this process."""
    if mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(mesh.device_type)


def stored_cuts(model: nn.Module, config: PaLMConfig, mesh: DeviceMesh) -> dict[str, tuple[Cut, ...]]:
    """For each parameter of the table, how this wing's tensor of it is cut."""
    return {
        name: cut[::-1] if isinstance(model.get_submodule(name), nn.Linear) else cut
        for name, cut in cuts(config, mesh_of_processes(mesh)).items()
    }


def own_part(cut: tuple[Cut, ...], shape: tuple[int, ...], mesh: DeviceMesh | None) -> tuple[slice, ...]:
    """Which part of a tensor of that shape this process has; all of it, if there is no mesh."""
    found = []
    for axis, size in zip(cut, shape, strict=True):
        if axis is None or mesh is None:
            found.append(slice(0, size))
        else:
            count, rank = size // mesh.size(_number(axis)), mesh.get_local_rank(axis)
            found.append(slice(rank * count, (rank + 1) * count))
    return tuple(found)


def is_owner(cut: tuple[Cut, ...], mesh: DeviceMesh | None) -> bool:
    """Whether this process is the first of those that have the same part of a tensor."""
    return mesh is None or not any(
        mesh.get_local_rank(axis) for axis in mesh.mesh_dim_names or () if axis not in cut
    )


def placed(piece: Tensor, cut: tuple[Cut, ...], mesh: DeviceMesh) -> Tensor:
    """The tensor of which each process has such a piece."""
    from torch.distributed.tensor import DTensor, Replicate, Shard  # noqa: PLC0415 - a second, for meshes only

    names = mesh.mesh_dim_names or ()
    placements = [Shard(cut.index(axis)) if axis in cut else Replicate() for axis in names]
    return DTensor.from_local(piece, mesh, placements, run_check=False)


@together()
def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, for which all processes must call this; itself, if it does not lie on a mesh."""
    return tensor.full_tensor() if is_placed(tensor) else tensor


def summed(x: Tensor, mesh: DeviceMesh, axis: MeshAxis) -> Tensor:
    """The sum over the processes along an axis of the mesh, in the place of x."""
    if mesh.size(_number(axis)) > 1:
        dist.all_reduce(x, group=mesh.get_group(axis))
    return x


def _number(axis: MeshAxis) -> int:
    return list(Mesh().shape).index(axis)

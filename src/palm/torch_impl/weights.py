"""Between the torch wing's modules and the canonical parameter table.

A parameter `name` of the table is `name.weight` in the state_dict; nn.Linear stores the transpose.
Mirror: palm.jax_impl.weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palm.config import DType, PaLMConfig
from palm.errors import BackendError
from palm.spec.boxes import Piece, Sliceable, box_of, read_into
from palm.spec.mesh import Mesh, cuts
from palm.spec.parameters import DTYPES, Parameter, dtype_name, parameters
from palm.spec.sizes import check_model
from palm.torch_impl.attention import choose_path
from palm.torch_impl.model import PaLM
from palm.torch_impl.pieces import (
    is_mesh,
    is_owner,
    is_placed,
    mesh_of_processes,
    own_device,
    own_part,
    placed,
    stored_cuts,
    whole,
)
from palm.torch_impl.wrapped import settled, weight_dtypes
from palm.tracing.turns import shared


@torch.inference_mode(False)  # or autograd would refuse the weights for ever
def from_arrays(
    config: PaLMConfig,
    fetch: Callable[[Parameter], Sliceable],
    *,
    dtype: DType,
    device: Any,
    attention: str,
) -> PaLM:
    """A model of the weights that `fetch` gives, in `dtype`, for each row of the table, one at a time.

    On the device "meta", also by `with torch.device("meta")`, it is only allocated and no weight is fetched.
    On a mesh of processes, what `device_mesh` gives, each takes its pieces of the weights alone.
    """
    mesh = device if is_mesh(device) else None
    target = find_device(device) if mesh is None else own_device(mesh)
    path = choose_path(attention, config, target)
    if target.type == "cpu" and mesh is None:
        check_model(config, dtype)
    model = PaLM(config, attention=path, device="meta", dtype=getattr(torch, dtype))
    if target.type == "meta":
        return model
    canonical_cuts = cuts(config, Mesh() if mesh is None else mesh_of_processes(mesh))
    ways = {} if mesh is None else stored_cuts(model, config, mesh)
    state = {}
    for name, parameter in parameters(config).items():
        part, is_turned = own_part(canonical_cuts[name], parameter.shape, mesh), is_linear(model, name)
        if mesh is None:
            array = fetch(parameter)[part]
            state[f"{name}.weight"] = to_tensor(array.T if is_turned else array).to(target).contiguous()
        else:  # room of its own, so that a whole one can go
            shape = box_of(part, parameter.shape).shape
            piece = np.empty(shape[::-1] if is_turned else shape, DTYPES[dtype])
            read_into(piece.T if is_turned else piece, fetch(parameter), part)
            state[f"{name}.weight"] = placed(to_tensor(piece).to(target), ways[name], mesh)
    model.load_state_dict(state, assign=True)
    return model


@shared()
def to_arrays(model: PaLM, *, copied: bool = True) -> dict[str, np.ndarray]:
    """The model's weights under their canonical names; not `copied`, for a reader who lets them be.

    Raises what `settled` raises.
    """
    model = settled(model)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return canonical(model, state, copied=copied)


def canonical(model: PaLM, state: dict[str, Tensor], *, copied: bool = True) -> dict[str, np.ndarray]:
    """Tensors that belong to `model.named_parameters()`, as arrays in the canonical layout, or seen so.

    Of a model on a mesh all processes must call this, and each has the whole arrays, one after the other.
    """
    arrays = {}
    for name in parameters(model.config):
        tensor = whole(state[f"{name}.weight"].detach())
        is_turned = is_linear(model, name)
        if copied:  # torch turns a matrix over several times as fast as NumPy
            tensor = (tensor.T if is_turned else tensor).clone(memory_format=torch.contiguous_format)
        array = to_array(tensor)
        arrays[name] = array.T if is_turned and not copied else array
    return arrays


@shared()
def pieces(model: PaLM) -> Iterator[Piece]:
    """The pieces of the model's weights that this process owns, in the canonical layout, seen where they are.

    All processes of a mesh together own each weight once. Raises what `settled` raises.
    """
    model = settled(model)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return owned(model, state)


def owned(model: PaLM, state: dict[str, Tensor]) -> Iterator[Piece]:
    """The pieces that this process owns of tensors that belong to `model.named_parameters()`."""
    place = getattr(model.embedding.weight, "device_mesh", None)
    mesh = place if is_mesh(place) else None
    ways = cuts(model.config, Mesh() if mesh is None else mesh_of_processes(mesh))
    for name, parameter in parameters(model.config).items():
        if not is_owner(ways[name], mesh):
            continue
        tensor = state[f"{name}.weight"].detach()
        array = to_array(tensor.to_local() if is_placed(tensor) else tensor)
        start = tuple(part.start for part in own_part(ways[name], parameter.shape, mesh))
        yield Piece(name, start, array.T if is_linear(model, name) else array)


@shared()
def dtype_of(model: PaLM) -> DType:
    """The name of the dtype of the model's weights. Raises `ConfigError` for several, or one palm lacks."""
    return dtype_name(*weight_dtypes(model))


def find_device(device: torch.device | str | None) -> torch.device:
    """The device a user means: "cpu", "cuda", "cuda:1", …, also by JAX's name "gpu"; None: torch's default.

    Raises `BackendError` if it does not exist here.
    """
    named = device.replace("gpu", "cuda") if isinstance(device, str) else device
    try:
        found = torch.get_default_device() if named is None else torch.device(named)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise BackendError(
            f"device must be available to torch; got device={device!r}: {reason}. "
            'Use "cpu", or a device that is here.'
        ) from None
    return found


def gathered(model: PaLM) -> PaLM:
    """A model of whole weights in each process, for which all must call this; itself, if it is one."""
    if not is_placed(model.embedding.weight):
        return model
    plain = PaLM(model.config, attention=model.path, device="meta")
    state = {name: whole(weight.detach()) for name, weight in model.named_parameters()}
    plain.load_state_dict(state, assign=True)
    return plain


def is_on_host(device: Any) -> bool:
    """Whether a model on that device is in this machine's memory. Raises `BackendError` as `find_device`."""
    return (own_device(device) if is_mesh(device) else find_device(device)).type == "cpu"


def is_linear(model: PaLM, name: str) -> bool:
    """Whether the parameter belongs to an nn.Linear, and so is stored transposed."""
    return isinstance(model.get_submodule(name), nn.Linear)


def to_tensor(array: np.ndarray) -> Tensor:
    """The same bits as a tensor; torch does not know NumPy's bfloat16, so those travel as int16."""
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> np.ndarray:
    """The same bits as an array."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()

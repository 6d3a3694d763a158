"""What a gradient is if the processes of a mesh do not put their parts together, or do so once too often."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from palm.errors import ConfigError
from palm.parity.recording.recording import Recording
from palm.spec import backward
from palm.spec.forward import run
from palm.spec.mesh import BATCH, Mesh, mesh_of, ways
from palm.spec.parameters import checked_weights

# Cause, detail, value, fix.
Known = tuple[str, str, np.ndarray, str]
_PARTIAL = (
    "Each process has some of the query heads and all of keys and values: sum the gradient of these over the "
    "processes along model, before it flows on."
)
_UNSUMMED = "Sum the gradient over the processes along {0}, as those of the other weights are."
_TWICE = "Sum the gradient over the processes along {0} once: what is the same in all of them needs no sum."


def of_processes(side: Recording, name: str, right: np.ndarray) -> Iterator[Known]:
    """What the gradient `name` of a side on a mesh may be instead of `right`; nothing off a mesh."""
    mesh = _mesh(side)
    kind = name.rpartition("attention.")[2]
    if kind in ("key", "value", "key_value") and ways(side.config, mesh, "heads") > 1:
        for rank, value in enumerate(_of_heads(side, int(name.split(".")[1]), kind, mesh)):
            detail = f"the gradient is that of the query heads of process {rank} along model alone"
            yield "k/v gradients partial", detail, value, _PARTIAL
        mean = "the gradient is the mean over the processes along model, each with its own heads, not the sum"
        yield "k/v gradients partial", mean, right / mesh.model, _PARTIAL
    for replica, value in enumerate(_of_rows(side, name, mesh)):
        axis = " and ".join(a for a in BATCH if mesh.shape[a] > 1)
        detail = f"the gradient is that of part {replica} of the batch alone"
        yield "gradient not summed", detail, value, _UNSUMMED.format(axis)
    for axis, size in mesh.shape.items():
        if size > 1:
            detail = (
                f"the gradient is {size}× its correct value, as often as there are processes along {axis}"
            )
            yield "gradient summed twice", detail, size * right, _TWICE.format(axis)


def _mesh(side: Recording) -> Mesh:
    try:
        return mesh_of(side.environment.get("mesh"))
    except ConfigError:  # a bundle may say anything
        return Mesh()


def _of_rows(side: Recording, name: str, mesh: Mesh) -> Iterator[np.ndarray]:
    rows = side.tokens.reshape(-1, side.tokens.shape[-1])
    if mesh.replicas == 1 or len(rows) % mesh.replicas:
        return
    for part in np.split(rows, mesh.replicas):
        _, grads = backward.value_and_grad(side.config, side.weights, part)
        yield grads[name] / mesh.replicas


def _of_heads(side: Recording, block: int, kind: str, mesh: Mesh) -> Iterator[np.ndarray]:
    """Of a block's keys or values, the gradient that comes through the heads of each process."""
    config, weights = side.config, checked_weights(side.config, side.weights)
    rows = side.tokens.reshape(-1, side.tokens.shape[-1])
    d_outs: dict[str, np.ndarray] = {}

    def keep(name: str, d_out: np.ndarray) -> np.ndarray:
        d_outs[name] = d_out
        return d_out

    backward.value_and_grad(config, weights, rows, tap=keep)
    taps = run(config, weights, rows)
    own_taps, own_weights = backward.block_arrays(taps, block), backward.block_arrays(weights, block)
    width = math.prod((config.heads // mesh.model, config.dim_head))
    for rank in range(mesh.model):
        heads = np.zeros((config.inner_dim, 1))
        heads[rank * width : (rank + 1) * width] = 1  # the others' outputs lead to no loss
        seen = {**own_weights, "attention.out": own_weights["attention.out"] * heads}
        _, grads = backward.attention(d_outs[f"blocks.{block}.out"], own_taps["norm"], own_taps, seen, config)
        yield grads[f"attention.{kind}"]

"""What the JAX wing computes on meshes of virtual devices, beside one device: figures as JSON.

    python tests/jax_impl/mesh_cells.py '[{"what": "training", "mesh": "data=4"}]' [PROCESS PORT]

JAX must be told how many devices a CPU has before it starts, so this has a process of its own; with a number
and a port it is one of two, which have two devices each.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from peaks import CONFIG, peaks
from started import started

import palm
from palm import jax_impl
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.progress import load_progress
from palm.checkpoint.team import save_pieces, team_of
from palm.data.windows import Corpus, batch_of, open_corpus
from palm.jax_impl import attention, loss, train, weights
from palm.spec.mesh import Mesh, mesh_of
from palm.spec.rounding import rms, rounding_bound, rounding_ratio

SIZES = {"num_tokens": 24, "dim": 8, "depth": 2, "heads": 4, "dim_head": 4, "ff_mult": 2}
RECIPE = {"batch": 8, "length": 8, "steps": 5, "precision": "float64", "warmup": 1}
STEPS = 5
READ = Corpus.read


def config_of(cell: dict[str, Any]) -> palm.PaLMConfig:
    return palm.PaLMConfig(**{**SIZES, **cell.get("config", {})}).resolve("torch")


def recipe_of(cell: dict[str, Any]) -> palm.Recipe:
    return palm.Recipe(**{**RECIPE, **cell.get("recipe", {})})


def model_of(config: palm.PaLMConfig, mesh: Mesh | None, dtype: str = "float64") -> Any:
    """The same weights on one device or on a mesh, float32's own values in every dtype."""
    arrays = initial(config)
    device = jax.local_devices()[0] if mesh is None else jax_impl.device_mesh(mesh)

    def fetch(parameter: Any) -> np.ndarray:
        return arrays[parameter.name].astype(dtype)

    return jax_impl.from_arrays(config, fetch, dtype=dtype, device=device, attention="blockwise")


@cache
def initial(config: palm.PaLMConfig) -> dict[str, np.ndarray]:
    return palm.to_numpy(palm.build(config, backend="jax", device=jax.local_devices()[0]))


@contextmanager
def compilations() -> Iterator[list[str]]:
    """What is compiled within the block."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("jax._src.dispatch")
    log.addHandler(handler)
    log.propagate = False
    with jax.log_compiles(True):
        yield found
    log.removeHandler(handler)
    found[:] = [line for line in found if "Finished XLA compilation" in line]


def faults(name: str | None) -> ExitStack:
    """A fault that a mesh invites: what the test that is told of it must notice."""
    stack = ExitStack()
    path, own_rows, losses = attention.ATTENTION["blockwise"], train.own_rows, loss._losses
    slopes = jax_impl.alibi_slopes(config_of({}), dtype=np.dtype("float64"))

    def with_the_first_slopes(q: Any, k: Any, v: Any, own: Any, segments: Any) -> Any:
        return path(q, k, v, slopes[: len(own)], segments)

    def the_same_rows(rows: np.ndarray, micros: int, weight: Any) -> Any:
        half = rows.reshape(micros, 2, -1, rows.shape[-1])[:, :1]
        return own_rows(half.repeat(2, 1).reshape(rows.shape), micros, weight)

    if name == "slopes":
        stack.enter_context(patch.dict(attention.ATTENTION, blockwise=with_the_first_slopes))
    if name == "rows":
        stack.enter_context(patch.object(train, "own_rows", the_same_rows))
    if name == "padding":
        stack.enter_context(
            patch.object(loss, "_losses", lambda x, t, _, masked: losses(x, t, x.shape[-1], masked))
        )
    if name == "placement":
        stack.enter_context(patch.object(weights, "spec_of", lambda *_: jax.P()))
    return stack


def run(cell: dict[str, Any], mesh: Mesh | None, **changes: Any) -> dict[str, Any]:
    """A few steps of a training."""
    config, recipe = config_of(cell), dataclasses.replace(recipe_of(cell), **changes)
    dtype = "float64" if recipe.precision == "float64" else "float32"
    trainer = jax_impl.Trainer(model_of(config, mesh, dtype), recipe)
    shape, rng = (STEPS, recipe.batch, recipe.length + 1), np.random.default_rng(0)
    batches, outcomes, compiled = rng.integers(0, config.num_tokens, shape), [], []
    for step in range(1, cell.get("steps", STEPS) + 1):
        with compilations() as found:
            outcomes.append(trainer.step(batches[step - 1], recipe.rates(step))[:2])
        compiled.append(len(found))
    return {
        "outcomes": np.array(outcomes),
        "validation": trainer.evaluate(batches[0][:3]),
        "weights": jax_impl.to_arrays(trainer.model),
        "moments": trainer.moments(),
        "compiled": compiled,
        "trainer": trainer,
    }


@cache
def alone(cell: str) -> dict[str, Any]:
    return run(json.loads(cell), None)


def training(cell: dict[str, Any]) -> dict[str, Any]:
    """How far a training on a mesh is from that on one device, and what it holds."""
    with patch.object(loss, "MOST_LOGITS", cell.get("most", loss.MOST_LOGITS)):
        same = {name: value for name, value in cell.items() if name not in ("mesh", "fault")}
        one = alone(json.dumps(same))
        with faults(cell.get("fault")):
            jax.clear_caches()
            many = run(cell, mesh_of(cell["mesh"]))
    return {
        "outcomes": float(np.abs(many["outcomes"] - one["outcomes"]).max()),
        "validation": abs(many["validation"] - one["validation"]),
        "weights": apart(many["weights"], one["weights"]),
        "moments": apart(many["moments"], one["moments"]),
        "compiled": many["compiled"],
        "share": share_of(many["trainer"]),
    }


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max() / (np.abs(b[name]).max() or 1.0)) for name in b)


def share_of(trainer: Any) -> float:
    """The largest part of weights and moments that any device of this process holds."""
    leaves = jax.tree.leaves(trainer._state)
    held = [
        sum(
            shard.data.nbytes
            for leaf in leaves
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        for device in jax.local_devices()
    ]
    return max(held) / sum(leaf.nbytes for leaf in leaves)


def rounding(cell: dict[str, Any]) -> dict[str, Any]:
    """Gradients of one step in a narrow precision: palm's ratio, and the error as a part of palm's bound."""
    config, mesh, precision = config_of(cell), mesh_of(cell["mesh"]), cell["precision"]
    short = {**cell, "steps": 1, "recipe": {"clip": 0.0, "beta2": 0.0, **cell.get("recipe", {})}}

    def gradients(mesh: Mesh | None, precision: str) -> dict[str, np.ndarray]:
        moments = run(short, mesh, precision=precision)["moments"]
        return {n: x.astype(np.float64) for n, x in moments.items() if n.startswith("first.")}

    a, exact_a = gradients(None, precision), gradients(None, "float64")
    with faults(cell.get("fault")):
        b, exact_b = gradients(mesh, precision), gradients(mesh, "float64")
    bound = rounding_bound(
        config, precision, RECIPE["batch"] * RECIPE["length"] + config.num_tokens, config.depth
    )
    return {
        "ratio": max(
            rounding_ratio(rms(a[n] - b[n]), rms(a[n] - exact_a[n]), rms(b[n] - exact_b[n])) for n in a
        ),
        "of bound": max(rms(b[n] - exact_b[n]) / rms(exact_b[n]) for n in a) / bound,
    }


def uses(cell: dict[str, Any]) -> dict[str, Any]:
    """What a user does with a model: on a mesh and on one device."""
    config, mesh = config_of(cell), mesh_of(cell["mesh"])
    one, many = model_of(config, None), model_of(config, mesh)
    ids = np.random.default_rng(0).integers(0, config.num_tokens, (4, 7))
    ask = {"max_new_tokens": 4, "top_k": 5, "seed": cell.get("seed", 3)}
    told = [[1, 2, 3], [4, 5], [6], [7, 8]]
    found: dict[str, Any] = {
        "mesh": str(jax_impl.mesh_of_model(many)),
        "of one": str(jax_impl.mesh_of_model(one)),
    }
    for rounded in (None, "int8"):
        a, b = (
            palm.generate(one, told, weights=rounded, **{**ask, "seed": 3}),
            palm.generate(many, told, weights=rounded, **ask),
        )
        found[f"generate {rounded}"] = [x.tokens.tolist() for x in a] == [x.tokens.tolist() for x in b]
    found["activations"] = apart(palm.activations(many, ids), palm.activations(one, ids))
    (value, of_many), (expected, of_one) = palm.value_and_grad(many, ids), palm.value_and_grad(one, ids)
    found["value_and_grad"] = max(abs(value - expected), apart(of_many, of_one))
    found["uneven"] = [refusal(read, many, ids[:3]) for read in (palm.activations, palm.value_and_grad)]
    found["one sequence"] = float(
        np.abs(jax_impl.sharding.fetched(many(ids[0])) - np.asarray(one(ids[0]))).max()
    )
    found["whole"] = apart(palm.to_numpy(many), palm.to_numpy(one))
    jax_impl.square_product(many, 16)()
    trainer = jax_impl.Trainer(many, recipe_of(cell))
    place, path = trainer.placement
    found["placement"] = [str(dict(place.shape)), path]
    if jax.process_count() == 1:
        found["vmap"] = float(
            np.abs(np.asarray(jax.vmap(many)(jax.numpy.asarray(ids))) - np.asarray(one(ids))).max()
        )
        found["one operation at a time"] = apart(
            jax_impl.activations(many, ids, compiled=False), palm.activations(one, ids)
        )
    return found


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        call(*arguments)
    except palm.PalmError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def begun(cell: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """A training on a mesh after two steps, and the batch of each."""
    config, recipe = config_of(cell), recipe_of(cell)
    batch = np.random.default_rng(0).integers(0, config.num_tokens, (recipe.batch, recipe.length + 1))
    trainer = jax_impl.Trainer(model_of(config, mesh_of(cell["mesh"])), recipe)
    for step in (1, 2):
        trainer.step(batch, recipe.rates(step))
    return trainer, batch


def resumed(cell: dict[str, Any]) -> dict[str, Any]:
    """A training that goes on from what another one left, and what that compiles."""
    config, recipe = config_of(cell), recipe_of(cell)
    trainer, batch = begun(cell)
    arrays, moments, (place, path) = jax_impl.to_arrays(trainer.model), trainer.moments(), trainer.placement
    again = jax_impl.from_arrays(
        config, lambda parameter: arrays[parameter.name], dtype="float64", device=place, attention=path
    )
    other = jax_impl.Trainer(again, recipe)
    other.set_moments(moments)
    with compilations() as found:
        outcome = other.step(batch, recipe.rates(3))
    return {"same": trainer.step(batch, recipe.rates(3)) == outcome, "compiled": len(found)}


def pieces(cell: dict[str, Any]) -> dict[str, Any]:
    """A training whose pieces all processes save, and which goes on from them on another mesh."""
    config, recipe = config_of(cell), recipe_of(cell)
    trainer, _ = begun(cell)
    state = {**jax_impl.to_arrays(trainer.model), **trainer.moments()}
    own, path = list(trainer.pieces()), Path(cell["folder"]) / cell["mesh"]
    fields = {"step": 2, "row": 16, "rewinds": 0, "spike": 0}
    save_pieces(config, own, path, team_of(jax_impl), fields=fields)
    _, whole, progress = load_progress(path)
    boxes, read = Boxes(path), []
    fill = boxes.read_into  # which `read` calls too
    boxes.read_into = lambda room, *at: read.append(room.shape) or fill(room, *at)  # type: ignore[method-assign]
    place = jax_impl.device_mesh(mesh_of(cell["then"]))
    options = {"dtype": "float64", "device": place, "attention": "blockwise"}
    model = jax_impl.from_arrays(config, lambda row: boxes.tensors[row.name], **options)
    again = jax_impl.Trainer(model, recipe)
    again.set_moments(boxes.tensors)
    found = {**jax_impl.to_arrays(again.model), **again.moments()}
    alone = model_of(config, None)
    return {
        "whole": same(whole | progress.moments, state),
        "again": same(found, state),
        "plain": same({p.name: p.array for p in jax_impl.pieces(alone)}, jax_impl.to_arrays(alone)),
        "owned": sum(piece.array.size for piece in own) / sum(array.size for array in state.values()),
        "read": sum(map(math.prod, read)) / sum(array.size for array in state.values()),
    }


def memory(cell: dict[str, Any]) -> dict[str, Any]:
    """The host memory of this process, and how much of the weights each of its devices has."""
    found = peaks("jax", cell["mesh"], Path(cell["folder"]))
    model = palm.build(CONFIG, backend="jax", mesh=cell["mesh"])
    held = dict.fromkeys(jax.local_devices(), 0)
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    return {**found, "held": [size / whole for size in held.values()]}


def rows(cell: dict[str, Any]) -> dict[str, Any]:
    """Which rows of a batch this process reads, and whether it learns the same from them as from all."""
    config, recipe = config_of(cell), recipe_of(cell)
    corpus = open_corpus(np.random.default_rng(0).integers(0, config.num_tokens, 200))
    batch = batch_of(corpus, seed=0, first=0, rows=recipe.batch, length=recipe.length)
    given, own = (jax_impl.Trainer(model_of(config, mesh_of(cell["mesh"])), recipe) for _ in range(2))
    expected, found = given.step(batch[:], recipe.rates(1)), list[int]()

    def read(corpus: Corpus, start: int, stop: int) -> np.ndarray:
        found.append(batch.starts.index(start))
        return READ(corpus, start, stop)

    with patch.object(Corpus, "read", read):
        return {"same": own.step(batch, recipe.rates(1)) == expected, "read": found}


def start(cell: dict[str, Any]) -> dict[str, Any]:
    """A training that starts from a checkpoint."""
    return started("jax", cell["mesh"], Path(cell["folder"]))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


WHAT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    function.__name__: function
    for function in (training, rounding, uses, resumed, pieces, memory, rows, start)
}


if __name__ == "__main__":
    cells, several = json.loads(sys.argv[1]), sys.argv[2:]
    jax.config.update("jax_num_cpu_devices", 2 if several else 4)
    jax.config.update("jax_enable_x64", True)
    if several:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{several[1]}", num_processes=2, process_id=int(several[0]))
    results = [WHAT[cell["what"]](cell) for cell in cells]
    print(json.dumps([{**result, "first": jax_impl.is_first()} for result in results]))

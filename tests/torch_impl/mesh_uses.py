"""One process of a mesh: what palm does with a model that lies on one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peaks import peaks
from started import started
from torch.distributed import fsdp

import palm
from palm import torch_impl
from palm.checkpoint.boxes import Boxes
from palm.checkpoint.progress import load_progress
from palm.checkpoint.team import save_pieces, team_of
from palm.data.windows import Corpus, batch_of, open_corpus
from palm.spec.initial import initial_value
from palm.spec.mesh import Mesh, mesh_of
from palm.torch_impl import Norm, Trainer, device_mesh, from_arrays, is_first, mesh_of_model, sharded
from palm.torch_impl.cut import CutBlock

FORWARD, POLICY, NORM, SUMMED = CutBlock.forward, fsdp.MixedPrecisionPolicy, Norm.forward, sharded.summed
READ = Corpus.read
EVEN = {"num_tokens": 16, "dim": 8, "depth": 2, "heads": 4, "dim_head": 4, "ff_mult": 2}
CONFIG = palm.PaLMConfig(**EVEN).resolve("torch")
RECIPE = palm.recipe("adamw", precision="float64", batch=4, length=6, steps=9, warmup=2)
WINDOWS = np.random.default_rng(0).integers(0, 16, (9, 4, 7))


def build(device: Any) -> Any:
    return from_arrays(
        CONFIG,
        lambda parameter: initial_value(parameter, 0, "float64"),
        dtype="float64",
        device=device,
        attention="textbook",
    )


def learn(trainer: Any, steps: range, recipe: palm.Recipe = RECIPE) -> Any:
    for step in steps:
        outcome = trainer.step(WINDOWS[step - 1], recipe.rates(step))
    return outcome


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def close(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """To rounding, which differs: the processes of a mesh add in another order."""
    return not same(a, b) and all(
        np.abs(a[name] - x).max() <= 1e-13 * (1 + np.abs(x).max()) for name, x in b.items()
    )


def what_is_gathered_is_what_one_device_has() -> dict[str, bool]:
    alone, model = build("cpu"), build(device_mesh(mesh_of("data=2,model=2")))
    tokens = WINDOWS[0]
    converted = palm.convert(model, backend="torch")
    return {
        "arrays": same(palm.to_numpy(model), palm.to_numpy(alone)),
        "tokens": palm.generate(model, [1, 2], max_new_tokens=9)
        == palm.generate(alone, [1, 2], max_new_tokens=9),
        "taps": close(palm.activations(model, tokens), palm.activations(alone, tokens)),
        "gradient": close(palm.value_and_grad(model, tokens)[1], palm.value_and_grad(alone, tokens)[1]),
        "convert": mesh_of_model(converted) == Mesh()
        and same(palm.to_numpy(converted), palm.to_numpy(alone)),
    }


def a_trainer_goes_on_where_another_one_stopped() -> dict[str, bool]:
    unbroken = Trainer(build(device_mesh(mesh_of("data=2,model=2"))), RECIPE)
    learn(unbroken, range(1, 6))
    first = Trainer(build(device_mesh(mesh_of("data=2,model=2"))), RECIPE)
    learn(first, range(1, 4))
    place, attention = first.placement
    arrays, moments = palm.to_numpy(first.model), first.moments()
    model = palm.from_numpy(CONFIG, arrays, backend="torch", device=place, attention=attention)
    second = Trainer(model, RECIPE)
    second.set_moments(moments)
    learn(second, range(4, 6))
    return {
        "mesh": mesh_of_model(model) == mesh_of("data=2,model=2"),
        "weights": same(palm.to_numpy(model), palm.to_numpy(unbroken.model)),
        "moments": same(second.moments(), unbroken.moments()),
    }


def each_saves_and_reads_its_own_pieces() -> dict[str, Any]:
    trainer = Trainer(build(device_mesh(mesh_of("data=2,model=2"))), RECIPE)
    learn(trainer, range(1, 4))
    weights, moments = palm.to_numpy(trainer.model), trainer.moments()
    path = Path(torch_impl.share(tempfile.mkdtemp().encode() if is_first() else b"").decode()) / "model"
    own = list(trainer.pieces())
    fields = {"step": 3, "row": 12, "rewinds": 0, "spike": 0}
    save_pieces(CONFIG, own, path, team_of(torch_impl), fields=fields)
    _, whole, progress = load_progress(path)
    boxes = Boxes(path)
    read = []
    fill = boxes.read_into  # which `read` calls too
    boxes.read_into = lambda room, *at: read.append(room.shape) or fill(room, *at)  # type: ignore[method-assign]
    place = device_mesh(mesh_of("data=4"))
    options = {"dtype": "float64", "device": place, "attention": "textbook"}
    again = Trainer(from_arrays(CONFIG, lambda row: boxes.tensors[row.name], **options), RECIPE)
    again.set_moments(boxes.tensors)
    numbers = sum(map(math.prod, read)), sum(piece.array.size for piece in own)
    told: list[Any] = [None] * 4
    torch.distributed.all_gather_object(told, numbers)
    result = {
        "weights": same(whole, weights),
        "moments": same(progress.moments, moments),
        "again": same(palm.to_numpy(again.model), weights) and same(again.moments(), moments),
        "plain": same(arrays_of_pieces(build("cpu")), palm.to_numpy(build("cpu"))),
        "read": [count for count, _ in told],
        "owned": [count for _, count in told],
        "all": sum(array.size for array in (*weights.values(), *moments.values())),
    }
    return result | saved_and_loaded(path.parent)


def saved_and_loaded(folder: Path) -> dict[str, bool]:
    model, path = build(device_mesh(mesh_of("data=2,model=2"))), folder / "by palm.save"
    palm.save(model, path)
    loaded = palm.load(path, backend="torch", mesh="data=4")
    narrow = palm.load(path, backend="torch", mesh="model=4", dtype="bfloat16")
    version = json.loads((path / "manifest.json").read_text())["version"]
    refused = []
    model.norm.register_forward_hook(lambda *_: None)
    for wrong in (
        lambda: palm.save(model, folder / "hooked"),
        lambda: palm.load(path, backend="torch", mesh="data=4", attention="fast"),
    ):
        try:
            wrong()
        except palm.PalmError as error:
            refused.append(type(error).__name__)
    model.norm._forward_hooks.clear()
    expected = palm.to_numpy(model)
    again = palm.to_numpy(narrow)
    torch_impl.wait()
    if is_first():
        shutil.rmtree(folder)
    return {
        "refused": refused == ["BackendError", "ConfigError"] and not (folder / "hooked").exists(),
        "loaded": version == 3 and same(palm.to_numpy(loaded), expected),
        "narrow": same(again, {name: a.astype(again["norm"].dtype) for name, a in expected.items()})
        and palm.dtype_of(narrow) == "bfloat16",
    }


def arrays_of_pieces(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model on one device, each of which is one piece."""
    return {piece.name: piece.array for piece in torch_impl.pieces(model)}


def a_number_of_one_process_stops_all() -> list[Any]:
    """Only one process has the piece with the NaN; all must see it and leave everything as it was."""
    trainer = Trainer(build(device_mesh(mesh_of("data=2,model=2"))), RECIPE)
    learn(trainer, range(1, 3))
    with torch.no_grad():
        weight = trainer.model.get_parameter("blocks.1.feedforward.down.weight").to_local()
        if os.environ["RANK"] == "2":
            weight[0, 0] = torch.nan
    before = {**palm.to_numpy(trainer.model), **trainer.moments()}
    outcome = learn(trainer, range(3, 4))
    after = {**palm.to_numpy(trainer.model), **trainer.moments()}
    unchanged = all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    told: list[Any] = [None] * 4
    torch.distributed.all_gather_object(told, [outcome.is_finite, len(outcome.bad), unchanged])
    return told


def only_the_first_is_first() -> list[Any]:
    device_mesh(mesh_of("data=4"))
    told: list[Any] = [None] * 4
    torch.distributed.all_gather_object(told, is_first())
    return told


def copies_stay_alike() -> list[bool]:
    """Each process rounds in its own way: are its copies those of the others, with and without their mean?"""

    def rounded(norm: Norm, x: torch.Tensor) -> torch.Tensor:
        return NORM(norm, x + 1e-6 * int(os.environ["RANK"]) * x.sin())

    def left(x: torch.Tensor, mesh: Any, axis: Any) -> torch.Tensor:
        return x * 2 if axis == "model" else SUMMED(x, mesh, axis)

    alike = []
    for summed in (SUMMED, left):
        with patch.object(Norm, "forward", rounded), patch.object(sharded, "summed", summed):
            trainer = Trainer(build(device_mesh(mesh_of("model=4"))), RECIPE)
            learn(trainer, range(1, 3))
        scale = trainer.model.get_parameter("blocks.0.norm.weight").to_local()
        told: list[Any] = [None] * 4
        torch.distributed.all_gather_object(told, scale.tolist())
        alike.append(told == [told[0]] * 4)
    return alike


def each_reads_its_own_rows() -> dict[str, Any]:
    """In micro-batches, on a mesh on which two processes learn from the same rows."""
    recipe, place = dataclasses.replace(RECIPE, accumulate=2), device_mesh(mesh_of("data=2,model=2"))
    batch = batch_of(open_corpus(WINDOWS.ravel()), seed=0, first=0, rows=4, length=6)
    given, own = Trainer(build(place), recipe), Trainer(build(place), recipe)
    expected, found = given.step(batch[:], recipe.rates(1)), list[int]()

    def read(corpus: Corpus, start: int, stop: int) -> np.ndarray:
        found.append(batch.starts.index(start))
        return READ(corpus, start, stop)

    with patch.object(Corpus, "read", read):
        outcome = own.step(batch, recipe.rates(1))
    told: list[Any] = [None] * 4
    torch.distributed.all_gather_object(told, found)
    return {"same": outcome == expected, "read": told}


def what_stays_wide() -> list[dict[str, list[str]]]:
    """The dtypes of what blocks compute with in bfloat16; then if FSDP casts inputs as it does by itself."""
    config = dataclasses.replace(CONFIG, positions="rotary")
    recipe = dataclasses.replace(RECIPE, precision="bfloat16")
    found = []
    for casts in (False, True):
        seen: dict[str, set[str]] = {"norms": set(), "rotation": set(), "matrices": set(), "x": set()}

        def watched(self: Any, x: Any, rotation: Any, *rest: Any, seen: Any = seen) -> Any:
            for name, tensor in {
                "norms": self.norm.weight,
                "rotation": rotation[0][0],
                "matrices": self.feedforward.up.weight,
                "x": x,
            }.items():
                seen[name].add(str(tensor.dtype))
            return FORWARD(self, x, rotation, *rest)

        def policy(casts: bool = casts, **options: Any) -> Any:
            return POLICY(**{**options, "cast_forward_inputs": casts})

        with patch.object(CutBlock, "forward", watched), patch.object(fsdp, "MixedPrecisionPolicy", policy):
            mesh = device_mesh(mesh_of("data=2,model=2"))
            model = palm.build(config, backend="torch", device=mesh)
            learn(Trainer(model, recipe), range(1, 3), recipe)
        found.append({name: sorted(dtypes) for name, dtypes in seen.items()})
    return found


def memory_of_each() -> list[Any]:
    device_mesh(mesh_of("data=2"))
    folder = Path(torch_impl.share(tempfile.mkdtemp().encode()).decode())
    told: list[Any] = [None] * 2
    torch.distributed.all_gather_object(told, peaks("torch", "data=2", folder))
    if is_first():
        shutil.rmtree(folder)
    return told


def errors() -> dict[str, str]:
    """What users do wrong, in all processes alike."""
    trainer = Trainer(build(device_mesh(mesh_of("data=2,model=2"))), RECIPE)
    wrong: dict[str, Callable[[], Any]] = {
        "call": lambda: trainer.model(torch.from_numpy(WINDOWS[0])),
        "size": lambda: device_mesh(mesh_of("data=3")),
        "rows": lambda: trainer.step(WINDOWS[0][:3], RECIPE.rates(1)),
        "read": lambda: palm.activations(trainer.model, WINDOWS[0][:3]),
        "ids": lambda: trainer.step(WINDOWS[0] + 15 * (np.arange(4) == 3)[:, None], RECIPE.rates(1)),
    }
    return {name: message(call) for name, call in wrong.items()}


def message(call: Callable[[], Any]) -> str:
    try:
        call()
    except palm.PalmError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def one_process_fails(how: str) -> str:
    """What the others say of it."""
    torch_impl.mesh.TIMEOUT = torch_impl.processes.TIMEOUT = timedelta(seconds=8)
    trainer = Trainer(build(device_mesh(mesh_of("data=2"))), RECIPE)
    learn(trainer, range(1, 3))
    if os.environ["RANK"] == "1":
        if how == "hangs":
            time.sleep(25)
        raise MemoryError("out of memory")
    learn(trainer, range(3, 4))
    return "went on"


def a_run_starts_from_a_checkpoint() -> dict[str, Any]:
    folder = torch_impl.share(tempfile.mkdtemp().encode() if is_first() else b"").decode()
    return started("torch", "data=4", Path(folder))


def main(names: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    if names[0] == "fails":
        return {"fails": one_process_fails(names[1])}
    return {name: globals()[name]() for name in names}

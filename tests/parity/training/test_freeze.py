"""`Recipe.freeze`: frozen weights stay as they are, and the others learn as if these were constants."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from cases import assert_explains, small

import palm
from palm.backends import wing
from palm.checkpoint.checkpoint import load_arrays
from palm.spec import optimizer as reference
from palm.spec.backward import value_and_grad
from palm.spec.rounding import rms

# A part of a stack of blocks, a whole stack, and a weight of its own.
FREEZE = r"embedding|blocks\.0\..*|blocks\.\d\.feedforward\.gate"
WINDOWS = np.random.default_rng(0).integers(0, 13, (3, 4, 9))
TEXT = np.random.default_rng(1).integers(0, 13, 2_000)


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def recipe(**changes: Any) -> palm.Recipe:
    defaults = {"steps": 6, "batch": 4, "length": 8, "warmup": 2, "precision": "float64", "freeze": FREEZE}
    return palm.Recipe(**{**defaults, **changes})


def config(**changes: Any) -> palm.PaLMConfig:
    return small(positions="rotary", norm="layernorm", share_kv=False, **changes)


def is_frozen(name: str) -> bool:
    """Without the regular expression."""
    name = name.removeprefix("first.").removeprefix("second.")
    return name == "embedding" or name.startswith("blocks.0.") or name.endswith("feedforward.gate")


def trainer(backend: str, settings: palm.Recipe, **model: Any) -> Any:
    built = palm.build(config(**model), backend=backend, dtype="float64")
    return wing(backend).Trainer(built, settings)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("backend", palm.available_backends())
def test_a_step_is_the_referees_of_the_weights_that_learn(backend, optimizer):
    settings = recipe(optimizer=optimizer, z_loss=0.0, clip=0.5)
    learner = trainer(backend, settings)
    before, rates = palm.to_numpy(learner.model), settings.rates(1)
    _, grads = value_and_grad(config(), before, WINDOWS[0])
    learnt, norm = reference.clipped({n: g for n, g in grads.items() if not is_frozen(n)}, settings.clip)
    assert 0.5 < norm < 0.9 * reference.clipped(grads, 0.0)[1]  # clipped, and not by the norm of all
    outcome = learner.step(WINDOWS[0], rates)
    assert abs(outcome.grad_norm - norm) <= 1e-12 * norm
    found, moments = palm.to_numpy(learner.model), learner.moments()
    for name, array in before.items():
        first, second = moments[f"first.{name}"], moments[f"second.{name}"]
        if is_frozen(name):
            assert np.array_equal(found[name], array), name
            assert not np.any(first), name
            assert not np.any(second), name
            continue
        zero = np.zeros_like(array)
        update, m, s = reference.OPTIMIZERS[optimizer](array, learnt[name], zero, zero, rates, settings.eps)
        assert rms(found[name] - (array - update)) <= 1e-12 * rms(update), name
        assert rms(first - m) <= 1e-12 * rms(m), name
        assert rms(second - s) <= 1e-12 * rms(s), name


@pytest.mark.sampled(1)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_both_wings_learn_the_same_and_moments_of_before_stay(optimizer):
    """Of a run whose weights had learnt before, too: their moments are not zero."""
    states = []
    for backend in palm.available_backends():
        settings = recipe(optimizer=optimizer, accumulate=2, remat=True)
        learner = trainer(backend, settings, tie_embeddings=False)
        rng = np.random.default_rng(2)
        old = {name: rng.uniform(0.1, 0.2, array.shape) for name, array in learner.moments().items()}
        learner.set_moments(old)
        old |= palm.to_numpy(learner.model)
        for step, windows in enumerate(WINDOWS, 1):
            outcome = learner.step(windows, settings.rates(step))
        state = {**palm.to_numpy(learner.model), **learner.moments(), "norm.of all": outcome.grad_norm}
        assert all(np.array_equal(state[name], array) == is_frozen(name) for name, array in old.items())
        states.append(state)
    for state in states[1:]:
        assert max(np.abs(state[name] - x).max() for name, x in states[0].items()) <= 1e-12


@pytest.mark.sampled(1)
@pytest.mark.parametrize("first", palm.available_backends())
def test_a_run_keeps_it_in_the_other_framework(first, tmp_path):
    data = tmp_path / "ids.npy"
    np.save(data, TEXT)
    start = palm.to_numpy(palm.build(config(), backend="torch", dtype="float64", seed=3))
    settings, options = recipe(schedule="constant"), {"backend": first, "weights": start}
    palm.train(config(), settings, data, out=tmp_path / "whole", **options)
    half = dataclasses.replace(settings, steps=3)
    palm.train(config(), half, data, out=tmp_path / "parts", **options)
    palm.resume(tmp_path / "parts", steps=6, backend="jax" if first == "torch" else "torch")
    whole, parts = (load_arrays(tmp_path / name)[1] for name in ("whole", "parts"))
    assert max(np.abs(parts[name] - array).max() for name, array in whole.items()) <= 1e-12
    assert all(np.array_equal(parts[name], array) == is_frozen(name) for name, array in start.items())


@pytest.mark.parametrize("backend", palm.available_backends())
@pytest.mark.parametrize(("freeze", "told"), [("blocks", "none of them"), (".*", "all of them")])
def test_what_matches_nothing_or_everything_is_refused_before_the_data_are_read(backend, freeze, told):
    with pytest.raises(palm.ConfigError) as raised:
        palm.train(config(), recipe(freeze=freeze), "no such file", backend=backend)
    assert_explains(raised, "freeze must match some weights in full, and not all", f"freeze={freeze!r}", told)


@pytest.mark.whole
def test_a_checkpoint_is_tuned_from_the_command_line(tmp_path):
    model = palm.build(config(num_tokens=256), backend="torch")
    palm.save(model, tmp_path / "start")
    (tmp_path / "text").write_bytes(bytes(range(200)) * 5)
    told = [f"--{name}={value}" for name, value in {"batch": 2, "length": 8, "steps": 2}.items()]
    where = ["--checkpoint", tmp_path / "start", "--data", tmp_path / "text", "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "palm", "train", "--backend", "torch", "--freeze", FREEZE]
    done = subprocess.run(
        [*command, *map(str, where), *told], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    tuned = load_arrays(tmp_path / "run")[1]
    assert all(
        np.array_equal(tuned[name], array) == is_frozen(name) for name, array in palm.to_numpy(model).items()
    )

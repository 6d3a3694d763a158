"""A thousand steps in both wings, the same run handed back and forth, and the text both write afterwards."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from cases import ask_to_stop

import palm
from palm.data.windows import python_documentation_text
from palm.training.trained import Entry, OnStep

STEPS = 1000
BAR = 1e-4  # nats, at every step
RECIPES = {
    "adamw": {"optimizer": "adamw"},
    "adafactor": {
        "optimizer": "adafactor",
        "learning_rate": 1e-2,
        "schedule": "inverse_sqrt",
        "warmup": 0,
        "hold": 200,
        "weight_decay": 1.0,
    },
}
# Each optimiser with another architecture: rotary and separate keys and values; ALiBi and shared ones.
CONFIGS = {"adamw": palm.preset("tiny").resolve("jax"), "adafactor": palm.preset("tiny").resolve("torch")}
PROMPTS = [
    "The ",
    "class ",
    "A ",
    "If ",
    "import ",
    "An object",
    "Note",
    "def f(",
    "return",
    "In ",
    "When",
    "For ",
]
PROMPTS += ["This", "The following", "expression", "print(", "Changed in version", "see", "with", "0"]


def recipe(optimizer: str, steps: int = STEPS) -> palm.Recipe:
    return palm.recipe("adamw", **RECIPES[optimizer], steps=steps, batch=8, length=64)


@pytest.fixture(scope="module", params=RECIPES)
def runs(request: pytest.FixtureRequest) -> tuple[str, dict[str, palm.Trained]]:
    text = python_documentation_text()
    return request.param, {
        backend: palm.train(CONFIGS[request.param], recipe(request.param), text, backend=backend)
        for backend in ("torch", "jax")
    }


def losses(trained: palm.Trained) -> np.ndarray:
    return np.array([entry["loss"] for entry in trained.log])


def test_both_frameworks_see_the_same_loss_at_every_step(runs):
    optimizer, trained = runs
    gap = np.abs(losses(trained["torch"]) - losses(trained["jax"]))
    print(f"\n{optimizer}: largest gap {gap.max():.2e} nats at step {gap.argmax() + 1}; last {gap[-1]:.2e}")
    assert len(gap) == STEPS
    assert gap.max() <= BAR
    assert losses(trained["torch"])[-50:].mean() < losses(trained["torch"])[:50].mean() - 1


def test_a_run_handed_over_every_fifty_steps_has_the_unbroken_losses(runs, tmp_path: Path):
    optimizer, trained = runs
    data = tmp_path / "text.txt"
    data.write_bytes(python_documentation_text())

    # Interrupted by the user after each fifty steps: the recipe stays that of the whole run.
    def until(last: int) -> OnStep:
        def on_step(entry: Entry) -> None:
            if entry["step"] == last:
                ask_to_stop(signal.SIGINT)

        return on_step

    steps = 300
    relay = palm.train(
        CONFIGS[optimizer], recipe(optimizer), data, backend="torch", out=tmp_path / "run", on_step=until(50)
    )
    for leg in range(1, steps // 50):
        backend = ("torch", "jax")[leg % 2]
        relay = palm.resume(tmp_path / "run", backend=backend, on_step=until(50 * (leg + 1)))
    assert relay.step == steps
    for backend, whole in trained.items():
        gap = np.abs(losses(relay) - losses(whole)[:steps])
        print(f"\n{optimizer}: relay against {backend}: largest gap {gap.max():.2e} nats")
        assert gap.max() <= BAR


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_frameworks_write_the_same_text(runs, temperature):
    _, trained = runs
    options = {"max_new_tokens": 200, "temperature": temperature, "top_k": None if not temperature else 40}
    jax = palm.convert(trained["torch"].model, backend="jax")
    by_torch = palm.generate(trained["torch"].model, PROMPTS, **options)
    by_jax = palm.generate(jax, PROMPTS, **options)
    assert len(by_torch) == 20
    for one, other in zip(by_torch, by_jax, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert len(one.tokens) == 200
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_a_run_of_another_seed_would_be_noticed(runs):
    optimizer, trained = runs
    other = palm.train(
        CONFIGS[optimizer],
        palm.recipe("adamw", **RECIPES[optimizer], steps=5, batch=8, length=64, seed=1),
        python_documentation_text(),
        backend="torch",
    )
    assert np.abs(losses(other) - losses(trained["jax"])[:5]).max() > BAR

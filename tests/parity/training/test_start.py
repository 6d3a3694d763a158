"""A run keeps what it began from and which framework made which steps."""

import dataclasses
import json
import math
import weakref

import numpy as np
import pytest
from cases import assert_explains, draw_weights, small
from trained_tokenizers import byte_level

import palm
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.data.tokenizer_file import FileTokenizer
from palm.recipes import Outcome
from palm.training import start
from palm.training.start import digest_of

CONFIG = small(num_tokens=300, positions="rotary", norm="layernorm", share_kv=False)
IDS = np.random.default_rng(1).integers(0, 13, 2_000)
RECIPE = palm.Recipe(steps=2, batch=2, length=8, warmup=1)
ORIGIN = {"source": "palm_rlhf_pytorch", "repository": "who/what", "revision": "e" * 40}
TOKENIZER = FileTokenizer("words.json", byte_level("the palm by the sea").to_str().encode())


@pytest.fixture
def base(tmp_path):
    return save_arrays(CONFIG, draw_weights(CONFIG), tmp_path / "base", tokenizer=TOKENIZER, origin=ORIGIN)


def settings(run):
    return json.loads((run / "run.json").read_text())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("backend", palm.available_backends())
def test_a_run_keeps_its_checkpoint_its_tokenizer_and_where_that_came_from(base, tmp_path, backend):
    weights = load_arrays(base)[1]
    trained = palm.train(CONFIG, RECIPE, IDS, backend=backend, out=tmp_path / "a", weights=base)
    told = {"checkpoint": str(base), "weights": digest_of(weights), "origin": ORIGIN}
    assert settings(tmp_path / "a")["start"] == told
    assert trained.tokenizer.digest == TOKENIZER.digest
    arrays = palm.train(CONFIG, RECIPE, IDS, backend=backend, out=tmp_path / "b", weights=weights)
    assert settings(tmp_path / "b")["start"] == {"checkpoint": None, "weights": told["weights"]}
    assert [entry["loss"] for entry in arrays.log] == [entry["loss"] for entry in trained.log]
    drawn = palm.train(CONFIG, RECIPE, IDS, backend=backend, out=tmp_path / "c")
    assert "start" not in settings(tmp_path / "c")
    assert drawn.log[0]["loss"] != trained.log[0]["loss"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("backend", palm.available_backends())
@pytest.mark.parametrize(("given", "has_folder"), [("path", True), ("arrays", False)])
def test_no_second_copy_of_the_weights_is_kept_and_one_digest_is_formed(
    base, tmp_path, monkeypatch, backend, given, has_folder
):
    held, alive, digests = [], [], []

    def loaded(path):
        config, arrays = load_arrays(path)
        held.extend(map(weakref.ref, arrays.values()))
        return config, arrays

    monkeypatch.setattr(start, "load_arrays", loaded)
    monkeypatch.setattr(start, "digest_of", lambda arrays: digests.append(len(arrays)) or digest_of(arrays))
    palm.train(
        CONFIG,
        RECIPE,
        IDS,
        backend=backend,
        out=tmp_path / "run" if has_folder else None,
        weights=base if given == "path" else loaded(base)[1],
        on_step=lambda entry: alive.append(sum(one() is not None for one in held)),
    )
    assert (len(held), alive) == (len(load_arrays(base)[1]), [0, 0])
    assert digests == ([len(held)] if has_folder else [])


def test_another_config_than_the_checkpoints_is_refused(base, tmp_path):
    config = small(num_tokens=300, positions="alibi", norm="layernorm", share_kv=False)
    with pytest.raises(palm.ConfigError) as raised:
        palm.train(config, RECIPE, IDS, backend=palm.available_backends()[0], weights=base)
    assert_explains(raised, "config must be that of the checkpoint", "got positions='alibi'", "'rotary'")


def test_a_run_keeps_which_framework_made_which_steps(tmp_path):
    run = tmp_path / "run"
    palm.train(CONFIG, RECIPE, IDS, backend="torch", out=run)
    assert settings(run)["turns"] == [{"after": 0, "backend": "torch"}]
    palm.resume(run, steps=3, data=IDS)
    assert settings(run)["turns"] == [{"after": 0, "backend": "torch"}]
    palm.resume(run, steps=4, data=IDS, backend="jax")
    assert settings(run)["turns"] == [{"after": 0, "backend": "torch"}, {"after": 3, "backend": "jax"}]


@pytest.mark.parametrize(("rewind", "left"), [(1, ["torch", "jax"]), (9, ["jax"])])
def test_steps_that_a_rewind_takes_back_are_nobodys(tmp_path, monkeypatch, rewind, left):
    run, right, calls = tmp_path / "run", palm.jax_impl.Trainer.step, []
    recipe = dataclasses.replace(RECIPE, non_finite="rewind", rewind=rewind, skip=1)
    palm.train(CONFIG, recipe, IDS, backend="torch", out=run, cadence=palm.Cadence(checkpoint_every=1))

    def step(self, batch, rates):
        calls.append(rates)
        return Outcome(math.nan, math.nan, []) if len(calls) == 1 else right(self, batch, rates)

    monkeypatch.setattr(palm.jax_impl.Trainer, "step", step)
    palm.resume(run, steps=3, data=IDS, backend="jax")
    assert len(calls) == {1: 2, 9: 4}[rewind]
    assert [turn["backend"] for turn in settings(run)["turns"]] == left
    assert settings(run)["turns"][0]["after"] == 0

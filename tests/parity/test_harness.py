"""The model that lm-eval is given, without lm-eval: a class stands in for its `LM`."""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
from cases import small
from support import pair

import palm
from palm.cli.main import main
from palm.training.harness import harness_model

LENGTH = 24
WINGS = ("torch", "jax")
PAIRS = [
    ("The cat", " sat"),
    ("The cat ", "sat"),  # the space belongs to the continuation
    ("", "sat"),
    ("A context that is much longer than the window", " end"),
    ("x", "y"),
]
TEXTS = ["", "short", "A text that is longer than one window, and than two of them also."]


class FakeHook:
    def __init__(self):
        self.kept = []

    def add_partial(self, *told):
        self.kept.append(told)


class FakeLM:
    def __init__(self):
        self.cache_hook = FakeHook()


class FakeTasks:
    all_tasks = ("mine",)

    def __init__(self, include_path):
        self.include_path = include_path


def asked(model, tasks, task_manager):
    print("bootstrapping, and not a part of the command's JSON")
    assert os.environ["DISABLE_MULTIPROC"] == "1"
    [(logprob, _)] = model.loglikelihood(requests([("a", "b")]))
    return {"results": {"mine": {"alias": "mine", "acc,none": logprob, "path": task_manager.include_path}}}


@pytest.fixture
def lm_eval(monkeypatch):
    for name, content in {
        "lm_eval": {"simple_evaluate": asked},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": FakeLM},
        "lm_eval.tasks": {"TaskManager": FakeTasks},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(scope="module")
def models():
    with jax.enable_x64(True):
        yield dict(zip(WINGS, pair(small(num_tokens=256), "float64", "cpu"), strict=True))


@pytest.fixture
def asked_of(lm_eval, models):
    return {name: harness_model(model, length=LENGTH, batch=2) for name, model in models.items()}


def requests(arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def by_hand(model, seen, predicted):
    """The log-probability of the last ids after those that are seen, and whether each is the likeliest."""
    ids = np.frombuffer((seen + predicted).encode(), np.uint8)[-(LENGTH + 1) :].astype(int)
    logits = palm.activations(model, ids[:-1])["logits"][-len(predicted) :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = ids[-len(predicted) :]
    return logprobs[np.arange(len(targets)), targets].sum(), bool((logits.argmax(-1) == targets).all())


def test_loglikelihoods_are_those_by_hand_and_the_same_in_both_wings(asked_of, models):
    found = {name: asked_of[name].loglikelihood(requests(PAIRS)) for name in WINGS}
    split = [(kept or "\n", (c + d)[len(kept) :]) for c, d in PAIRS for kept in [c.rstrip()]]
    hand = [by_hand(models["torch"], *one) for one in split]
    for name in WINGS:
        assert [greedy for _, greedy in found[name]] == [greedy for _, greedy in hand]
        assert np.allclose([one for one, _ in found[name]], [one for one, _ in hand], rtol=1e-12, atol=0)
    cut = by_hand(models["torch"], PAIRS[3][0][1:], PAIRS[3][1])[0]
    assert cut == pytest.approx(found["torch"][3][0], rel=1e-12)  # what the window does not hold is not seen
    assert by_hand(models["torch"], "The bat", " sat")[0] != pytest.approx(hand[0][0], rel=1e-12)
    assert asked_of["torch"].cache_hook.kept == [
        ("loglikelihood", *one) for one in zip(PAIRS, found["torch"], strict=True)
    ]


@pytest.mark.parametrize("wing", WINGS)
def test_what_greedy_decoding_writes_is_greedy_and_nothing_else_is(wing, asked_of, models):
    written = {
        context: palm.generate(models[wing], context, max_new_tokens=1, temperature=0).tokens[0]
        for context in map("What the model would not write: {}".format, "abcdefgh")
    }
    # A byte beyond ASCII is no text by itself.
    context, token = next((context, token) for context, token in written.items() if token < 127)
    asked = requests([(context, chr(token)), (context, chr(token + 1))])
    assert [greedy for _, greedy in asked_of[wing].loglikelihood(asked)] == [True, False]


@pytest.mark.parametrize("wing", WINGS)
def test_rolling_predicts_each_token_of_each_text_once(wing, asked_of, models):
    found = asked_of[wing].loglikelihood_rolling(requests((text,) for text in TEXTS))
    for text, one in zip(TEXTS, found, strict=True):
        ids, hand = "\n" + text, 0.0
        for start in range(0, len(text), LENGTH):
            part = text[start : start + LENGTH]
            hand += by_hand(models[wing], ids[: start + 1], part)[0]
        assert one == pytest.approx(hand, rel=1e-12)


def test_generation_is_greedy_stops_and_is_the_same_in_both_wings(asked_of, models):
    contexts = ["The cat", "", "A context that is much longer than the window"]
    whole = requests((context, {"until": [], "max_gen_toks": 6}) for context in contexts)
    torch, jaxs = (asked_of[name].generate_until(whole) for name in WINGS)
    assert torch == jaxs
    cut = contexts[2][-(LENGTH - 6) :]
    assert torch[2] == palm.generate(models["torch"], cut, max_new_tokens=6, temperature=0).text
    assert torch[1] == palm.generate(models["torch"], "\n", max_new_tokens=6, temperature=0).text
    stop = torch[0][2]
    [stopped] = asked_of["jax"].generate_until(requests([("The cat", {"until": stop, "max_gen_toks": 6})]))
    assert stopped == torch[0][: torch[0].index(stop)]
    mixed = requests([("The cat", {"until": stop, "max_gen_toks": 6}), whole[0].args])
    assert asked_of["torch"].generate_until(mixed) == [stopped, torch[0]]


@pytest.mark.parametrize(
    ("method", "args", "error", "why"),
    [
        ("loglikelihood", ("a", ""), palm.DataError, "continuation must have 1 to length=24 tokens; got 0"),
        ("loglikelihood", ("a", "b" * 25), palm.DataError, "got 25"),
        ("generate_until", ("a", {"num_beams": 2}), palm.ConfigError, "got num_beams"),
        (
            "generate_until",
            ("a", {"max_gen_toks": 24}),
            palm.ConfigError,
            "max_gen_toks must be below length",
        ),
    ],
)
def test_what_palm_cannot_do_is_refused(method, args, error, why, asked_of):
    with pytest.raises(error, match=why):
        getattr(asked_of["torch"], method)(requests([args]))


def test_sampling_is_that_of_the_task(asked_of):
    options = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 8}
    [drawn] = asked_of["torch"].generate_until(requests([("The cat", options)]))
    [greedy] = asked_of["torch"].generate_until(requests([("The cat", {**options, "do_sample": False})]))
    assert drawn != greedy


def test_without_lm_eval_the_command_that_installs_it_is_told(monkeypatch, models):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(palm.MissingFrameworkError, match=r'pip install "palm-dual\[eval\]"'):
        harness_model(models["torch"])


def test_the_command_prints_what_the_harness_found(lm_eval, tmp_path, capsys):
    path = str(tmp_path / "model")
    palm.save(palm.build(small(num_tokens=256), backend="torch"), path)
    assert main(["eval", path, "--tasks", "mine", "--include", "folder", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["results"]["mine"]
    assert told["path"] == "folder"
    assert main(["eval", path, "--tasks", "mine"]) == 0
    assert f"{told['acc,none']:.4f}" in capsys.readouterr().out
    for wrong in (
        ["--tasks", "yours"],
        ["--tasks", "mine", "--text", "x"],
        [],
        ["--tasks", "mine", "--stride", "2"],
    ):
        assert main(["eval", path, *wrong]) == 2
    assert main(["eval", path, path, "--tasks", "mine"]) == 2

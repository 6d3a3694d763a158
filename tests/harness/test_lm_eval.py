"""lm-eval itself asks models of both wings its tasks, made here. `nox -s harness` installs it."""

from __future__ import annotations

import json
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import jax
import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

import palm
from palm.cli.main import main
from palm.training.harness import evaluate_tasks, harness_model

# lm-eval and what it imports warn of one another.
pytestmark = pytest.mark.filterwarnings("default")

LENGTH, NEW = 48, 5
WINGS = ("torch", "jax")
TEXT = b"The cat sat on the mat. The dog lay on the rug. A bird sang in the tree. " * 40
SUBJECTS = {"The cat": ("sat", "lay", "sang"), "The dog": ("lay", "sang", "in"), "A bird": ("tree", "sat")}
KINDS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
num_fewshot: 1
fewshot_split: shots
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "greedy": """
output_type: loglikelihood
doc_to_text: "{{before}}"
doc_to_target: "{{after}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "written": """
output_type: generate_until
doc_to_text: "{{before}}"
doc_to_target: "{{after}}"
generation_kwargs: {until: ["."], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def models():
    """One that has learned a little, in float64, in both wings."""
    config = palm.PaLMConfig(num_tokens=256, dim=32, depth=2, heads=2, dim_head=16).resolve("jax")
    recipe = palm.Recipe(steps=60, batch=8, length=32, warmup=5, learning_rate=1e-2)
    trained = palm.train(config, recipe, TEXT, backend="torch").model
    with jax.enable_x64(True):
        yield {wing: palm.convert(trained, backend=wing, dtype="float64") for wing in WINGS}


@pytest.fixture(scope="module")
def documents(models):
    """Of each: what comes before, what the model writes after it or something else, choices and a text."""
    found = []
    for number, (before, choices) in enumerate(SUBJECTS.items()):
        after = palm.generate(models["torch"], before, max_new_tokens=NEW, temperature=0).text
        found.append(
            {
                "before": before,
                "after": after if number else "?????",
                "choices": list(choices),
                "answer": number % 2,
                "text": TEXT.decode()[: 60 * number],
            }
        )
    return found


@pytest.fixture(scope="module")
def folder(documents, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    write_tasks(path, documents)
    return path


def write_tasks(path: Path, documents: list[dict[str, Any]]) -> None:
    (path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (path / "shots.jsonl").write_text(json.dumps(documents[1]) + "\n")
    files = {"test": str(path / "test.jsonl"), "shots": str(path / "shots.jsonl")}
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\ntest_split: test\n"
    for name, kind in KINDS.items():
        (path / f"{name}.yaml").write_text(f"task: mine_{name}\n{head}{kind}")


def asked(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """What lm-eval found; without its own thousands of tasks, which take it ten seconds to list."""
    return lm_eval.simple_evaluate(
        model=harness_model(model, length=LENGTH),
        tasks=[f"mine_{name}" for name in KINDS],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )


def answers(found: dict[str, Any], kind: str) -> list[Any]:
    """What the model answered to each request, and what was asked."""
    rows = sorted(found["samples"][f"mine_{kind}"], key=lambda row: row["doc_id"])
    return [
        (tuple(argument), answer)
        for row in rows
        for argument, [answer] in zip(row["arguments"], row["resps"], strict=True)
    ]


@pytest.fixture(scope="module")
def found(models, folder):
    return {wing: asked(models[wing], folder) for wing in WINGS}


def by_hand(model, seen: str, predicted: str) -> float:
    """The log-probability of the last bytes after those that are seen."""
    ids = np.frombuffer((seen + predicted).encode(), np.uint8)[-(LENGTH + 1) :].astype(int)
    logits = palm.activations(model, ids[:-1])["logits"][-len(predicted.encode()) :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(logprobs)), ids[-len(logprobs) :]].sum()


@pytest.mark.parametrize("kind", ["choice", "greedy"])
def test_each_log_likelihood_is_the_one_by_hand_in_both_wings(kind, found, models):
    torch, jaxs = (answers(found[wing], kind) for wing in WINGS)
    assert len(torch) >= 3
    for (asked_torch, (one, greedy)), (asked_jax, (other, greedy_too)) in zip(torch, jaxs, strict=True):
        assert asked_torch == asked_jax
        hand = by_hand(models["torch"], *asked_torch)
        assert one == pytest.approx(hand, rel=1e-12)
        assert other == pytest.approx(hand, rel=1e-12)
        assert greedy == greedy_too


def test_rolling_log_likelihoods_are_those_by_hand_in_both_wings(found, models):
    for wing in WINGS:
        for (text,), logprob in answers(found[wing], "rolling"):
            starts = range(0, len(text), LENGTH)
            parts = [(("\n" + text)[: at + 1], text[at : at + LENGTH]) for at in starts]
            hand = sum(by_hand(models[wing], *part) for part in parts)
            assert logprob == pytest.approx(hand, rel=1e-12)


def test_scores_are_those_of_the_answers_and_the_same_in_both_wings(found, models, documents):
    torch, jaxs = (found[wing]["results"] for wing in WINGS)
    for task, scores in torch.items():
        for name, score in scores.items():
            same = pytest.approx(jaxs[task][name], rel=1e-12) if isinstance(score, float) else score
            assert jaxs[task][name] == same, (task, name)
    shot = f"{documents[1]['before']} {documents[1]['choices'][documents[1]['answer']]}\n\n"
    right = 0
    for row in documents:
        likely = [by_hand(models["jax"], shot + row["before"], f" {one}") for one in row["choices"]]
        right += int(np.argmax(likely)) == row["answer"]
    assert torch["mine_choice"]["acc,none"] == pytest.approx(right / 3)
    # Two of three are what the model itself writes.
    assert torch["mine_greedy"]["acc,none"] == pytest.approx(2 / 3)
    assert torch["mine_written"]["exact_match,none"] == pytest.approx(2 / 3)


def test_what_is_written_is_the_same_in_both_wings(found, documents):
    torch, jaxs = (answers(found[wing], "written") for wing in WINGS)
    assert torch == jaxs
    assert [text for _, text in torch][1:] == [row["after"] for row in documents[1:]]


def test_another_model_and_other_answers_would_be_seen(found, models, documents, tmp_path):
    weights = palm.to_numpy(models["jax"])
    weights["blocks.1.norm"] = weights["blocks.1.norm"] * (1 + 1e-9)
    other = palm.from_numpy(palm.config_of(models["jax"]), weights, backend="jax")
    answer = documents[0]["choices"].index(documents[0]["choices"][-1])
    write_tasks(tmp_path, [{**documents[0], "answer": answer}, *documents[1:]])
    changed = asked(other, tmp_path)
    for (_, (one, _)), (_, (another, _)) in zip(
        answers(found["jax"], "greedy"), answers(changed, "greedy"), strict=True
    ):
        assert one != pytest.approx(another, rel=1e-12)
    wrong, right = (results["results"]["mine_choice"]["acc,none"] for results in (changed, found["jax"]))
    assert wrong == pytest.approx(right - 1 / 3)


def test_lm_evals_cache_keeps_the_answers(models, folder, tmp_path, found):
    """The second time no model is asked."""
    cache = {"use_cache": str(tmp_path / "cache")}
    asked(models["torch"], folder, **cache)
    again = asked(models["jax"], folder, **cache)
    for kind in KINDS:
        assert answers(again, kind) == answers(found["torch"], kind)
    assert answers(again, "greedy") != answers(found["jax"], "greedy")  # the control: bits differ


@pytest.mark.parametrize("wing", WINGS)
def test_the_command_runs_local_tasks_without_a_network(wing, models, folder, tmp_path, capfd, monkeypatch):
    """And without a fork of this process, which has the threads of both frameworks."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"{arguments} was to be reached or forked")

    palm.save(palm.convert(models["torch"], backend="torch", dtype="float32"), tmp_path / "model")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(multiprocessing, "Pool", refuse)
    tasks = ["--tasks", *(f"mine_{name}" for name in KINDS), "--include", str(folder)]
    options = ["--backend", wing, "--length", str(LENGTH)]
    assert main(["eval", str(tmp_path / "model"), *tasks, *options, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)["results"]
    assert told["mine_written"]["exact_match,none"] == pytest.approx(2 / 3)
    assert main(["eval", str(tmp_path / "model"), *tasks, *options]) == 0
    shown = {tuple(line.split()[:2]): line.split()[2:] for line in capfd.readouterr().out.splitlines()}
    assert shown[("mine_greedy", "acc,none")] == ["0.6667"]
    assert shown[("mine_greedy", "sample_len")] == ["3"]


def test_a_task_that_lm_eval_does_not_know_is_refused(models):
    with pytest.raises(palm.ConfigError, match="tasks must be known to lm-eval; got no_such_task"):
        evaluate_tasks(models["torch"], ["no_such_task"], length=LENGTH)

"""Any function of palm may be called on one model from several threads."""

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from cases import draw_tokens, small
from torch.func import functional_call

import palm
import palm.testing
from palm.backends import wing

THREADS = 8
CONFIG = small(num_tokens=256, dim=16, depth=1, dim_head=8)
TOKENS = draw_tokens(CONFIG, 2, 24)
PROMPT = list(range(20))


def computed(model, path):
    return palm.activations(model, TOKENS)


def compared(model, path):
    found = palm.compare(model, model, TOKENS)
    return {"outcome": found.outcome, **{f.name: f.ratio for f in found.findings}}


def traced(model, path):
    found = palm.trace(model, TOKENS)
    return {"fingerprints": found.fingerprints, "dtype": found.dtype, **found.results}


def saved(model, path):
    palm.save(model, path)
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def recorded(model, path):
    palm.record(model, TOKENS, path)
    return {file.name: len(file.read_bytes()) for file in sorted(path.iterdir())}


def generated(model, path):
    found = palm.generate(model, PROMPT, max_new_tokens=4, seed=1)
    return {"tokens": found.tokens, "logprobs": found.logprobs}


def gradients(model, path):
    loss, grads = palm.value_and_grad(model, TOKENS)
    return {"loss": loss, **grads}


def recomputed(model, path):
    loss, grads = wing(palm.backend_of(model)).value_and_grad(model, TOKENS, remat=True)
    return {"loss": loss, **grads}


def wide(model, path):
    with wing(palm.backend_of(model)).widened(model) as own:
        return palm.activations(own, TOKENS)


def asked(model, path):
    return {
        "dtype": palm.dtype_of(model),
        "backend": palm.backend_of(model),
        "config": palm.config_of(model),
        "tokenizer": palm.tokenizer_of(model).digest,
    }


def agreeing(model, path):
    palm.testing.assert_agree(model, model, TOKENS)
    return {}


def evaluated(model, path):
    found = palm.evaluate(model, bytes(range(97, 122)) * 3, length=24)
    return {"losses": found.losses, "counts": found.counts}


def decoded(model, path):
    return {"logits": palm.served(model, decode=True)(TOKENS)}


def numbers(model, path):
    return palm.to_numpy(model)


def converted(model, path):
    other = "jax" if palm.backend_of(model) == "torch" else "torch"
    return palm.to_numpy(palm.convert(model, backend=other))


CALLS = {
    "activations": computed,
    "asked": asked,
    "assert_agree": agreeing,
    "compare": compared,
    "convert": converted,
    "evaluate": evaluated,
    "generate": generated,
    "record": recorded,
    "save": saved,
    "served": decoded,
    "to_numpy": numbers,
    "trace": traced,
    "value_and_grad": gradients,
    "value_and_grad, remat": recomputed,
    "widened": wide,
}

SLOW_TO_COMPILE = ("assert_agree", "compare", "convert", "served", "value_and_grad, remat", "widened")


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def arrays_of(model) -> list:
    """The arrays of a model themselves: of torch the parameters, of JAX the leaves."""
    return list(model.parameters()) if palm.backend_of(model) == "torch" else jax.tree.leaves(model)


def called_from_threads(model, folder: Path, count: int, calls=tuple(CALLS)) -> None:
    """The calls, in another order in each thread; all results as of one thread alone, the model as it was."""
    before, numbers_before = arrays_of(model), palm.to_numpy(model)
    expected = {name: CALLS[name](model, folder / f"alone {name}") for name in calls}
    start = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(count):
            names = np.random.default_rng((thread, turn)).permutation(calls)
            for name in names:
                assert_equal(CALLS[name](model, folder / f"{thread} {turn} {name}"), expected[name])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert all(a is b for a, b in zip(arrays_of(model), before, strict=True))
    assert_equal(palm.to_numpy(model), numbers_before)


def test_every_public_function_of_a_model_is_called():
    functions = {
        name
        for module in (palm, palm.testing)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
        and {"model", "a", "program"} & {*inspect.signature(getattr(module, name)).parameters}
    }
    called = {name for call in CALLS.values() for name in call.__code__.co_names}
    assert functions - {"ratio", "plan"} <= called  # of arrays; of the name of a model
    assert len(functions) > 12


@pytest.mark.parametrize(
    ("backend", "count", "calls"),
    [
        ("torch", 1, tuple(CALLS)),
        ("jax", 1, tuple(name for name in CALLS if name not in SLOW_TO_COMPILE)),
        # A hundred calls of each function in each thread.
        pytest.param("torch", 100, tuple(CALLS), marks=pytest.mark.whole),
        pytest.param("jax", 100, tuple(CALLS), marks=pytest.mark.whole),
    ],
)
def test_functions_answer_from_threads_as_from_one(backend, count, calls, tmp_path):
    model = palm.build(CONFIG, backend=backend)
    called_from_threads(model, tmp_path, count, calls)


def test_an_optimizer_made_before_still_moves_the_weights_after(tmp_path):
    model = palm.build(CONFIG, backend="torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = list(model.parameters())
    called_from_threads(model, tmp_path, 2, ("value_and_grad", "value_and_grad, remat", "trace"))
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    weights = palm.to_numpy(model)
    model(torch.as_tensor(TOKENS)).square().mean().backward()
    optimizer.step()
    assert all(not np.array_equal(weights[name], x) for name, x in palm.to_numpy(model).items())


def frozen(model):
    return model.requires_grad_(requires_grad=False)


def hooked(model):
    model.embedding.weight.register_hook(lambda grad: grad * 0)
    return model


@pytest.mark.parametrize("make", [frozen, hooked])
def test_gradients_of_a_model_that_keeps_them_to_itself_are_right_from_threads(make):
    model = make(palm.build(CONFIG, backend="torch"))
    own = list(model.parameters())
    expected = palm.value_and_grad(palm.build(CONFIG, backend="torch"), TOKENS)[1]
    with ThreadPoolExecutor(THREADS) as pool:
        for _, grads in pool.map(lambda _: palm.value_and_grad(model, TOKENS), range(40)):
            assert_equal(grads, expected)
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
    assert all(p.grad is None for p in own)


def test_recomputing_under_other_weights_leaves_the_models_own_alone():
    model = palm.build(CONFIG, backend="torch").double()
    own = list(model.parameters())
    other = {name: p.detach() * 1.1 for name, p in model.named_parameters()}
    tokens = torch.as_tensor(TOKENS)
    grads = {}
    for remat in (False, True, "feedforward"):
        leaves = {name: x.clone().requires_grad_() for name, x in other.items()}
        loss = functional_call(model, leaves, (tokens,), {"remat": remat}).square().mean()
        assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
        grads[remat] = torch.autograd.grad(loss, list(leaves.values()))
    for again in (grads[True], grads["feedforward"]):
        torch.testing.assert_close(again, grads[False], rtol=1e-12, atol=0)

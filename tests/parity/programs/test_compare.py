"""`palm.compare` of two programs that are not PaLM: where they part, on both sides' lines, and why."""

from __future__ import annotations

import json
import linecache

import gpt_port
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import palm
from palm.parity.programs.kinds import traced_program
from palm.parity.programs.result import ProgramComparison
from palm.parity.run.remote import ProgramFile, RemoteProgram
from palm.tracing.operation import Change

# For each mistake: what its line says in the port, and how its cause begins.
MISTAKES = {
    "eps": ("xp.sqrt(square + eps)", "other constant: 1e-05 for 1e-06"),
    "scale": ("scores = scores / (", ""),
    "tanh": ("tanh = ", "GELU (erf) for GELU (tanh)"),
    "activation": ("return x / (1 + xp.exp(-x))", "GELU (erf) for SiLU"),
    "head order": ("x.reshape(*x.shape[:2], -1, HEADS)", "order of elements"),
    "mask": ("xp.tril(", ""),
    "variance": (".sum(-1, keepdims=True) / (WIDTH - 1)", ""),
    "residual": ("x = read + linear(", ""),
    "no final norm": ('x @ w["embedding.weight"].T', ""),
    "one weight": ("", "other weight: times 0.990099"),
}


@pytest.fixture(scope="module")
def model():
    return gpt_port.gpt()


def compared(model, library, *mistakes) -> ProgramComparison:
    return palm.compare(model, gpt_port.port(library, gpt_port.weights(model), mistakes), gpt_port.IDS)


@pytest.mark.parametrize("library", ["jax", "numpy"])
def test_a_right_port_agrees(model, library):
    found = compared(model, library)
    assert found.outcome == "agree"
    assert found.divergences == ()
    assert found.distance < 1e-12
    assert min(found.aligned) == 1
    assert found.verdict.startswith("GPT and model agree: in float64")


@pytest.mark.parametrize("library", ["numpy", pytest.param("jax", marks=pytest.mark.sampled(1))])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_on_its_line_and_named(model, library, mistake):
    found = compared(model, library, mistake)
    assert found.outcome == "differ"
    line, cause = MISTAKES[mistake]
    first = found.divergences[0]
    shown = [first.b.source, *(linecache.getline(*at) for at in first.b.callers)]
    assert any(line in text for text in shown), (shown, first)
    assert (first.cause or "").startswith(cause)
    assert first.a.file == gpt_port.__file__
    assert first.sentence in found.verdict


def test_two_mistakes_are_both_found(model):
    found = compared(model, "numpy", "tanh", "eps")
    causes = {one.cause for one in found.divergences}
    assert causes == {"other constant: 1e-05 for 1e-06", "GELU (erf) for GELU (tanh)"}
    assert sum(one.times for one in found.divergences) == 2 * gpt_port.DEPTH + 1 + gpt_port.DEPTH


def test_what_the_user_holds_is_as_it_was(model):
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    port = gpt_port.port("jax", gpt_port.weights(model))
    values, ids, state = np.asarray(port(gpt_port.IDS)), gpt_port.IDS.copy(), torch.get_rng_state()
    palm.compare(model, port, gpt_port.IDS)
    for name, (tensor, copy) in before.items():
        now = model.state_dict(keep_vars=True)[name]
        assert now is tensor
        assert now.dtype == torch.float32
        assert torch.equal(now, copy)
        assert now.grad is None
    assert np.array_equal(np.asarray(port(gpt_port.IDS)), values)
    assert np.array_equal(gpt_port.IDS, ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_two_programs_of_one_framework(model):
    def wrong(ids: torch.Tensor) -> torch.Tensor:
        return 2 * model(ids)

    found = palm.compare(model, wrong, gpt_port.IDS)
    assert found.divergences[0].b.source == "return 2 * model(ids)"
    assert palm.compare(model, lambda ids: 1 * model(ids), gpt_port.IDS).agree


def test_a_program_that_differs_from_itself_is_said_to_be_random(model):
    def noisy(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(model(ids), 0.5)

    state = {"calls": 0}

    def counting(ids: torch.Tensor) -> torch.Tensor:
        state["calls"] += 1
        return model(ids) * state["calls"]

    assert palm.compare(model, counting, gpt_port.IDS).outcome == "cannot tell"
    found = palm.compare(noisy, model, gpt_port.IDS)
    assert found.outcome in ("cannot tell", "differ")
    assert not found.agree


def test_programs_that_cannot_be_run_are_refused_in_a_sentence(model):
    with pytest.raises(palm.ProbeError, match="as a program of numpy's; it raised"):
        palm.compare(model, lambda ids: ids.no_such_method(), gpt_port.IDS)

    def both(ids):
        return torch.as_tensor(jnp.asarray(ids))

    with pytest.raises(palm.ProbeError, match=r"must be written for one framework; got .*both"):
        palm.compare(model, both, gpt_port.IDS)


def test_the_report_names_both_lines(model, tmp_path):
    found = compared(model, "numpy", "eps")
    report = json.loads(found.save_report(tmp_path / "report.json").read_text())
    [first, *_] = report["divergences"]
    assert report["schema"] == "palm-compare-programs"
    assert (first["a"]["line"], first["b"]["line"]) == (
        found.divergences[0].a.line,
        found.divergences[0].b.line,
    )
    page = found.save_report(tmp_path / "report.html").read_text()
    for text in (first["b"]["source"], "other constant: 1e-05 for 1e-06"):
        assert text.replace('"', "&#34;") in page
    # A line of the source, and the path of a file, are in one piece, so that they can be copied.
    assert all(len(line) <= 80 or line.startswith("     ") for line in str(found).splitlines())
    assert "return centred / xp.sqrt(square + eps)" in str(found)
    assert first["b"]["source"].replace('"', "&#34;") in found._repr_html_()


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy"])
def test_only_the_fingerprints_that_are_asked_for_are_computed(framework):
    program = traced_program(lambda x: (x * 2 + 1) * 3, (np.arange(6.0),), label="f", framework=framework)
    whole, part = program.run(), program.run(Change(only={2}))
    np.testing.assert_array_equal(part.fingerprints[2], whole.fingerprints[2])
    assert np.isnan(part.fingerprints[[1, 3]]).all()
    np.testing.assert_array_equal(part.outputs["output"], whole.outputs["output"])


def test_a_program_that_takes_no_rounded_numbers_is_refused():
    def picky(x):
        if not np.array_equal(x, np.full((3, 4), 1.5)):
            raise ValueError("x must be 1.5")
        return x * 2

    with pytest.raises(palm.ProbeError, match=r"off by rounding.*x must be 1\.5"):
        palm.compare(picky, lambda x: x * 2, np.full((3, 4), 1.5), frameworks=("numpy", "numpy"))


def test_a_program_that_does_not_take_the_other_ones_values_is_still_compared():
    def narrow(x):
        y = np.tanh(x)
        if np.abs(np.asarray(y)).max() > 1:
            raise ValueError("y must be at most 1")
        return np.sqrt(1 - y * y)

    found = palm.compare(
        narrow, lambda x: np.sqrt(1 + np.sinh(x) * np.sinh(x)), np.arange(6.0), frameworks=("numpy", "numpy")
    )
    assert found.outcome == "differ"


@pytest.mark.parametrize("name", ["fewer columns", "a row", "a number", "an axis more"])
def test_outputs_of_other_shapes_are_no_error(name):
    x = np.arange(12.0).reshape(3, 4)
    changes = {
        "fewer columns": lambda y: y[:, :3],
        "a row": lambda y: y[-1],
        "a number": lambda y: y.mean(),
        "an axis more": lambda y: y[:, :, None],
    }
    found = palm.compare(np.sqrt, lambda x: changes[name](np.sqrt(x)), x, frameworks=("numpy", "numpy"))
    assert found.outcome == ("agree" if name == "an axis more" else "differ")
    if name == "fewer columns":
        assert found.divergences[0].cause == "other shape: (3, 4) for (3, 3)"


def test_outputs_that_are_not_finite_on_one_side_are_far_apart():
    found = palm.compare(
        np.sqrt, lambda x: np.sqrt(x) * np.nan, np.arange(6.0), frameworks=("numpy", "numpy")
    )
    assert (found.outcome, found.distance) == ("differ", 1.0)


def test_parameters_that_are_one_number_are_told_as_what_hides_mistakes():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    bare = torch.nn.Sequential(model[0], torch.nn.LayerNorm(4, elementwise_affine=False))
    x = np.random.default_rng(0).standard_normal((3, 4))
    found = palm.compare(model, bare, x)
    assert found.agree
    assert found.constant == ("1.weight", "1.bias")
    assert "But 1.weight, 1.bias hold one number in all places" in found.verdict
    # With other numbers there the two are told apart, and there is nothing to say.
    torch.nn.init.uniform_(model[1].weight)
    torch.nn.init.uniform_(model[1].bias)
    assert palm.compare(model, bare, x).outcome == "differ"
    again = palm.compare(model, model.forward, x)
    assert again.agree
    assert again.constant == ()
    assert "one number" not in again.verdict


def test_a_framework_that_a_function_hides_is_found_by_trying():
    found = palm.compare(lambda x: x.at[0].add(1.0) * 2, lambda x: x.at[0].add(1.0) + x, np.zeros(6))
    assert found.outcome == "differ"
    with pytest.raises(palm.ProbeError, match=r"of another framework, say so: frameworks="):
        palm.compare(lambda x: x.nowhere(), lambda x: x.nowhere(), np.zeros(6))


def test_other_inputs_than_a_trace_has_are_called_so(tmp_path):
    file = palm.trace(np.tanh, np.arange(6.0), framework="numpy").save(tmp_path / "side.trace")
    found = palm.compare(file, np.tanh, np.arange(6.0) + 1, frameworks=(None, "numpy"))
    assert found.divergences[0].cause == "other inputs"


def test_a_program_in_another_process_outlives_what_it_does_not_take(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import numpy as np\n\ndef f(x):\n    return np.mean(x * x, axis=1) * 2\n", "utf-8")
    x = np.arange(6.0).reshape(2, 3)
    with RemoteProgram(ProgramFile(str(file), "f"), (x,), "mine") as program:
        [product] = [
            i for i, op in enumerate(program.operations) if op.op == "multiply" and op.shape == x.shape
        ]
        with pytest.raises(palm.ProbeError, match="mine must run as it is asked to; it raised"):
            program.run(Change(values={product: np.ones((4, 4))}))
        np.testing.assert_array_equal(program.run().outputs["output"], (x * x).mean(1) * 2)

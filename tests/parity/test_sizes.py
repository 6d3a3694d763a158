"""Models, trainings and texts that cannot fit are refused in both frameworks, at once."""

import pytest
from cases import at_most

import palm
from palm import memory
from palm.cli import compare
from palm.cli.main import main
from palm.errors import ConfigError

BACKENDS = ["torch", "jax"]


@pytest.fixture(autouse=True)
def quick():
    with at_most(5):
        yield


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "size",
    [{"dim": 2**31}, {"num_tokens": 2**40}, {"depth": 2**31}, {"heads": 2**40}, {"ff_mult": 2**40}],
    ids=str,
)
def test_a_model_is_refused_before_it_is_built(size, backend):
    with pytest.raises(ConfigError, match="memory must hold a model"):
        palm.build(palm.preset("tiny", **size), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_new_tokens_are_refused_before_the_prompt_is_read(backend):
    model = palm.build(palm.preset("tiny"), backend=backend)
    with pytest.raises(ConfigError, match="memory must hold the keys and values of 1 × "):
        palm.generate(model, "a", max_new_tokens=10**12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "flags",
    [
        ["--depth", "1000000"],
        ["--dim", "1000000000"],
        ["--batch", "1000000000000"],
        ["--sample-tokens", "1000000000000"],
    ],
    ids=" ".join,
)
def test_a_training_is_refused_before_anything_is_built(flags, backend, tmp_path, capsys):
    data, out = tmp_path / "d.txt", tmp_path / "run"
    data.write_text("a text " * 1000)
    assert main(["train", "--backend", backend, *flags, "--data", str(data), "--out", str(out)]) == 2
    assert "memory must hold" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_a_comparison_of_trainings_is_refused_before_a_side_is_built(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "free_memory", lambda: 10**6)
    monkeypatch.setattr(compare, "compare_sides", lambda *_, **__: pytest.fail("it is built"))
    assert main(["compare", "--preset", "tiny", "--train", "2", "--out", str(tmp_path)]) == 2
    assert "memory must hold the training" in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_without_values_may_have_any_size(backend):
    config = palm.preset("palm-540b", depth=1)
    if backend == "torch":
        assert palm.build(config, backend=backend, device="meta").embedding.weight.is_meta
    else:
        equinox = pytest.importorskip("equinox")
        assert equinox.filter_eval_shape(palm.build, config, backend=backend).config.dim == config.dim

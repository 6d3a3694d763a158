"""`palm.testing` as somebody else's tests use it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from cases import ROOT, draw_tokens, small

import palm
from palm.testing import assert_agree, ratio


@pytest.fixture
def example(tmp_path) -> ModuleType:
    """The documentation's example as a module, so that it stays true."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    code = max(re.findall(r"```python\n(.*?)```", page, re.DOTALL), key=len)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    spec = spec_from_file_location("example", tmp_path / "example.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documented_port_fails_with_its_cause(example):
    with pytest.raises(AssertionError) as raised:
        example.test_my_port()
    assert "my_port behaves like this model, but the rotary pairs are half-split" in str(raised.value)


def test_the_documented_port_passes_when_it_is_mended(example):
    def interleaved(x: np.ndarray) -> np.ndarray:
        angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
        turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    example.rotary = interleaved
    example.test_my_port()


def test_two_models_agree_or_the_message_says_where_and_why():
    right = palm.build(small(), backend="torch")
    assert_agree(right, palm.convert(right, backend="jax"), draw_tokens(small(), 9))
    other = dataclasses.replace(small(), init="reference")
    wrong = palm.from_numpy(other, palm.to_numpy(right), backend="jax")
    with pytest.raises(
        AssertionError,
        match=r"differ: init is(.|\n)*jax at logits: init is 'reference' instead of 'paper' \(cause: config;",
    ):
        assert_agree(right, wrong, draw_tokens(small(), 9))


def test_the_ratio_is_one_for_independent_rounding_and_more_for_another_function():
    exact = np.random.default_rng(0).standard_normal(10_000)
    errors = 1e-7 * np.random.default_rng(1).standard_normal((2, 10_000))
    a, b = exact + errors
    assert 0.95 < ratio(a, b, exact) < 1.05
    assert ratio(a, a, exact) == 0.0
    assert ratio(a, b + 1e-5, exact, exact + 1e-5) > 50


@pytest.mark.parametrize(
    "given",
    [
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: jnp.asarray(x, jnp.bfloat16),
        list,
    ],
    ids=["gradient", "bfloat16", "jax", "list"],
)
def test_the_ratio_reads_arrays_of_either_framework(given):
    values = [[1.0, 2.0], [1.5, 2.0], [1.0, 2.25], [1.5, 2.5]]
    assert ratio(*map(given, values)) == ratio(*map(np.array, values)) > 0


def test_weights_are_no_side_to_compare_a_port_with():
    def my_port(ids):
        return ids

    weights = {"norm": np.ones(6)}
    for sides in ((my_port, weights), (weights, my_port)):
        with pytest.raises(palm.BackendError, match=r"one of the two sides must be a palm model.*from_numpy"):
            palm.compare(*sides, np.arange(5))


FAILING = """
import palm
import numpy as np
from palm.testing import assert_agree

config = palm.PaLMConfig(num_tokens=11, dim=8, depth=1, heads=2, dim_head=4)
ours = palm.build(config, backend="torch")
ids = np.arange(6)


def test_another_function():
    assert_agree(lambda ids: 2 * palm.activations(ours, ids)["logits"], ours, ids)  # the line that fails


def test_no_tokens():
    assert_agree(ours, ours, [98, 99])


def test_a_port_that_raises():
    def my_port(ids):
        return undefined_name

    assert_agree(my_port, ours, ids)
"""


@pytest.mark.whole
def test_pytest_shows_the_line_of_the_test_and_no_frame_of_palm(tmp_path):
    (tmp_path / "test_mine.py").write_text(FAILING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "3 failed" in shown
    assert "# the line that fails" in shown
    assert "AssertionError: function at test_mine.py:12 " in shown
    assert "TokenError: tokens must lie in [0, num_tokens)" in shown
    assert "return undefined_name" in shown
    assert "palm/testing.py" not in shown
    assert "palm/parity/compare.py" not in shown

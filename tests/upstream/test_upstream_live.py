"""A live original as a side of a comparison: built by its own package, from a file or by its preset."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from cases import ROOT, assert_explains

import palm
from palm.spec.parameters import DTYPES
from palm.upstream import originals as live
from palm.upstream.originals import original

TORCH = ("palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch")


def save(built, folder, dtype="float32"):
    """An original's weights in a file, as its users write them."""
    tensors = {name: array.astype(DTYPES[dtype]) for name, array in built.tensors().items()}
    if built.source in TORCH:
        import torch

        from palm.torch_impl.weights import to_tensor

        path = folder / "weights.pt"
        torch.save({name: to_tensor(array) for name, array in tensors.items()}, path)
    else:
        path = folder / "weights.eqx"
        with path.open("wb") as file:
            for array in tensors.values():
                np.save(file, array)
    return path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_it_agrees_with_palm_in_both_frameworks(originals, source, backend, tmp_path, dtype):
    """Six heads have ALiBi slopes that float32 rounds: in float64 they must not be."""
    path = save(originals.build(source, heads=6, seed=3), tmp_path, dtype)
    function, config, arrays = original(source, path)
    model = palm.from_numpy(config, arrays, backend=backend)
    assert (function.__name__, config.heads, config.dim_head) == (source, 6, 10)
    for shape in ((40,), (3, 12), (2, 1, 12)):
        tokens = np.random.default_rng(0).integers(0, 29, shape)
        found = palm.compare(function, model, tokens)
        assert found.agree, found.verdict
        assert (found.label, found.dtype) == (source, dtype)


def test_its_logits_are_those_of_the_model_that_was_saved(originals, source, tmp_path):
    """And so not only those of palm's reading of the file."""
    built = originals.build(source, seed=4)
    function, _, _ = original(source, save(built, tmp_path, "float64"))
    tokens = np.random.default_rng(0).integers(0, 29, (2, 20))
    np.testing.assert_allclose(np.asarray(function(tokens)), built.logits(tokens), rtol=0, atol=1e-14)


def test_without_a_file_it_has_the_sizes_of_its_preset_and_its_own_initial_values(source, monkeypatch):
    sizes = {"num_tokens": 31, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8}
    small = dataclasses.replace(palm.preset(source), **sizes)
    monkeypatch.setattr(live, "PRESETS", {source: small})
    (function, config, arrays), (_, _, again), (_, _, other) = (original(source, seed=s) for s in (5, 5, 6))
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert not np.array_equal(arrays["embedding"], other["embedding"])
    found = palm.compare(function, palm.from_numpy(config, arrays, backend="torch"), np.arange(31))
    assert found.agree, found.verdict


def test_building_one_leaves_torchs_settings_alone(originals, tmp_path):
    import torch

    path = save(originals.build(TORCH[0]), tmp_path, "float64")
    before = torch.random.get_rng_state()
    original(TORCH[0], path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("source", TORCH)
def test_an_output_matrix_of_its_own_does_not_replace_the_embedding(originals, source, tmp_path):
    built = originals.build(source)
    import torch

    built.model[-1].weight = torch.nn.Parameter(built.model[-1].weight.detach() + 0.01)
    function, config, arrays = original(source, save(built, tmp_path))
    assert not config.tie_embeddings
    assert palm.compare(function, palm.from_numpy(config, arrays, backend="torch"), np.arange(29)).agree


def test_weights_of_another_source_are_refused(originals, tmp_path):
    path = save(originals.build("palm_pytorch.palm_lite"), tmp_path)
    with pytest.raises(palm.UpstreamError) as raised:
        original("palm_pytorch.palm_pytorch", path)
    assert_explains(raised, "tensors must be those of", "missing=", "Name the source")
    path = save(originals.build("palm_jax.palm", heads=3), tmp_path)
    with pytest.raises(palm.UpstreamError) as raised:
        original("palm_jax.palm_lite", path)
    assert_explains(raised, "layers.0.wi must map to", "got features=", "Name the source")


def test_an_unknown_source_is_refused():
    with pytest.raises(palm.UpstreamError) as raised:
        original("palm_jax.PaLM")
    assert_explains(raised, "source must be one of palm_pytorch.palm_lite", "got source='palm_jax.PaLM'")


def test_a_missing_package_is_named_with_its_fix(source, monkeypatch):
    package = source.partition(".")[0]
    requirement = {"palm_pytorch": "PaLM-pytorch==0.2.2", "palm_jax": "PaLM-jax==0.1.2"}[package]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(palm.MissingFrameworkError) as raised:
        original(source)
    assert_explains(raised, f'source="{source}"', package, f"pip install --no-deps {requirement}")


def test_a_missing_framework_is_named_first(source, monkeypatch):
    backend = "torch" if source in TORCH else "jax"
    monkeypatch.setattr(palm.backends, "_missing", lambda name: [backend])
    with pytest.raises(palm.MissingFrameworkError) as raised:
        original(source)
    assert_explains(raised, f"{backend} is not installed", f"palm-dual[{backend}]")


@pytest.mark.parametrize("x64", [False, True])
def test_jaxs_x64_mode_is_neither_needed_nor_in_the_way(originals, tmp_path, x64):
    import jax

    built, tokens = originals.build("palm_jax.palm"), np.arange(20)
    for dtype in ("float32", "float64"):
        path = save(built, tmp_path, dtype)
        with jax.enable_x64(x64):
            function, config, arrays = original("palm_jax.palm", path)
            assert function(tokens).dtype == dtype
            assert palm.compare(function, palm.from_numpy(config, arrays, backend="torch"), tokens).agree


def test_the_documented_example(originals, tmp_path, monkeypatch, capsys):
    save(originals.build("palm_pytorch.palm_lite"), tmp_path)
    page = (ROOT / "docs" / "check-a-port.md").read_text(encoding="utf-8")
    [code] = (c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "originals" in c)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("example", "example.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    right, wrong = capsys.readouterr().out.splitlines()
    assert right.startswith("palm_pytorch.palm_lite and palm agree: their logits differ by rounding")
    assert wrong.startswith("palm_pytorch.palm_lite behaves like this model, but positions=")
    assert wrong.endswith("Build the model with positions='alibi', or fix the port.")


@pytest.mark.whole
def test_a_live_original_is_a_side_of_the_command(tmp_path):
    arguments = ["palm_pytorch.palm_lite", "jax", "--length", "24", "--batch", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "palm", "compare", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert f"AGREE  {report['verdict']}" in done.stdout.splitlines()  # a pipe gets it in one line
    assert report["schema"] == "palm-compare-foreign"
    assert report["verdict"] in (tmp_path / "report.html").read_text()
    assert report["label"] == "palm_pytorch.palm_lite"

"""What `palm doctor` reads from each framework, in a process of its own as it does."""

from __future__ import annotations

import pytest

from palm.cli.doctor import _try


@pytest.mark.parametrize(("backend", "cpu"), [("torch", "cpu"), ("jax", "cpu")])
def test_a_framework_tells_its_version_devices_precision_and_threads(backend, cpu, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = _try(backend)
    assert set(found) == {"version", "devices", "matmul", "threads"}
    assert found["version"][0].isdigit()
    assert found["devices"] == [{"name": cpu, "memory": None}]
    assert found["matmul"] == "float32"
    assert found["threads"] >= 1


def test_another_precision_of_products_is_told(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "bfloat16")
    assert _try("jax")["matmul"] == "bfloat16"

"""`palm import` of the public weights: files, the hub by a stand-in for it, the real size, and memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Hub, Repository, serving

import palm
from palm.checkpoint.progress import summarise

SIZES = {"num_tokens": 29, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8}
REPOSITORY = "conceptofmind/palm-410m"


@pytest.fixture(scope="module")
def weights(rlhf, tmp_path_factory) -> Path:
    """A file as a trainer on several GPUs leaves it."""
    state = rlhf.build("0.2.1", **SIZES).float().state_dict()
    path = tmp_path_factory.mktemp("weights") / "palm_410m_8k_v0.pt"
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "step": 7}, path)
    return path


def palm_import(*arguments: Any, fails: bool = False, **variables: str) -> str:
    command = [sys.executable, "-m", "palm", "import", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **variables}, check=False
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_a_file_is_imported_and_the_convention_is_said(weights, tmp_path):
    said = palm_import("palm_rlhf_pytorch", weights, tmp_path / "one")
    assert "palm_rlhf_pytorch, 8,192 parameters, depth 2, dim 16, heads 2, dim_head 8" in said
    assert "norm_scale=plain: gamma is" in said
    told = palm_import("palm_rlhf_pytorch", weights, tmp_path / "two", "--norm-scale", "plus-one")
    assert "norm_scale" not in told
    one, two = (palm.to_numpy(palm.load(tmp_path / name, backend="torch")) for name in ("one", "two"))
    np.testing.assert_allclose(two["norm"], one["norm"] + 1, rtol=1e-6)


def test_what_import_cannot_do_is_said(weights, tmp_path):
    out = tmp_path / "out"
    assert "norm_scale must be left out" in palm_import(
        "palm_jax.palm", weights, out, "--norm-scale", "plain", fails=True
    )
    assert "--revision must be left out" in palm_import(
        "palm_rlhf_pytorch", weights, out, "--revision", "main", fails=True
    )
    assert "OUT must be given" in palm_import("palm_rlhf_pytorch", weights, fails=True)
    for address in ("hub:palm", "hub:a/b/../../secret.pt", "hub:a/b//secret.pt"):
        assert "file must be hub:OWNER/NAME" in palm_import(address, out, fails=True)
    assert not out.exists()


def test_weights_come_from_the_hub_and_then_from_its_cache(weights, tmp_path):
    content = weights.read_bytes()
    variables = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    repository = Repository({weights.name: content, "README.md": b"about"})
    with serving(Hub({REPOSITORY: repository})) as hub:
        said = palm_import(f"hub:{REPOSITORY}", tmp_path / "one", HF_ENDPOINT=hub.address, **variables)
    commit = repository.branches["main"]
    assert f"from {REPOSITORY} at {commit}" in said
    assert {*hub.fetched()} == {weights.name}
    origin = summarise(tmp_path / "one").origin
    digest = hashlib.sha256(content).hexdigest()
    assert origin == {
        "source": "palm_rlhf_pytorch",
        "repository": REPOSITORY,
        "revision": commit,
        "file": weights.name,
        "sha256": digest,
    }
    offline = {**variables, "HF_HUB_OFFLINE": "1"}
    palm_import("palm_rlhf_pytorch", f"hub:{REPOSITORY}/{weights.name}", tmp_path / "two", **offline)
    assert summarise(tmp_path / "two").origin == origin
    refused = palm_import("hub:conceptofmind/palm-1b", tmp_path / "three", fails=True, **offline)
    assert "hub:conceptofmind/palm-1b must be reachable or in the cache" in refused
    [blob] = (tmp_path / "cache").rglob(digest)
    blob.write_bytes(content[:-1] + b"x")
    refused = palm_import(f"hub:{REPOSITORY}", tmp_path / "three", fails=True, **offline)
    assert f"must have the SHA-256 that the hub tells, {digest}" in refused
    assert not (tmp_path / "three").exists()


def test_a_repository_with_several_files_asks_for_one(weights, tmp_path):
    files = {"a.pt": weights.read_bytes(), "b.pt": weights.read_bytes()}
    with serving(Hub({REPOSITORY: Repository(files)})) as hub:
        variables = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub.address}
        refused = palm_import(f"hub:{REPOSITORY}", tmp_path / "out", fails=True, **variables)
        assert (
            f"must have one file of weights; got a.pt, b.pt. Name the file: hub:{REPOSITORY}/FILE" in refused
        )
        palm_import(f"hub:{REPOSITORY}/b.pt", tmp_path / "out", **variables)


# The import in a process of its own, which says how much memory it took beyond what torch takes by itself.
MEASURED = """
import re, sys
from pathlib import Path
import torch
from palm.checkpoint.checkpoint import save_arrays
from palm.upstream.read import read_upstream
def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kilobytes("VmRSS")
config, arrays = read_upstream(sys.argv[1], "palm_rlhf_pytorch", norm_scale="plain")
save_arrays(config, arrays, sys.argv[2])
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.whole
def test_the_150m_model_is_imported_within_its_memory_and_writes_alike(rlhf, run_python, tmp_path):
    """Random weights in the real shapes, as a file; both wings write the same hundred tokens."""
    config = palm.preset("conceptofmind/palm-150m")
    names = ("num_tokens", "dim", "depth", "heads", "dim_head", "ff_mult")
    torch.manual_seed(0)
    model = rlhf.module("0.2.1").PaLM(**{name: getattr(config, name) for name in names})
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    size = sum(p.numel() * 4 for p in model.parameters())
    del model
    took = 1024 * int(run_python(MEASURED, tmp_path / "weights.pt", tmp_path / "out"))
    print(f"importing {size:,} bytes of weights took {took:,} bytes, {took / size:.2f} of them")
    assert took <= 1.6 * size
    texts = []
    for backend in ("torch", "jax"):
        ours = palm.load(tmp_path / "out", backend=backend)
        assert palm.config_of(ours) == config
        texts.append(palm.generate(ours, np.arange(7), max_new_tokens=100, temperature=0).tokens.tolist())
    assert texts[0] == texts[1]

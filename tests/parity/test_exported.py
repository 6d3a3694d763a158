"""Exported programs of both wings: read back they are the model, without palm too; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from cases import ROOT, draw_tokens, draw_weights, python, small

import palm
from palm import CheckpointError, ConfigError, MissingFrameworkError, TokenError, jax_impl, torch_impl
from palm.checkpoint import exported as exporting
from palm.checkpoint.checkpoint import save_arrays
from palm.checkpoint.exported import Agreement, agreement_of
from palm.checkpoint.programs import KINDS, Programs
from palm.cli.main import main
from palm.files.sealed import sealed
from palm.spec.rounding import RATIO_BAR

FORMATS = ["torch-export", "stablehlo"]
WINGS: dict[str, Any] = {"torch": torch_impl, "jax": jax_impl}
LENGTH = 24
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
# The weights of the models are drawn larger than new ones: their greedy tokens then differ from each other.
LOUDER = 2.0


def weights_of(config: palm.PaLMConfig, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    return {
        name: (array * LOUDER).astype(array.dtype) if array.ndim == 2 else array
        for name, array in draw_weights(config, seed, dtype).items()
    }


def exported(folder: Path, format: str, dtype: str = "float32", **choices: Any) -> tuple[Programs, Any]:
    """Programs that were written and read back, and their model."""
    config = small(num_tokens=40, depth=1, **choices)
    save_arrays(config, weights_of(config, dtype), folder / "model")
    palm.export(folder / "model", folder / "out", format=format, length=LENGTH)
    backend = KINDS[format].backend
    return palm.load_programs(folder / "out"), palm.load(folder / "model", backend=backend)


def wide(format: str, dtype: str) -> Any:
    return jax.enable_x64(True) if (format, dtype) == ("stablehlo", "float64") else nullcontext()


@pytest.fixture(scope="module", autouse=True)
def sizes(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--shapes"):
        pytest.skip("an exporter's sizes are symbols, which signatures cannot be checked against")


@pytest.fixture(scope="module", params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One export of each format, which tests must not change."""
    folder = tmp_path_factory.mktemp("made")
    return folder, request.param, *exported(folder, request.param, positions="rotary", share_kv=False)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("share_kv", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("positions", ["alibi", "rotary", "xpos"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_programs_read_back_are_the_model(tmp_path, format, dtype, positions, share_kv, qk_norm, tied):
    choices = {"positions": positions, "share_kv": share_kv, "qk_norm": qk_norm, "tie_embeddings": tied}
    with wide(format, dtype):
        programs, model = exported(tmp_path, format, dtype, **choices)
        ids = draw_tokens(programs.config, 3, LENGTH)
        found = palm.compare(programs.forward, model, ids)
        assert found.agree, found.verdict
        assert found.dtype == dtype
        near = programs.about["agreement"]
        assert max(near["forward"], near["decode"]) <= RATIO_BAR
        assert near["tokens"] == 2 * (LENGTH - LENGTH // 3)
        # In bfloat16 two tokens may be as likely, to rounding.
        assert near["same"] >= near["tokens"] - 2 * (dtype == "bfloat16")
        # The control: a matrix whose numbers are off by a few roundings in one place.
        changed = {name: array.copy() for name, array in palm.to_numpy(model).items()}
        row = changed["blocks.0.attention.out"][0]
        row[:] = row * 1.25
        other = palm.from_numpy(programs.config, changed, backend=KINDS[format].backend)
        far = agreement_of(programs, WINGS[KINDS[format].backend], other)
        assert min(far.forward, far.decode) > RATIO_BAR


def test_the_tokens_are_those_that_the_model_generates(made):
    _, _, programs, model = made
    found = programs.generate(PROMPTS, 9)
    wanted = palm.generate(model, [np.array(prompt) for prompt in PROMPTS], max_new_tokens=9, temperature=0)
    assert found == [list(map(int, row.tokens)) for row in wanted]
    assert len({token for row in found for token in row}) > 6  # they do not repeat one token
    # One prompt more or less changes nothing of the others: the control is another token in one.
    assert programs.generate(PROMPTS[1:], 9) == found[1:]
    assert programs.generate([[1, 2, 4], *PROMPTS[1:]], 9) != found


WITHOUT_PALM = {
    "torch-export": """
import sys, numpy as np, torch
sys.modules["palm"] = None  # an import of it would fail
out, ids = sys.argv[1], torch.from_numpy(np.load(sys.argv[2]))
forward, decode = (torch.export.load(f"{out}/{name}.pt2").module() for name in ("forward", "decode"))
keys, steps = torch.zeros(1, len(ids), 24, 4), []
caches = (keys, keys.clone())
for at in range(ids.shape[1]):
    logits, caches = decode(ids[:, at], torch.full((len(ids),), at), caches)
    steps.append(logits)
np.savez(sys.argv[3], forward=forward(ids).detach().numpy(), decode=torch.stack(steps, 1).detach().numpy())
""",
    "stablehlo": """
import sys, numpy as np, jax, jax.export, jax.numpy as jnp
from safetensors.numpy import load_file
sys.modules["palm"] = None
out, ids = sys.argv[1], np.load(sys.argv[2]).astype(np.int32)
weights = load_file(f"{out}/weights.safetensors")
forward, decode = (
    jax.jit(jax.export.deserialize(bytearray(open(f"{out}/{name}.jax", "rb").read())).call)
    for name in ("forward", "decode")
)
keys, steps = jnp.zeros((1, len(ids), 24, 4)), []
caches = (keys, keys)
for at in range(ids.shape[1]):
    logits, caches = decode(weights, ids[:, at], np.full(len(ids), at, np.int32), caches)
    steps.append(logits)
np.savez(sys.argv[3], forward=forward(weights, ids), decode=jnp.stack(steps, 1))
""",
}


def test_another_process_runs_them_without_palm(made, tmp_path):
    folder, format, programs, _ = made
    ids = draw_tokens(programs.config, 4, 7)
    np.save(tmp_path / "ids.npy", ids)
    ended = python(
        WITHOUT_PALM[format], *map(str, (folder / "out", tmp_path / "ids.npy", tmp_path / "x.npz"))
    )
    assert ended.returncode == 0, ended.stderr
    found = np.load(tmp_path / "x.npz")
    own = programs.forward(ids)
    assert np.array_equal(found["forward"], own)
    assert np.abs(found["decode"] - own).max() <= 1e-5 * np.abs(own).max()
    assert not np.array_equal(programs.forward((ids + 1) % 40), own)  # the control


def test_the_examples_of_the_page_run(made, monkeypatch):
    folder, format, programs, _ = made
    page = (ROOT / "docs/exporting.md").read_text(encoding="utf-8")
    with_palm, of_torch, of_jax = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ids, caches = draw_tokens(programs.config, 2, 5), programs.caches(2)
    names = {"palm": palm, "ids": ids, "torch": torch, "jax": jax, "safetensors": safetensors, "Path": Path}
    if format == "torch-export":
        given = torch.from_numpy(ids), torch.zeros(2, dtype=torch.long), tuple(map(torch.from_numpy, caches))
    else:
        given = ids.astype(np.int32), np.zeros(2, np.int32), caches
    names |= dict(zip(("tokens", "positions", "caches"), given, strict=True))
    monkeypatch.chdir(folder)
    for example in (with_palm, of_torch if format == "torch-export" else of_jax):
        code = example.replace("FOLDER", "out").replace('"RUN"', '"model"')
        exec(compile(code, "example", "exec"), {**names})


def test_any_number_of_sequences_and_of_tokens_up_to_the_length(made):
    _, _, programs, _ = made
    ids = draw_tokens(programs.config, 2, 3, LENGTH)
    whole = programs.forward(ids)
    assert whole.shape == (2, 3, LENGTH, 40)
    assert np.allclose(programs.forward(ids[1, 2, :1]), whole[1, 2, :1], atol=1e-4)
    with pytest.raises(TokenError, match=f"at most {LENGTH}, the length that was exported; got {LENGTH + 1}"):
        programs.forward(draw_tokens(programs.config, 1, LENGTH + 1))
    with pytest.raises(TokenError, match=f"at most {LENGTH}"):
        programs.decode([1], [LENGTH], programs.caches(1))
    with pytest.raises(TokenError, match=f"at most {LENGTH}"):
        programs.generate([[1] * 20], 5)
    for wrong in ([], [1, 2], [[[1]]], [[40]], [[]]):
        with pytest.raises(TokenError):
            programs.generate(wrong, 2)
    with pytest.raises(TokenError, match="of one shape"):
        programs.decode([1, 2], [0], programs.caches(2))
    with pytest.raises(TokenError, match="positions must be from 0 on; got -1"):
        programs.decode([1, 2], [-1, 5], programs.caches(2))
    for caches in (
        programs.caches(3),
        programs.caches(2)[:1],
        [cache[:, :, 1:] for cache in programs.caches(2)],
    ):
        with pytest.raises(
            TokenError, match=r"caches must have shapes \[\(1, 2, 24, 4\), \(1, 2, 24, 4\)\]; got"
        ):
            programs.decode([1, 2], [0, 5], caches)
    assert programs.decode([1, 2], [0, 5], programs.caches(2))[0].shape == (2, 40)  # the control
    with pytest.raises(ConfigError, match="max_new_tokens must be a whole number from 0 on; got"):
        programs.generate([[1]], -1)


def test_programs_that_are_not_the_model_are_never_left_behind(made, tmp_path, monkeypatch):
    folder, format, _programs, _ = made
    wing = WINGS[KINDS[format].backend]
    make = wing.make_programs

    def wrong(model: Any, length: int) -> dict[str, bytes]:
        other = palm.from_numpy(
            model.config,
            weights_of(model.config, "float32", 1),
            backend=KINDS[format].backend,
            attention="textbook",
        )
        return {name: make(other, length)[name] for name in ("forward", "decode")}

    monkeypatch.setattr(wing, "make_programs", wrong)
    if format == "stablehlo":  # whose programs have no weights of their own
        monkeypatch.setattr(jax_impl.exported, "masked_scores", lambda scores, slopes, distance: scores)
        monkeypatch.setattr(wing, "make_programs", make)
    with pytest.raises(
        CheckpointError, match=r"must agree with their model, with ratios of at most 1\.5; got"
    ):
        palm.export(folder / "model", tmp_path / "out", format=format, length=LENGTH)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("program", ["forward", "decode"])
def test_programs_whose_logits_are_not_numbers_are_never_left_behind(made, tmp_path, monkeypatch, program):
    folder, format, programs, _ = made
    near = Agreement(0.5, 0.5, 32, 32)
    monkeypatch.setattr(exporting, "agreement_of", lambda *rest: near._replace(**{program: float("nan")}))
    with pytest.raises(CheckpointError, match=f"must agree with their model, .* got .*{program}=nan"):
        palm.export(folder / "model", tmp_path / "out", format=format, length=programs.length)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(exporting, "agreement_of", lambda *rest: near)
    palm.export(folder / "model", tmp_path / "out", format=format, length=programs.length)  # the control


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_what_is_missing_or_damaged_is_refused(made, tmp_path):
    folder, _, _, _ = made
    for file in sorted((folder / "out").iterdir()):
        for damage in (flip, os.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])):
            shutil.copytree(folder / "out", tmp_path / "copy")
            damage(tmp_path / "copy" / file.name)
            with pytest.raises(CheckpointError, match=file.name):
                palm.load_programs(tmp_path / "copy")
            shutil.rmtree(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="a folder without"):
        palm.load_programs(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "of format palm-programs version 1; got format='palm-programs', version=2"),
        ({"format": "palm-checkpoint"}, "of format palm-programs"),
        ({"kind": "onnx"}, "kind must be one of torch-export, stablehlo; got 'onnx'"),
        ({"length": 1}, "length must be a whole number from 2 to"),
        ({"files": {}}, "files must be decode"),
        ({"config": {"dim": 6}}, "must hold a resolved config"),
    ],
)
def test_what_does_not_describe_programs_is_refused(made, tmp_path, changes, words):
    folder, *_ = made
    shutil.copytree(folder / "out", tmp_path / "copy")
    about = tmp_path / "copy/program.json"
    content = {**json.loads(about.read_text()), **changes}
    content.pop("seal")
    about.write_text(sealed(content))
    with pytest.raises(CheckpointError, match=words):
        palm.load_programs(tmp_path / "copy")


def test_a_framework_that_is_missing_is_named(made, monkeypatch):
    folder, format, *_ = made
    monkeypatch.setattr("palm.backends._missing", lambda backend: [backend])
    with pytest.raises(MissingFrameworkError, match=f"palm-dual.{KINDS[format].backend}"):
        palm.load_programs(folder / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_a_length_whose_caches_fit_nowhere_is_refused_before_anything_is_made(tmp_path, format):
    save_arrays(small(num_tokens=40), draw_weights(small(num_tokens=40)), tmp_path / "model")
    with pytest.raises(palm.ConfigError, match="keys and values of 2 × 1,000,000,000,000 tokens"):
        palm.export(tmp_path / "model", tmp_path / "out", format=format, length=10**12)
    assert not (tmp_path / "out").exists()


def test_without_flatbuffers_jax_says_what_to_install(tmp_path, monkeypatch):
    config = small(depth=1)
    save_arrays(config, weights_of(config, "float32"), tmp_path / "model")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "flatbuffers" else found(name, *rest)
    )
    with pytest.raises(MissingFrameworkError, match=r"pip install flatbuffers"):
        palm.export(tmp_path / "model", tmp_path / "out", format="stablehlo")
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_near_the_programs_are(made, tmp_path, capsys):
    folder, format, *_ = made
    out = tmp_path / "out"
    told = ["--out", str(out), "--format", format, "--length", str(LENGTH)]
    assert main(["export", str(folder / "model"), *told]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"ratio [01]\.\d\d \(forward\) and [01]\.\d\d \(decode\), of at most 1\.5; ", printed)
    assert "32 of 32 greedy tokens are the same" in printed
    assert main(["export", str(folder / "model"), "--out", str(tmp_path / "other"), "--length", "9"]) == 2
    assert "length must be left out but for programs" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="length must be a whole number from 2 on; got length=1"):
        palm.export(folder / "model", tmp_path / "other", format=format, length=1)
    assert not (tmp_path / "other").exists()

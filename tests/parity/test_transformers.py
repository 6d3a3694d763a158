"""A checkpoint written for transformers: what its own classes compute from it, and reading it back."""

import json

import numpy as np
import pytest
import torch

import palm
from palm.checkpoint import export as exporting
from palm.cli.main import main
from palm.spec.rounding import UNIT_ROUNDOFF, rms

transformers = pytest.importorskip("transformers")

CONFIGS = {
    "torch's": palm.PaLMConfig(num_tokens=50, dim=32, depth=2, heads=3, dim_head=8).resolve("torch"),
    "jax's": palm.PaLMConfig(num_tokens=50, dim=32, depth=2, heads=4, dim_head=8).resolve("jax"),
    "xPos and norms of queries and keys": palm.PaLMConfig(
        num_tokens=50, dim=32, depth=2, heads=4, dim_head=8, positions="xpos", qk_norm=True
    ).resolve("jax"),
    "untied": palm.PaLMConfig(
        num_tokens=50, dim=32, depth=2, heads=4, dim_head=8, tie_embeddings=False, init="reference"
    ).resolve("jax"),
}
IDS = np.random.default_rng(0).integers(0, 50, (2, 40))


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    """An exported model of random weights; norm scales are away from one."""
    config = CONFIGS[request.param]
    rng = np.random.default_rng(1)
    weights = {
        name: (array * rng.uniform(0.5, 2, array.shape)).astype(np.float32)
        for name, array in palm.to_numpy(palm.build(config, backend="torch")).items()
    }
    model = palm.from_numpy(config, weights, backend="torch")
    palm.save(model, tmp_path / "checkpoint")
    palm.export(tmp_path / "checkpoint", tmp_path / "exported", format="transformers")
    return tmp_path / "exported", model


def loaded(path, dtype=torch.float32):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(path, trust_remote_code=True, dtype=dtype).eval()


def test_transformers_computes_the_same_logits(folder):
    path, model = folder
    with torch.no_grad():
        found = loaded(path, torch.float64)(torch.from_numpy(IDS)).logits.numpy()
        narrow = loaded(path)(torch.from_numpy(IDS)).logits.double().numpy()
    wide = palm.convert(model, backend="torch", dtype="float64")
    exact = palm.activations(wide, IDS)["logits"]
    assert rms(found - exact) <= 1e-13 * rms(exact)
    own = palm.activations(model, IDS)["logits"]
    # Each rounds in float32, in its own order: neither may lose more than the other by half.
    assert rms(narrow - exact) <= 1.5 * max(rms(own - exact), UNIT_ROUNDOFF["float32"] * rms(exact))
    # The control: other ids have other logits.
    assert rms(found - palm.activations(wide, (IDS + 1) % 50)["logits"]) > 0.1 * rms(exact)


def test_it_generates_the_same_tokens_also_after_padding(folder):
    path, model = folder
    net, prompts = loaded(path), [IDS[0, :7], IDS[1, :11]]
    ours = palm.generate(model, prompts, max_new_tokens=12, temperature=0)
    padded = np.stack([np.pad(prompt, (11 - len(prompt), 0)) for prompt in prompts])
    mask = np.stack([np.pad(np.ones_like(prompt), (11 - len(prompt), 0)) for prompt in prompts])
    theirs = net.generate(
        torch.from_numpy(padded),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert [row.tokens.tolist() for row in ours] == theirs[:, 11:].tolist()


def test_its_loss_is_palms(folder):
    path, model = folder
    loss = loaded(path, torch.float64)(torch.from_numpy(IDS), labels=torch.from_numpy(IDS)).loss
    wide = palm.convert(model, backend="torch", dtype="float64")
    assert abs(loss.item() - palm.value_and_grad(wide, IDS)[0]) <= 1e-12


def test_a_folder_is_read_back_bit_for_bit(folder, tmp_path, monkeypatch):
    path, model = folder
    monkeypatch.setattr(exporting, "MOST_BYTES", 20_000)
    palm.export(tmp_path / "checkpoint", tmp_path / "parts", format="transformers")
    assert len([*(tmp_path / "parts").glob("model-*.safetensors")]) > 1
    loaded(tmp_path / "parts")
    for source in (path, tmp_path / "parts"):
        out = tmp_path / f"{source.name} again"
        assert main(["import", "transformers", str(source), str(out)]) == 0
        again = palm.load(out, backend="jax")
        assert palm.config_of(again) == palm.config_of(model)
        weights = palm.to_numpy(model)
        assert all(np.array_equal(array, weights[name]) for name, array in palm.to_numpy(again).items())


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config.json", lambda text: b"{}", "must have model_type='palm_dual'; got model_type=None"),
        ("config.json", lambda text: text.replace(b'"depth": 2', b'"depth": 3'), "blocks.2"),
        ("model.safetensors", lambda text: text[:-8], "the tensors must be"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, file, change, told, capsys):
    path, _ = folder
    (path / file).write_bytes(change((path / file).read_bytes()))
    assert main(["import", "transformers", str(path), str(tmp_path / "again")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_the_config_has_the_names_that_tools_read(folder):
    path, model = folder
    settings = json.loads((path / "config.json").read_text())
    config = palm.config_of(model)
    assert settings["hidden_size"] == config.dim
    assert settings["palm"] == config.to_dict()

"""Weights: from one seed, and moved between the wings."""

import jax
import numpy as np
import pytest
from support import DTYPES

import palm

OPEN = palm.PaLMConfig(num_tokens=23, dim=12, depth=3, heads=3, dim_head=4)
CONFIGS = [
    OPEN.resolve("torch"),
    OPEN.resolve("jax"),
    palm.preset("tiny", tie_embeddings=False).resolve("jax"),
]


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        assert array.tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("cfg", CONFIGS, ids=["alibi", "rotary", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_seed_gives_both_wings_the_same_bits(dtype, cfg):
    with jax.enable_x64(dtype == "float64"):
        models = [palm.build(cfg, backend=backend, seed=5, dtype=dtype) for backend in ("jax", "torch")]
        assert_same_bits(*(palm.to_numpy(model) for model in models))
        other = palm.to_numpy(palm.build(cfg, backend="jax", seed=6, dtype=dtype))
    assert other["embedding"].tobytes() != palm.to_numpy(models[0])["embedding"].tobytes()


@pytest.mark.parametrize("cfg", CONFIGS, ids=["alibi", "rotary", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_to_jax_to_torch_is_bitwise(dtype, cfg):
    start = palm.build(cfg, backend="torch", seed=1, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        there = palm.convert(start, backend="jax")
        back = palm.convert(there, backend="torch")
    assert palm.config_of(there) == palm.config_of(back) == cfg
    assert palm.dtype_of(there) == palm.dtype_of(back) == dtype
    assert_same_bits(palm.to_numpy(start), palm.to_numpy(back))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_of_one_wing_is_the_same_model_in_the_other(dtype, tmp_path):
    cfg = CONFIGS[1]
    start = palm.build(cfg, backend="torch", seed=2, dtype=dtype)
    path = palm.save(start, tmp_path / "checkpoint")
    with jax.enable_x64(dtype == "float64"):
        loaded = palm.load(path, backend="jax")
        assert_same_bits(palm.to_numpy(start), palm.to_numpy(loaded))
        again = palm.load(palm.save(loaded, tmp_path / "again"), backend="torch")
    assert_same_bits(palm.to_numpy(start), palm.to_numpy(again))


def test_to_numpy_copies():
    for backend in ("torch", "jax"):
        model = palm.build(CONFIGS[0], backend=backend)
        before = palm.to_numpy(model)
        before["norm"][:] = 7
        assert (palm.to_numpy(model)["norm"] == 1).all()


def test_a_plain_config_builds_each_backends_original():
    torch_model, jax_model = (palm.build(OPEN, backend=backend) for backend in ("torch", "jax"))
    assert palm.config_of(torch_model).positions == "alibi"
    assert palm.config_of(jax_model).positions == "rotary"


BAD = {
    "missing": lambda w: w.pop("blocks.1.attention.out"),
    "unknown": lambda w: w.update({"blocks.3.norm": w["norm"]}),
    "shape": lambda w: w.update({"norm": w["norm"][:-1]}),
    "nan": lambda w: w["blocks.2.feedforward.up"].__setitem__((1, 2), np.nan),
    "dtype": lambda w: w.update({"norm": w["norm"].astype(np.int32)}),
}


@pytest.mark.parametrize("problem", BAD)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_bad_weights_are_one_class_of_error_in_both_wings(backend, problem):
    weights = palm.to_numpy(palm.build(CONFIGS[0], backend="torch"))
    BAD[problem](weights)
    with pytest.raises(palm.WeightsError):
        palm.from_numpy(CONFIGS[0], weights, backend=backend, dtype="float32")


TOKENS = {
    "out of vocabulary": np.array([[1, 23]]),
    "negative": np.array([[1, -1]]),
    "float": np.array([[1.0, 2.0]]),
    "bool": np.array([[True, False]]),
    "empty": np.zeros((2, 0), np.int32),
    "scalar": np.array(3),
}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_bad_tokens_are_one_class_of_error_in_both_wings(backend, kind):
    import jax.numpy as jnp
    import torch

    model = palm.build(CONFIGS[0], backend=backend)
    own = torch.as_tensor if backend == "torch" else jnp.asarray
    for call in (lambda: model(own(TOKENS[kind])), lambda: palm.activations(model, TOKENS[kind])):
        with pytest.raises(palm.TokenError, match="tokens must"):
            call()

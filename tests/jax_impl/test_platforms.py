"""A program is for the platform that it is compiled for, whatever the default of the process is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import small

import palm
from palm import ConfigError
from palm.jax_impl import PaLM, decode, next_token_loss

LENGTH = 256  # two blocks of queries


def lowered(program, *platforms):
    """The program for a batch of three, as it is given to XLA."""
    model = jax.eval_shape(lambda: PaLM(small(depth=1), key=jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((3, LENGTH), jnp.int32)
    return jax.jit(program).trace(model, tokens).lower(lowering_platforms=platforms).as_text()


def forward(model, tokens):
    return model(tokens)


def gradient(model, tokens):
    return jax.grad(lambda model: next_token_loss(model(tokens), tokens))(model)


@pytest.mark.parametrize("program", [forward, gradient])
def test_blockwise_attention_runs_sequences_in_turn_on_a_cpu_only(program):
    """Compiled ahead on a CPU for a GPU or a TPU it has a loop over blocks, and no second over sequences."""
    loops = {name: lowered(program, name).count("stablehlo.while") for name in ("cpu", "cuda", "tpu")}
    assert loops["cuda"] == loops["tpu"] < loops["cpu"]
    assert loops["cpu"] == 2 * loops["cuda"]
    # A program for several platforms has both, and chooses where it runs.
    assert lowered(program, "cpu", "cuda").count("stablehlo.while") == loops["cpu"] + loops["cuda"]


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("nonsense", "attention must be one of textbook, blockwise"),
        ("cudnn", "must be a path that has ALiBi"),
    ],
)
def test_the_class_refuses_a_path_that_cannot_serve_it(attention, words):
    with pytest.raises(ConfigError, match=words):
        PaLM(small(), attention=attention, key=jax.random.key(0))


@pytest.mark.whole
def test_cudnns_path_goes_blockwise_where_there_is_no_gpu():
    config, key = small(positions="rotary", depth=1, dim_head=8), jax.random.key(0)
    models = [PaLM(config, attention=name, dtype=jnp.bfloat16, key=key) for name in ("cudnn", "blockwise")]
    one, other = (model(jnp.array([1, 2])) for model in models)
    assert np.array_equal(one, other)


@pytest.mark.whole
def test_nobody_asks_for_the_default_platform(monkeypatch, config):
    def asked(*given):
        raise AssertionError("the default platform was asked for")

    model = palm.build(config, backend="jax")
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", asked)
    palm.value_and_grad(model, [[1, 2, 3]])
    palm.generate(model, [1, 2, 3], max_new_tokens=2, temperature=0)
    with pytest.raises(AssertionError, match="was asked for"):
        jax.default_backend()


def test_weights_are_laid_out_for_the_platform_of_the_model():
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.bfloat16)
    for_cpu, elsewhere = (decode.pack(weight, None, 2, platform) for platform in ("cpu", "gpu"))
    assert (for_cpu.values.dtype, for_cpu.values.shape) == (jnp.float32, (4, 6))
    assert (elsewhere.values.dtype, elsewhere.values.shape) == (jnp.bfloat16, (6, 4))
    x = jnp.ones((2, 4), jnp.bfloat16)
    np.testing.assert_allclose(
        for_cpu.multiply(x).astype(jnp.float32), elsewhere.multiply(x).astype(jnp.float32), rtol=0.02
    )

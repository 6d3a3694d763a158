"""Building a JAX model: options, errors, and what must not happen on the side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SIZES, assert_explains, assert_same_bits, draw_weights, small

import palm
from palm import BackendError, ConfigError, PaLMConfig, WeightsError, jax_impl
from palm.spec.initial import initial_value
from palm.spec.parameters import parameters

CONFIG = small()
OPEN = PaLMConfig(**SIZES)


def test_an_open_config_becomes_palm_jaxs_model():
    model = palm.build(OPEN, backend="jax")
    config = palm.config_of(model)
    assert config == OPEN.resolve("jax")
    assert (config.positions, config.norm, config.share_kv) == ("rotary", "layernorm", False)
    assert palm.backend_of(model) == "jax"
    assert isinstance(model, jax_impl.PaLM)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_gives_the_weights_of_the_table(dtype):
    model = palm.build(CONFIG, backend="jax", seed=4, dtype=dtype)
    expected = {name: initial_value(row, 4, dtype) for name, row in parameters(CONFIG).items()}
    assert_same_bits(palm.to_numpy(model), expected)


def test_bfloat16_weights_give_bfloat16_logits(config):
    logits = palm.build(config, backend="jax", dtype="bfloat16")(jnp.array([1, 2]))
    assert logits.dtype == jnp.bfloat16
    assert jnp.isfinite(logits).all()


def test_float64_is_refused_where_jax_would_silently_give_float32():
    makes = [
        lambda: palm.build(CONFIG, backend="jax", dtype="float64"),
        lambda: palm.from_numpy(CONFIG, draw_weights(CONFIG), backend="jax"),
    ]
    for make in makes:
        with pytest.raises(ConfigError) as raised:
            make()
        assert_explains(
            raised, "dtype must be float32 or bfloat16", 'dtype="float64"', '"jax_enable_x64", True'
        )
        with jax.enable_x64(True):
            assert palm.dtype_of(make()) == "float64"


BAD_OPTIONS = [
    ({"dtype": "float16"}, ConfigError, ["dtype must be one of float64, float32, bfloat16", "'float16'"]),
    ({"dtype": jnp.float32}, ConfigError, ["dtype must be one of float64", "Choose"]),
    (
        {"attention": "flash"},
        ConfigError,
        ["one of auto, textbook, blockwise, cudnn, splash, pallas; got attention='flash'", "Choose"],
    ),
    *(
        ({"device": device}, BackendError, ["device must be available to jax", f"device={device!r}"])
        for device in ("tpu:99", "gpu:99", "cpu:99", "cpu:first", "abacus", 3.5)
    ),
]


@pytest.mark.parametrize(("options", "error", "parts"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_does_not_exist_is_refused(options, error, parts):
    weights = draw_weights(CONFIG, dtype="float32")
    for make in (
        lambda: palm.build(CONFIG, backend="jax", **options),
        lambda: palm.from_numpy(CONFIG, weights, backend="jax", **options),
        lambda: palm.convert(palm.build(CONFIG, backend="jax"), backend="jax", **options),
    ):
        with pytest.raises(error) as raised:
            make()
        assert_explains(raised, *parts)


def test_a_device_can_be_given_by_name_by_number_or_as_jaxs_own():
    first = jax.devices("cpu")[0]
    for device in ("cpu", "cpu:0", first):
        leaves = jax.tree.leaves(palm.build(CONFIG, backend="jax", device=device))
        assert all(leaf.devices() == {first} for leaf in leaves)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w.pop("norm"), r"miss norm\."),
        (lambda w: w.update(beta=w["norm"]), r"have unknown beta\."),
        (lambda w: w.update(norm=w["norm"][1:]), r"norm must have shape \(6,\); got shape=\(5,\)"),
        (lambda w: w.update(norm=w["norm"] * np.nan), r"norm must be finite; got nan at \(0,\)"),
        (lambda w: w.update(norm=w["norm"].astype(np.float16)), r"norm must be one of .* dtype=float16"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil, words):
    weights = draw_weights(CONFIG)
    spoil(weights)
    with pytest.raises(WeightsError, match=words):
        palm.from_numpy(CONFIG, weights, backend="jax", dtype="float32")


def test_weights_of_the_other_architecture_show_what_the_config_left_open():
    open_, other = PaLMConfig(**SIZES), PaLMConfig(**SIZES).resolve("torch")
    with pytest.raises(WeightsError) as raised:
        palm.from_numpy(open_, draw_weights(other), backend="jax")
    made = "positions='rotary', norm='layernorm', share_kv=False"
    assert_explains(raised, "they miss", "They have unknown", "leaves choices open", made, 'resolve("torch")')
    with pytest.raises(WeightsError, match=r"lists the names\)\.$"):
        palm.from_numpy(open_.resolve("jax"), draw_weights(other), backend="jax")


@pytest.mark.parametrize("seed", [-1, True, "0", 1.5])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be an int of at least 0"):
        palm.build(CONFIG, backend="jax", seed=seed)


@pytest.mark.parametrize("model", [None, jnp.ones(2), {"norm": 1}])
def test_a_model_from_elsewhere_is_refused(model):
    for ask in (palm.config_of, palm.backend_of, palm.dtype_of, palm.to_numpy):
        with pytest.raises(BackendError) as raised:
            ask(model)
        assert_explains(
            raised,
            "model must be one that palm built",
            type(model).__qualname__,
            "palm.from_numpy(config, weights, backend=…)",
            "published original with palm.from_upstream",
        )


def test_building_and_running_change_no_global_setting_of_jax(model, tokens):
    def settings() -> tuple:
        config = jax.config
        return config.jax_enable_x64, config.jax_default_matmul_precision, config.jax_default_device

    before = settings()
    palm.build(CONFIG, backend="jax")
    palm.activations(model, tokens)
    model(tokens)
    with jax_impl.widened(model) as wide:
        assert palm.dtype_of(wide) == "float64"
    assert settings() == before
    with pytest.raises(ZeroDivisionError), jax_impl.widened(model):
        raise ZeroDivisionError
    assert settings() == before


def test_a_device_of_negative_number_is_refused():
    with pytest.raises(BackendError, match="device must be available to jax"):
        palm.build(CONFIG, backend="jax", device="cpu:-1")

"""Building a torch model: options, errors, and what must not happen on the side."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from cases import DTYPES, SIZES, assert_explains, assert_same_bits, draw_tokens, draw_weights, small

import palm
from palm import BackendError, ConfigError, PaLMConfig, WeightsError, torch_impl
from palm.spec.initial import initial_value
from palm.spec.parameters import parameters

CONFIG = small()
OPEN = PaLMConfig(**SIZES)


def test_an_open_config_becomes_palm_pytorchs_model():
    model = palm.build(OPEN, backend="torch")
    config = palm.config_of(model)
    assert config == OPEN.resolve("torch")
    assert (config.positions, config.norm, config.share_kv) == ("alibi", "rmsnorm", True)
    assert palm.backend_of(model) == "torch"
    assert isinstance(model, torch_impl.PaLM)
    assert isinstance(model, torch.nn.Module)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_gives_the_weights_of_the_table(dtype):
    model = palm.build(CONFIG, backend="torch", seed=4, dtype=dtype)
    expected = {name: initial_value(row, 4, dtype) for name, row in parameters(CONFIG).items()}
    assert_same_bits(palm.to_numpy(model), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_have_the_dtype_of_the_weights(dtype):
    logits = palm.build(CONFIG, backend="torch", dtype=dtype)(torch.tensor([1, 2]))
    assert logits.dtype == getattr(torch, dtype)
    assert logits.isfinite().all()


def global_state() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "threads between operations": torch.get_num_interop_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "python's random numbers": random.getstate(),
        "numpy's random numbers": np.random.get_state()[1].tolist(),
    }


def test_building_and_running_change_no_global_state():
    torch.set_num_threads(2)
    # Somewhere in their streams: a seed set on the side would bring them back to a start.
    torch.rand(1), random.random(), np.random.random()
    before = global_state()
    model = palm.build(CONFIG, backend="torch")
    palm.value_and_grad(model, [1, 2, 3])
    palm.activations(model, [1, 2, 3])
    assert global_state() == before
    torch.set_num_threads(1)


def test_the_default_dtype_of_torch_changes_nothing():
    model, tokens = palm.build(CONFIG, backend="torch"), torch.tensor([1, 2, 3])
    expected = model(tokens)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model(tokens), expected)
        assert palm.dtype_of(palm.build(CONFIG, backend="torch")) == "float32"
    finally:
        torch.set_default_dtype(torch.float32)


BAD_OPTIONS = [
    ({"dtype": "float16"}, ConfigError, ["dtype must be one of float64, float32, bfloat16", "'float16'"]),
    (
        {"dtype": torch.float32},
        ConfigError,
        ["dtype must be one of float64", "dtype=torch.float32", "Choose"],
    ),
    (
        {"attention": "flash"},
        ConfigError,
        ["one of auto, textbook, blockwise, sdpa, flex; got attention='flash'", "Choose"],
    ),
    ({"device": "cuda:99"}, BackendError, ["device must be available to torch", "device='cuda:99'"]),
    ({"device": "gpu:99"}, BackendError, ["device must be available to torch", "device='gpu:99': ", "CUDA"]),
    ({"device": "abacus"}, BackendError, ["device must be available to torch", "device='abacus'"]),
    ({"device": -1}, BackendError, ["device must be available to torch", "device=-1"]),
    ({"device": 3.5}, BackendError, ["device must be available to torch", "device=3.5"]),
]


@pytest.mark.parametrize(("options", "error", "parts"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_does_not_exist_is_refused(options, error, parts):
    weights = draw_weights(CONFIG)
    for make in (
        lambda: palm.build(CONFIG, backend="torch", **options),
        lambda: palm.from_numpy(CONFIG, weights, backend="torch", **options),
        lambda: palm.convert(palm.build(CONFIG, backend="torch"), backend="torch", **options),
    ):
        with pytest.raises(error) as raised:
            make()
        assert_explains(raised, *parts)


@pytest.mark.parametrize(
    ("attention", "words"),
    [("nonsense", "attention must be one of textbook, blockwise"), ("sdpa", "must be a path that has ALiBi")],
)
def test_the_class_refuses_a_path_that_cannot_serve_it(attention, words):
    with pytest.raises(ConfigError, match=words):
        torch_impl.PaLM(CONFIG, attention=attention)


@pytest.mark.parametrize("config", [None, {"dim": 3}, "tiny"])
def test_something_that_is_no_config_is_refused(config):
    with pytest.raises(ConfigError, match=f"config must be a PaLMConfig; got {type(config).__name__}"):
        palm.build(config, backend="torch")


@pytest.mark.parametrize("change", [lambda x: x.requires_grad_(), lambda x: x.bfloat16()])
def test_tensors_that_numpy_cannot_read_are_refused(change):
    weights = {name: torch.from_numpy(array) for name, array in draw_weights(CONFIG).items()}
    assert palm.from_numpy(CONFIG, weights, backend="torch")
    weights["norm"] = change(weights["norm"])
    with pytest.raises(WeightsError, match="norm must be an array that NumPy can read; got Tensor"):
        palm.from_numpy(CONFIG, weights, backend="torch")


@pytest.mark.parametrize("weights", [torch.nn.Linear(2, 2), None, [1.0]])
def test_what_are_no_weights_by_name_is_refused(weights):
    with pytest.raises(WeightsError, match=r"weights must be arrays by name; got .*to_numpy"):
        palm.from_numpy(CONFIG, weights, backend="torch")


def test_weights_of_the_other_architecture_show_what_the_config_left_open():
    open_, other = PaLMConfig(**SIZES), PaLMConfig(**SIZES).resolve("jax")
    with pytest.raises(WeightsError) as raised:
        palm.from_numpy(open_, draw_weights(other), backend="torch")
    made = "positions='alibi', norm='rmsnorm', share_kv=True"
    assert_explains(raised, "they miss", "They have unknown", "leaves choices open", made, 'resolve("jax")')
    with pytest.raises(WeightsError, match=r"lists the names\)\.$"):
        palm.from_numpy(open_.resolve("torch"), draw_weights(other), backend="torch")


@pytest.mark.parametrize("seed", [-1, True, "0", 1.5])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be an int of at least 0"):
        palm.build(CONFIG, backend="torch", seed=seed)


def test_a_device_can_be_given_by_name_or_as_torchs_own():
    for device in ("cpu", torch.device("cpu"), None):
        assert palm.build(CONFIG, backend="torch", device=device).norm.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w.pop("norm"), r"miss norm\."),
        (lambda w: w.update(beta=w["norm"]), r"have unknown beta\."),
        (lambda w: w.update(norm=w["norm"][1:]), r"norm must have shape \(6,\); got shape=\(5,\)"),
        (lambda w: w.update(norm=w["norm"] * np.nan), r"norm must be finite; got nan at \(0,\)"),
        (lambda w: w.update(norm=w["norm"] * np.inf), r"norm must be finite; got inf at \(0,\)"),
        (lambda w: w.update(norm=w["norm"].astype(np.float16)), r"norm must be one of .* dtype=float16"),
    ],
)
def test_weights_that_do_not_fit_are_refused(spoil, words):
    weights = draw_weights(CONFIG)
    spoil(weights)
    with pytest.raises(WeightsError, match=words):
        palm.from_numpy(CONFIG, weights, backend="torch", dtype="float64")


def test_weights_of_two_dtypes_need_to_be_told_which():
    weights = draw_weights(CONFIG)
    weights["norm"] = weights["norm"].astype(np.float32)
    with pytest.raises(ConfigError) as raised:
        palm.from_numpy(CONFIG, weights, backend="torch")
    assert_explains(raised, "dtype must be given", "dtype=None", "float32, float64")
    assert palm.dtype_of(palm.from_numpy(CONFIG, weights, backend="torch", dtype="float32")) == "float32"


def test_another_dtype_is_the_nearest_rounding():
    wide = palm.build(CONFIG, backend="torch", dtype="float64")
    narrow = palm.to_numpy(palm.convert(wide, backend="torch", dtype="float32"))
    for name, array in palm.to_numpy(wide).items():
        assert np.array_equal(narrow[name], array.astype(np.float32)), name


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2), {"norm": 1}])
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


def test_the_two_attention_paths_share_weights_and_differ_by_rounding_alone():
    tokens = draw_tokens(CONFIG, 2, 9)
    logits = [
        palm.activations(palm.build(CONFIG, backend="torch", dtype="float64", attention=path), tokens)[
            "logits"
        ]
        for path in ("blockwise", "textbook")
    ]
    assert np.abs(logits[0] - logits[1]).max() < 1e-14
    rotary = dataclasses.replace(CONFIG, positions="rotary")
    other = palm.activations(palm.build(rotary, backend="torch", dtype="float64"), tokens)["logits"]
    assert np.abs(logits[0] - other).max() > 1e-3


def test_a_widened_model_computes_in_float64_and_leaves_the_original_alone():
    model = palm.build(CONFIG, backend="torch", dtype="bfloat16")
    with torch_impl.widened(model) as wide:
        assert palm.dtype_of(wide) == "float64"
        weights = palm.to_numpy(model)
        assert all(np.array_equal(array, weights[name]) for name, array in palm.to_numpy(wide).items())
        wide.norm.weight.data.zero_()
    assert palm.dtype_of(model) == "bfloat16"
    assert (palm.to_numpy(model)["norm"] == 1).all()


@pytest.mark.parametrize("device", ["hpu", "privateuseone"])
def test_a_device_of_a_plugin_that_is_not_there_is_refused(device):
    with pytest.raises(BackendError, match="device must be available to torch"):
        palm.build(CONFIG, backend="torch", device=device)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(dtype):
    weights = draw_weights(CONFIG)
    weights["norm"][2] = 3.4028e38 if dtype == "bfloat16" else 1e39
    with pytest.raises(WeightsError, match="norm must be finite"):
        palm.from_numpy(CONFIG, weights, backend="torch", dtype=dtype)


@pytest.mark.parametrize("config", [None, {"dim": 3}, "tiny"])
def test_weights_for_something_that_is_no_config_are_refused(config):
    with pytest.raises(ConfigError, match="config must be a PaLMConfig"):
        palm.from_numpy(config, {}, backend="torch")


def test_a_model_cast_to_a_dtype_that_is_not_palms_is_told_so():
    with pytest.raises(ConfigError, match="dtype must be one of float64, float32, bfloat16"):
        palm.dtype_of(palm.build(CONFIG, backend="torch").half())

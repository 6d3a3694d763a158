"""What a torch model holds, and the ways it is filled."""

import copy
import io

import numpy as np
import pytest
import torch
from cases import ARCHITECTURES, architecture_id, assert_same_bits, draw_weights, small

import palm
from palm.spec.parameters import parameters
from palm.torch_impl import PaLM

CONFIG = small()
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("choices", ARCHITECTURES, ids=architecture_id)
def test_the_state_dict_is_the_parameter_table_and_nothing_derived(choices):
    config = small(**choices)
    model = palm.build(config, backend="torch")
    assert list(model.state_dict()) == [f"{name}.weight" for name in parameters(config)]
    assert [name for name, _ in model.named_parameters()] == list(model.state_dict())
    assert list(model.buffers()) == []


def test_a_linear_layers_weight_is_the_canonical_one_transposed_and_no_other():
    weights = draw_weights(CONFIG)
    state = palm.from_numpy(CONFIG, weights, backend="torch").state_dict()
    for name, array in weights.items():
        is_linear = "attention" in name or "feedforward" in name
        assert np.array_equal(state[f"{name}.weight"].numpy(), array.T if is_linear else array), name


def test_every_parameter_is_contiguous_and_trainable():
    model = palm.build(CONFIG, backend="torch", dtype="bfloat16")
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, torch.nn.Parameter)
        assert (parameter.requires_grad, parameter.is_contiguous(), parameter.is_leaf) == (True,) * 3, name
        assert (parameter.dtype, parameter.device.type) == (torch.bfloat16, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_constructor_allocates_on_meta_and_is_filled_afterwards(dtype):
    built = palm.build(CONFIG, backend="torch", dtype=str(dtype).removeprefix("torch."))
    hollow = PaLM(CONFIG, device="meta", dtype=dtype)
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}
    filled = hollow.to_empty(device="cpu")
    filled.load_state_dict(built.state_dict())
    assert torch.equal(filled(TOKENS), built(TOKENS))
    assert {parameter.dtype for parameter in filled.parameters()} == {dtype}


def test_a_model_on_meta_gives_shapes_without_values():
    logits = PaLM(CONFIG, device="meta")(TOKENS.to("meta"))
    assert (logits.device.type, logits.shape) == ("meta", (2, 3, CONFIG.num_tokens))


def test_a_state_dict_goes_through_a_file():
    model, file = palm.build(CONFIG, backend="torch", seed=1), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = palm.build(CONFIG, backend="torch", seed=2)
    assert not torch.equal(other(TOKENS), model(TOKENS))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(TOKENS), model(TOKENS))


def test_a_model_can_be_copied_and_the_copy_changed():
    model = palm.build(CONFIG, backend="torch")
    before = model(TOKENS)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.norm.weight.zero_()
    assert not other(TOKENS).any()
    assert torch.equal(model(TOKENS), before)


def test_arrays_in_and_out_are_copies():
    weights = draw_weights(CONFIG, dtype="float32")
    kept = {name: array.copy() for name, array in weights.items()}
    model = palm.from_numpy(CONFIG, weights, backend="torch")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same_bits(weights, kept)
    for array in palm.to_numpy(model).values():
        array[:] = 1
    assert not any(array.any() for array in palm.to_numpy(model).values())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_weights_go_in_and_come_out_bit_for_bit(dtype):
    config = small(share_kv=False, tie_embeddings=False)
    weights = draw_weights(config, dtype=dtype)
    model = palm.from_numpy(config, weights, backend="torch")
    assert palm.dtype_of(model) == dtype
    assert_same_bits(palm.to_numpy(model), weights)
    assert list(palm.to_numpy(model)) == list(parameters(config))


def test_a_checkpoint_brings_back_the_model(tmp_path):
    model = palm.build(CONFIG, backend="torch", seed=3, dtype="bfloat16")
    again = palm.load(palm.save(model, tmp_path / "checkpoint"), backend="torch")
    assert palm.config_of(again) == CONFIG
    assert torch.equal(again(TOKENS), model(TOKENS))
    wide = palm.load(tmp_path / "checkpoint", backend="torch", dtype="float32")
    assert torch.equal(wide.norm.weight, model.norm.weight.float())

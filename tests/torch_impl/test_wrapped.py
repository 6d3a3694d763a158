"""What users make of a model, by what palm answers: what the forward pass computes, or a refusal that says
what to call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import draw_tokens, draw_weights, small
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import palm
from palm import PalmError
from palm.parity.recording.bundle import read_bundle
from palm.torch_impl import Block, Norm, PaLM, next_token_loss

CONFIG = small(num_tokens=29, dim=16, dim_head=8)
TOKENS = draw_tokens(CONFIG, 2, 7)
IDS = torch.from_numpy(TOKENS)
# Importing torch's compiler uses parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def plain() -> PaLM:
    return palm.from_numpy(CONFIG, draw_weights(CONFIG), backend="torch")


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Random(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight)


class Other(nn.Linear):
    """A user's own layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


def query(model: PaLM) -> nn.Module:
    return model.get_submodule("blocks.0.attention.query")


def compiled(model: PaLM) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: PaLM) -> Any:
    model.compile(backend="eager")
    return model


def parametrized(model: PaLM) -> Any:
    parametrize.register_parametrization(query(model), "weight", Doubled())
    parametrize.register_parametrization(model.norm, "weight", Doubled())
    parametrize.register_parametrization(model.embedding, "weight", Doubled())
    return model


def weight_normed(model: PaLM) -> Any:
    parametrizations.weight_norm(query(model))
    query(model).parametrizations.weight.original0.data.mul_(3)
    return model


def random(model: PaLM) -> Any:
    parametrize.register_parametrization(query(model), "weight", Random())
    return model


def pruned(model: PaLM) -> Any:
    prune.random_unstructured(query(model), "weight", 0.5)
    prune.random_unstructured(query(model), "weight", 0.5)
    with torch.no_grad():  # as an optimiser does: the masked weight is of before
        query(model).weight_orig.mul_(3)
    return model


def old_weight_normed(model: PaLM) -> Any:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(query(model))
    return model


def hooked(model: PaLM) -> Any:
    query(model).register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hooked_before(model: PaLM) -> Any:
    query(model).register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return model


def hooked_branch(model: PaLM) -> Any:
    model.blocks[0].attention.register_forward_hook(lambda module, inputs, output: 2 * output)
    model.blocks[1].feedforward.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hooked_block(model: PaLM) -> Any:
    model.blocks[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hooked_outside(model: PaLM) -> Any:
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hooked_wrapper(model: PaLM) -> Any:
    wrapper = nn.DataParallel(model)
    wrapper.register_forward_hook(lambda module, inputs, output: 2 * output)
    return wrapper


def replaced(model: PaLM) -> Any:
    other = Other(CONFIG.dim, CONFIG.inner_dim, bias=False, dtype=torch.float64)
    model.blocks[0].attention.query = other
    return model


def replaced_forward(model: PaLM) -> Any:
    layer = query(model)
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)
    return model


def own_class(model: PaLM) -> Any:
    class Own(type(query(model))):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    query(model).__class__ = Own
    return model


def own_model(model: PaLM) -> Any:
    class Own(PaLM):
        def forward(self, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
            return 2 * super().forward(tokens, **options)

    model.__class__ = Own
    return model


def block_compiled(model: PaLM) -> Any:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


def shared(model: PaLM) -> Any:
    model.blocks[1] = model.blocks[0]
    return model


def resized(model: PaLM) -> Any:
    model.embedding = nn.Embedding(CONFIG.num_tokens + 1, CONFIG.dim, dtype=torch.float64)
    return model


def clipped(model: PaLM) -> Any:
    model.embedding.max_norm = 1.0
    return model


def with_another_block(model: PaLM) -> Any:
    model.blocks.append(Block(CONFIG, model.path, device=None, dtype=torch.float64))
    return model


def with_a_block_less(model: PaLM) -> Any:
    del model.blocks[1]
    return model


def other_norm(model: PaLM) -> Any:
    other = dataclasses.replace(CONFIG, norm_eps_mode="add", norm_eps=0.5)
    model.norm = Norm(other, device=None, dtype=torch.float64)
    return model


def other_block_norm(model: PaLM) -> Any:
    model.blocks[1].norm.config = dataclasses.replace(CONFIG, norm="layernorm")
    return model


def other_depth_in_norm(model: PaLM) -> Any:
    model.norm.config = dataclasses.replace(CONFIG, depth=7)  # of which a norm reads nothing
    return model


def half_cast(model: PaLM) -> Any:
    model.blocks[1].bfloat16()
    return model


def frozen(model: PaLM) -> Any:
    model.blocks[0].requires_grad_(False)
    return model


def extended(model: PaLM) -> Any:
    model.value_head = nn.Linear(CONFIG.dim, 1)
    return model


def compiled_data_parallel(model: PaLM) -> Any:
    return compiled(nn.DataParallel(model))


def distributed(model: PaLM) -> Any:
    return nn.parallel.DistributedDataParallel(model)


def compiled_distributed(model: PaLM) -> Any:
    return compiled(distributed(model))


def inside(model: PaLM) -> Any:
    return nn.Sequential(model)


def empty(model: PaLM) -> Any:
    return model.to("meta")


def logits_of(model: Any) -> np.ndarray:
    """By the model's own forward pass."""
    with torch.no_grad():
        return model(IDS).numpy()


def greedy(model: Any, count: int) -> np.ndarray:
    ids = IDS[:1]
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    return ids[0, -count:].numpy()


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max())


def check_weights(found: dict[str, np.ndarray], model: Any) -> None:
    assert same(logits_of(palm.from_numpy(CONFIG, found, backend="torch")), logits_of(model))


def to_numpy(model: Any, path: Path) -> None:
    check_weights(palm.to_numpy(model), model)


def save(model: Any, path: Path) -> None:
    loaded = palm.load(palm.save(model, path / "saved"), backend="torch")
    assert same(logits_of(loaded), logits_of(model))


def convert(model: Any, path: Path) -> None:
    assert same(logits_of(palm.convert(model, backend="torch")), logits_of(model))


def generate(model: Any, path: Path) -> None:
    found = palm.generate(model, TOKENS[0], max_new_tokens=9, temperature=0.0)
    assert np.array_equal(found.tokens, greedy(model, 9))


def activations(model: Any, path: Path) -> None:
    assert same(palm.activations(model, TOKENS)["logits"], logits_of(model))


def value_and_grad(model: Any, path: Path) -> None:
    loss, grads = palm.value_and_grad(model, TOKENS)
    assert loss == pytest.approx(next_token_loss(torch.from_numpy(logits_of(model)), IDS).item(), rel=1e-13)
    # By autograd through the model itself: how the loss changes along a direction of the final norm's weight.
    norm = palm.torch_impl.find_model(model).norm
    direction = torch.linspace(1, 2, CONFIG.dim, dtype=torch.float64)

    def add(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + step * direction / norm.weight)

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    handle = norm.register_forward_hook(add)
    [slope] = torch.autograd.grad(next_token_loss(model(IDS), IDS), step)
    handle.remove()
    assert grads["norm"] @ direction.numpy() == pytest.approx(slope.item(), rel=1e-10)


def compare(model: Any, path: Path) -> None:
    found = palm.compare(model, plain(), TOKENS)
    assert same(found.recordings[0].taps["logits"], logits_of(model))
    assert found.agree == same(logits_of(model), logits_of(plain()))


def record(model: Any, path: Path) -> None:
    palm.record(model, TOKENS, path / "recorded", complete=True)
    assert same(read_bundle(path / "recorded").taps["logits"], logits_of(model))


DOORS = (to_numpy, save, convert, generate, activations, value_and_grad, compare, record)
ALL = frozenset(DOORS)
RUN = frozenset({activations, value_and_grad, compare, record})
TAKE = frozenset({value_and_grad})
NONE: frozenset[Callable[..., None]] = frozenset()
REMOVE = "Remove it"
# Of each way: by which functions palm answers for what the forward pass computes, and what the others say.
WAYS: dict[Callable[[PaLM], Any], tuple[frozenset[Callable[..., None]], str]] = {
    compiled: (ALL, ""),
    compiled_in_place: (ALL, ""),
    nn.DataParallel: (ALL, ""),
    compiled_data_parallel: (ALL, ""),
    distributed: (ALL, ""),
    compiled_distributed: (ALL, ""),
    parametrized: (ALL, ""),
    weight_normed: (ALL, ""),
    pruned: (ALL, ""),
    shared: (ALL, ""),
    frozen: (ALL, ""),
    extended: (ALL, ""),
    other_depth_in_norm: (ALL, ""),
    other_norm: (RUN, "Build the module from model.config"),
    other_block_norm: (RUN, "Build the module from model.config"),
    with_another_block: (NONE, "Build a model of another depth"),
    with_a_block_less: (NONE, "Build a model of another depth"),
    hooked: (RUN, REMOVE),
    hooked_before: (RUN, REMOVE),
    hooked_branch: (RUN, REMOVE),
    replaced_forward: (RUN, REMOVE),
    own_class: (RUN, REMOVE),
    hooked_block: (TAKE, REMOVE),
    hooked_outside: (TAKE, REMOVE),
    own_model: (TAKE, REMOVE),
    clipped: (RUN, "Set it to None"),
    hooked_wrapper: (NONE, REMOVE),
    inside: (NONE, "Pass that"),
    random: (NONE, "parametrize.remove_parametrizations"),
    old_weight_normed: (frozenset({activations}), "remove_weight_norm"),
    replaced: (frozenset({activations}), "Put palm's module back"),
    resized: (frozenset({activations}), "Check that config and weights belong together"),
    block_compiled: (NONE, "module.compile()"),
    half_cast: (NONE, "model.to(torch.float32)"),
    empty: (NONE, "model.load_state_dict"),
}


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process alone, over a file: what DistributedDataParallel needs."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# A forward pass that is another each time can be run, and compared with nothing.
CELLS = [(way, door) for way in WAYS for door in DOORS if (way, door) != (random, activations)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("way", "door"), CELLS, ids=lambda part: part.__name__)
def test_palm_answers_for_what_the_forward_pass_computes_or_says_what_to_call(way, door, tmp_path):
    answered, fix = WAYS[way]
    model = way(plain())
    if door in answered:
        door(model, tmp_path)
        return
    with pytest.raises(PalmError) as raised:
        door(model, tmp_path)
    assert fix in str(raised.value)
    assert "; got " in str(raised.value)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, distributed, compiled_distributed])
def test_what_is_asked_about_a_wrapped_model_is_told_of_the_model_inside(wrap):
    model = plain()
    wrapped = wrap(model)
    assert palm.config_of(wrapped) is palm.config_of(model)
    assert palm.dtype_of(wrapped) == "float64"
    assert palm.backend_of(wrapped) == "torch"
    assert palm.torch_impl.find_model(wrapped) is model


def test_what_is_no_model_of_palms_is_none():
    assert palm.torch_impl.find_model(nn.Linear(2, 2)) is None
    assert palm.torch_impl.find_model(nn.DataParallel(nn.Linear(2, 2))) is None
    assert palm.torch_impl.find_model("a path") is None
    with pytest.raises(PalmError, match="Put your own weights into one"):
        palm.config_of(nn.DataParallel(nn.Linear(2, 2)))


def test_gradients_of_computed_weights_are_those_with_respect_to_their_values():
    model = parametrized(plain())
    _, grads = palm.value_and_grad(model, TOKENS)
    next_token_loss(model(IDS), IDS).backward()
    original = query(model).parametrizations.weight.original
    assert same(2 * grads["blocks.0.attention.query"], original.grad.T.numpy())
    assert not same(grads["blocks.0.attention.query"], original.grad.T.numpy())


def test_asking_leaves_a_parametrized_or_pruned_model_as_it_is():
    for way in (parametrized, pruned):
        model = way(plain())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        palm.to_numpy(model), palm.value_and_grad(model, TOKENS), generate(model, Path())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert list(model.state_dict()) == list(before)


def test_hooks_on_all_modules_are_refused_by_what_goes_by_weights_alone():
    model = plain()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        for door in (to_numpy, generate, activations):
            with pytest.raises(PalmError, match="a hook on all modules"):
                door(model, Path())
    finally:
        handle.remove()
    to_numpy(model, Path())


def test_another_number_of_heads_is_another_function():
    model = plain()
    model.blocks[0].attention.config = dataclasses.replace(CONFIG, heads=1)
    for door in (to_numpy, convert, generate):
        with pytest.raises(PalmError, match=r"blocks\.0\.attention with heads=1, not 3"):
            door(model, Path())


def test_norms_may_be_wider_than_matrices_but_the_model_has_no_one_dtype_then():
    model = palm.build(CONFIG, backend="torch", dtype="bfloat16")
    for module in model.modules():
        if isinstance(module, palm.torch_impl.Norm):
            module.float()
    assert {array.dtype.name for array in palm.to_numpy(model).values()} == {"bfloat16", "float32"}
    with pytest.raises(PalmError, match="dtype must be one for all weights; got a model in bfloat16"):
        palm.dtype_of(model)


@pytest.mark.parametrize("way", [hooked, replaced_forward, parametrized, pruned])
def test_a_way_that_nothing_was_done_about_would_be_another_function(way):
    """What the weights alone compute is not what the forward pass does: the table's cells can fail."""
    model = way(plain())
    assert not same(logits_of(model), logits_of(plain()))

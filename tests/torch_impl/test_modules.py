"""Each module is a function of tensors by itself, and hooks on every one of them fire and see tensors."""

import pytest
import torch
from cases import small

import palm
from palm.spec.taps import BLOCK_TAPS, tap_names
from palm.torch_impl import Attention, FeedForward, Norm, next_token_loss

CONFIGS = [
    small(),
    small(positions="rotary", norm="layernorm", share_kv=False, tie_embeddings=False),
    small(positions="xpos", qk_norm=True),
]
TOKENS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
# PyTorch says so of modules that are given ids and no tensor with a gradient.
of_ids = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


def changed(x):
    """x with another size for each feature: no norm undoes that."""
    return x * torch.linspace(1, 2, x.shape[-1])


def modules_of(model):
    """Every module that is called."""
    return {name: m for name, m in model.named_modules() if not isinstance(m, torch.nn.ModuleList)}


@pytest.fixture(params=CONFIGS, ids=["palm_pytorch", "the opposite", "xPos"])
def model(request):
    return palm.build(request.param, backend="torch")


def test_each_module_called_alone_gives_the_tap_of_the_whole_pass(model):
    with torch.no_grad():
        taps = model.activations(TOKENS)
        positions = model.positions(TOKENS.shape[1], taps["embed"])
        assert torch.equal(model.embedding(TOKENS), taps["embed"])
        x = taps["embed"]
        for i, block in enumerate(model.blocks):
            of = {name: taps[f"blocks.{i}.{name}"] for name in BLOCK_TAPS}
            y = of["norm"]
            assert torch.equal(block.norm(x), y)
            assert torch.equal(block.attention(y, *positions), of["attention_out"])
            assert torch.equal(block.feedforward(y), of["feedforward_out"])
            assert torch.equal(block(x, *positions), of["out"])
            assert not torch.equal(block.attention(x, *positions), of["attention_out"])
            x = of["out"]
        assert torch.equal(model.norm(x), taps["norm"])
        assert torch.equal(model.logits(taps["norm"]), taps["logits"])
        assert torch.equal(model(TOKENS), taps["logits"])


def test_a_tap_sees_every_value_in_dataflow_order_and_may_replace_it(model):
    seen = []

    def record(name, value):
        seen.append(name)
        return value

    logits = model(TOKENS, tap=record)
    assert tuple(seen) == tap_names(model.config.depth)
    assert torch.equal(logits, model(TOKENS))
    for replaced in seen[:-1]:
        other = model(TOKENS, tap=lambda name, value, at=replaced: changed(value) if name == at else value)
        assert not torch.equal(other, logits), replaced


@of_ids
@pytest.mark.parametrize("remat", [False, "feedforward", True])
def test_hooks_on_every_module_fire_and_see_tensors(model, remat):
    calls = {}

    def watch(name, module):
        def note(kind, values):
            assert all(value is None or isinstance(value, torch.Tensor) for value in values), (name, kind)
            calls.setdefault(name, set()).add(kind)

        module.register_forward_pre_hook(lambda m, inputs: note("before", inputs[:1]))
        module.register_forward_hook(lambda m, inputs, output: note("after", [output]))
        module.register_full_backward_pre_hook(lambda m, grads: note("before its gradient", grads))
        module.register_full_backward_hook(lambda m, for_inputs, grads: note("its gradient", grads))

    modules = modules_of(model)
    for name, module in modules.items():
        watch(name, module)
    next_token_loss(model(TOKENS, remat=remat), TOKENS).backward()
    every = {"before", "after", "before its gradient", "its gradient"}
    assert calls == dict.fromkeys(modules, every)
    assert {"", "embedding", "norm", "blocks.1", "blocks.1.norm", "blocks.1.attention.out"} <= calls.keys()


def test_a_hook_that_changes_an_output_changes_the_logits(model):
    logits = model(TOKENS)
    for name, module in modules_of(model).items():
        handle = module.register_forward_hook(lambda m, inputs, output: changed(output))
        hooked = model(TOKENS)
        handle.remove()
        assert not torch.allclose(hooked, logits, rtol=1e-3), name
        assert torch.equal(model(TOKENS), logits)


@of_ids
def test_a_hook_that_changes_a_gradient_changes_those_before_it(model):
    def gradient():
        model.zero_grad()
        next_token_loss(model(TOKENS), TOKENS).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    before = gradient()
    kinds = (Norm, Attention, FeedForward, torch.nn.Linear)
    for name, module in model.named_modules():
        if not isinstance(module, kinds) or name == "":
            continue
        handle = module.register_full_backward_pre_hook(lambda m, grads: (2 * grads[0],))
        weight = next(f"{name}.{own}" for own, _ in module.named_parameters())
        assert not torch.equal(gradient()[weight], before[weight]), name
        handle.remove()
    after = gradient()
    assert all(torch.equal(after[name], before[name]) for name in before)

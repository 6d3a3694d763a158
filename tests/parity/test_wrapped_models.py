"""PEFT's LoRA on a torch model: palm answers for what the forward pass computes, or says what to call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from cases import draw_tokens, draw_weights, small

import palm
from palm import PalmError
from palm.torch_impl import PaLM, next_token_loss

CONFIG = small(num_tokens=29, dim=16, dim_head=8, positions="rotary", share_kv=False, tie_embeddings=False)
TOKENS = draw_tokens(CONFIG, 2, 7)
IDS = torch.from_numpy(TOKENS)


def plain() -> PaLM:
    return palm.from_numpy(CONFIG, draw_weights(CONFIG), backend="torch")


def lora(*targets: str) -> tuple[PaLM, Any]:
    """A model with adapters that change it, and PEFT's model around it."""
    torch.manual_seed(0)
    model = plain()
    config = peft.LoraConfig(target_modules=list(targets), init_lora_weights=False)
    return model, peft.get_peft_model(model, config)


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(IDS).numpy()


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max())


DOORS: dict[str, Callable[..., Any]] = {
    "to_numpy": lambda model, path: palm.to_numpy(model),
    "save": lambda model, path: palm.save(model, path / "x"),
    "convert": lambda model, path: palm.convert(model, backend="jax", dtype="float32"),
    "generate": lambda model, path: palm.generate(model, TOKENS[0], max_new_tokens=2),
    "value_and_grad": lambda model, path: palm.value_and_grad(model, TOKENS),
    "compare": lambda model, path: palm.compare(model, plain(), TOKENS),
    "compare the other way": lambda model, path: palm.compare(plain(), model, TOKENS),
    "record": lambda model, path: palm.record(model, TOKENS, path / "x"),
}
ALSO = {
    "activations": lambda model, path: palm.activations(model, TOKENS),
    "config_of": lambda model, path: palm.config_of(model),
    "backend_of": lambda model, path: palm.backend_of(model),
}
TARGETS = ("query", "out", "up", "down")


@pytest.mark.parametrize("door", {**DOORS, **ALSO})
def test_a_model_of_peft_is_refused_with_what_to_call(door, tmp_path):
    _, wrapped = lora(*TARGETS)
    with pytest.raises(PalmError, match=r"got peft\..*PeftModel, which holds one.*merge_and_unload\(\)"):
        {**DOORS, **ALSO}[door](wrapped, tmp_path)
    with pytest.raises(PalmError, match=r"merge_and_unload\(\)"):
        {**DOORS, **ALSO}[door](torch.nn.DataParallel(wrapped), tmp_path)


@pytest.mark.parametrize("targets", [TARGETS, ("embedding",), ("unembedding",), ("key", "value", "gate")])
@pytest.mark.parametrize("door", DOORS)
def test_the_model_inside_that_holds_the_adapters_is_refused_too(door, targets, tmp_path):
    model, _ = lora(*targets)
    with pytest.raises(PalmError, match=r"merge_and_unload\(\)"):
        DOORS[door](model, tmp_path)


@pytest.mark.parametrize("targets", [TARGETS, ("embedding",), ("unembedding",), ("key", "value", "gate")])
def test_its_taps_are_those_of_its_forward_pass(targets):
    model, wrapped = lora(*targets)
    assert same(palm.activations(model, TOKENS)["logits"], logits_of(wrapped))
    assert not same(logits_of(wrapped), logits_of(plain()))


def test_what_merge_and_unload_gives_is_answered_for(tmp_path):
    _, wrapped = lora(*TARGETS, "embedding", "unembedding")
    expected = logits_of(wrapped)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert same(logits_of(merged), expected)
    assert same(logits_of(palm.from_numpy(CONFIG, palm.to_numpy(merged), backend="torch")), expected)
    assert same(logits_of(palm.load(palm.save(merged, tmp_path / "x"), backend="torch")), expected)
    assert same(palm.activations(merged, TOKENS)["logits"], expected)
    assert palm.value_and_grad(merged, TOKENS)[0] == pytest.approx(
        next_token_loss(torch.from_numpy(expected), IDS).item(), rel=1e-13
    )
    assert palm.compare(merged, palm.from_numpy(CONFIG, palm.to_numpy(merged), backend="torch"), TOKENS).agree
    first = palm.generate(merged, TOKENS[0], max_new_tokens=1, temperature=0.0).tokens
    assert first == expected[0, -1].argmax()
    # The adapters are still where they were, and the model around them computes what it did.
    assert same(logits_of(wrapped), expected)


def test_training_adapters_reaches_the_linear_layers_alone():
    model, wrapped = lora(*TARGETS)
    next_token_loss(wrapped(IDS), IDS).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(reached) == 2 * len(TARGETS) * CONFIG.depth

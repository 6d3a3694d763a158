"""The jobs of the torch sides: palm's torch wing, the torch originals, x-transformers, Falcon."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_limits
import torch_peers
from job import (
    BETAS,
    EPS,
    LEARNING_RATE,
    NEW_TOKENS,
    WEIGHT_DECAY,
    check_size,
    config_of,
    greedy,
    prompt,
    recipe_of,
    timed,
    windows,
)

import palm
from palm.torch_impl import Decoder, Trainer

Job = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"


def peak_bytes() -> int | None:
    """The most memory of the GPU so far; None where the process's own is what counts."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None


def prepare(spec: dict[str, Any]) -> Job:
    """`run`, which does the job once, and the number of `parameters`."""
    if spec["job"] == "device":
        return {"run": dict}
    if spec["job"] == "limits":
        return {"run": torch_limits.prepare(spec, DEVICE, wait)}
    jobs = PALM if spec["model"] == "palm" else PEERS
    return jobs[spec["job"]](spec)


def wait(_: object = None) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def on_device(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(DEVICE)


def _palm(spec: dict[str, Any], dtype: str) -> torch.nn.Module:
    own = {"attention": spec["attention"]} if spec.get("attention") else {}
    return palm.build(config_of(spec), backend="torch", dtype=dtype, device=DEVICE, **own)


def _job(model: torch.nn.Module, run: Callable[[], dict[str, Any]]) -> Job:
    return {"parameters": sum(p.numel() for p in model.parameters()), "run": run}


def _palm_training(spec: dict[str, Any]) -> Job:
    trainer, data = Trainer(_palm(spec, "float32"), recipe_of(spec)), windows(spec)
    step = 0

    def run() -> dict[str, Any]:
        nonlocal step
        step += 1
        batch, rates = next(data), trainer.recipe.rates(step)
        seconds, outcome = timed(lambda: trainer.step(batch, rates), wait)
        return {"seconds": seconds, "loss": outcome.loss}

    return _job(trainer.model, run)


def _palm_forward(spec: dict[str, Any]) -> Job:
    model = _palm(spec, spec["precision"])
    return _job(model, _forward(model, spec))


def _palm_prefill(spec: dict[str, Any]) -> Job:
    model, (tokens, size) = _palm(spec, spec["precision"]), prompt(spec)
    lengths = np.full(len(tokens), tokens.shape[1])
    return _job(model, lambda: {"seconds": timed(lambda: Decoder(model, tokens, lengths, size), wait)[0]})


def _palm_decode(spec: dict[str, Any]) -> Job:
    model, (tokens, size) = _palm(spec, spec["precision"]), prompt(spec)
    lengths = np.full(len(tokens), tokens.shape[1])

    def run() -> dict[str, Any]:
        decoder = Decoder(model, tokens, lengths, size)
        wait()
        return {"seconds": timed(lambda: greedy(decoder), wait)[0] / NEW_TOKENS}

    return _job(model, run)


def _peer(spec: dict[str, Any], dtype: str) -> torch.nn.Module:
    model = torch_peers.MODELS[spec["model"]](config_of(spec), spec["length"] + NEW_TOKENS)
    check_size(spec, sum(p.numel() for p in model.parameters()))
    return model.to(DEVICE, getattr(torch, dtype))


def _precision(spec: dict[str, Any]) -> AbstractContextManager[Any]:
    """Master weights in float32 and products in bfloat16, as palm's trainer has them."""
    if spec["precision"] == "float32":
        return nullcontext()
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


def _peer_training(spec: dict[str, Any]) -> Job:
    model, data = _peer(spec, "float32"), windows(spec)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )

    def step(batch: np.ndarray) -> float:
        tokens = on_device(batch)
        optimizer.zero_grad()
        with _precision(spec):
            logits = torch_peers.logits(model(tokens[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    def run() -> dict[str, Any]:
        batch = next(data)
        seconds, loss = timed(lambda: step(batch), wait)
        return {"seconds": seconds, "loss": loss}

    return _job(model, run)


def _forward(model: torch.nn.Module, spec: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    data = windows(spec)

    def run() -> dict[str, Any]:
        tokens = on_device(next(data)[:, :-1])
        with torch.no_grad():
            return {"seconds": timed(lambda: model(tokens), wait)[0]}

    return run


def _peer_forward(spec: dict[str, Any]) -> Job:
    model = _peer(spec, spec["precision"]).eval()
    return _job(model, _forward(model, spec))


def _peer_prefill(spec: dict[str, Any]) -> Job:
    """The prompt's forward pass; Falcon's fills its cache and gives the last logits alone, as palm's does."""
    model = _peer(spec, spec["precision"]).eval()
    tokens, size = prompt(spec)
    ids = on_device(tokens)

    def work() -> object:
        if spec["model"] != "falcon":
            return model(ids)
        return model(ids, cache=torch_peers.cache(model, spec["cache"], size), logits_to_keep=1)

    def run() -> dict[str, Any]:
        with torch.no_grad():
            return {"seconds": timed(work, wait)[0]}

    return _job(model, run)


def _peer_decode(spec: dict[str, Any]) -> Job:
    """Greedy tokens from Falcon's cache; the originals have none: one new token is one forward pass."""
    model = _peer(spec, spec["precision"]).eval()
    if spec["model"] != "falcon":
        ids = on_device(next(windows(spec))[:, :-1])
        whole = lambda: model(ids)[:, -1].argmax(-1).tolist()  # noqa: E731

        def run() -> dict[str, Any]:
            with torch.no_grad():
                return {"seconds": timed(whole, wait)[0]}

        return _job(model, run)
    tokens, size = prompt(spec)
    ids = on_device(tokens)

    def cached() -> dict[str, Any]:
        with torch.no_grad():
            cache = torch_peers.cache(model, spec["cache"], size)
            new = model(ids, cache=cache, logits_to_keep=1).logits.argmax(-1)
            wait()
            return {"seconds": timed(lambda: _continue(model, new, cache), wait)[0] / NEW_TOKENS}

    return _job(model, cached)


def _continue(model: torch.nn.Module, new: torch.Tensor, cache: Any) -> None:
    for _ in range(NEW_TOKENS):
        new = model(new, cache=cache).logits.argmax(-1)
        new.tolist()  # whoever generates text reads each token


PALM = {
    "training": _palm_training,
    "forward": _palm_forward,
    "prefill": _palm_prefill,
    "decode": _palm_decode,
}
PEERS = {
    "training": _peer_training,
    "forward": _peer_forward,
    "prefill": _peer_prefill,
    "decode": _peer_decode,
}

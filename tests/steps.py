"""One training step of a small model, in PyTorch and in JAX, with optimisers that have taken steps before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

LR, EPS, DECAY, BETAS, CLIP = 1e-2, 1e-8, 0.1, (0.9, 0.95), 0.5
EARLIER = 3
_RNG = np.random.default_rng(0)
BATCH = (_RNG.integers(0, 11, (4, 6)), _RNG.integers(0, 11, (4, 6)))


class Net(nn.Module):
    """Tokens to logits: an embedding, a norm with a scale, a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(11, 8))
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(8))
        self.hidden = nn.Parameter(torch.randn(16, 8) * 0.3)
        self.out = nn.Parameter(torch.randn(11, 16) * 0.3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding[ids]
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        return torch.tanh(x @ self.hidden.T) @ self.out.T


def rate(step: int) -> float:
    """The learning rate of a step, which begin at 0."""
    return LR * 0.9**step


class Torch:
    """A model and its optimizer after a few steps, and the step they take next."""

    def __init__(self, optimizer: Callable[..., Any] = torch.optim.AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        self.net = Net()
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        groups = [
            {"params": matrices, "weight_decay": DECAY},
            {"params": [self.net.scale], "weight_decay": 0.0},
        ]
        self.optimizer = optimizer(groups, lr=LR, eps=EPS, betas=BETAS, **options)
        for step in range(EARLIER):
            self.step(step, *map(torch.as_tensor, BATCH))

    def step(self, step: int, ids: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        return {"loss": loss, "norm": norm, **dict(self.net.named_parameters())}

    def program(self) -> Callable[..., Any]:
        """The next step, as a function of the batch that closes over model and optimizer."""

        def torch_step(ids: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
            return self.step(EARLIER, ids, targets)

        return torch_step

    def state(self, name: str) -> dict[str, np.ndarray]:
        """A moment of every parameter."""
        held = self.optimizer.state
        return {n: held[p][name].numpy().copy() for n, p in self.net.named_parameters()}


def loss_of(params: Any, ids: Any, targets: Any) -> Any:
    """The model and its loss in JAX."""
    x = params["embedding"][ids]
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * params["scale"]
    logits = jnp.tanh(x @ params["hidden"].T) @ params["out"].T
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - picked).mean()


def clipped(grads: Any, floor: float = 1e-6) -> tuple[Any, Any]:
    """Gradients of at most the norm CLIP, as PyTorch clips them, and their norm before."""
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads.values()))
    factor = jnp.minimum(CLIP / (norm + floor), 1.0)  # the clip
    return {name: g * factor for name, g in grads.items()}, norm


def matrices(params: Any) -> Any:
    """Which parameters decay."""
    return {name: p.ndim > 1 for name, p in params.items()}


def optax_step(optimizer: Any, held: Torch, clip: Callable[..., Any] = clipped) -> Callable[..., Any]:
    """The next step with one of optax's optimisers, which takes over the moments of PyTorch's."""
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in held.net.named_parameters()}
    moments = [{n: jnp.asarray(x) for n, x in held.state(s).items()} for s in ("exp_avg", "exp_avg_sq")]
    count = jnp.asarray(EARLIER, jnp.int32)

    def taken_over(state: Any) -> Any:
        if isinstance(state, optax.ScaleByAdamState):
            return optax.ScaleByAdamState(count, *moments)
        return optax.ScaleByScheduleState(count) if isinstance(state, optax.ScaleByScheduleState) else state

    known = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    state = jax.tree.map(taken_over, optimizer.init(params), is_leaf=lambda x: isinstance(x, known))

    def jax_step(ids: Any, targets: Any) -> dict[str, Any]:
        loss, grads = jax.value_and_grad(loss_of)(params, ids, targets)
        grads, norm = clip(grads)
        updates, _ = optimizer.update(grads, state, params)
        return {"loss": loss, "norm": norm, **optax.apply_updates(params, updates)}

    return jax_step


def adamw(**changed: Any) -> Any:
    """optax.adamw with the settings of the PyTorch side."""
    own = {"learning_rate": rate, "b1": BETAS[0], "b2": BETAS[1], "eps": EPS, "weight_decay": DECAY}
    return optax.adamw(**{**own, "mask": matrices, **changed})

"""Your own training loop in PyTorch: palm gives the model, everything else is ordinary torch.

    python examples/train_torch.py

The model is an `nn.Module`. It is trained with `torch.optim.AdamW`, saved, and loaded in JAX.
"""

import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import palm

TEXT = b"the quick brown fox jumps over the lazy dog. " * 200
# Resolved, so that it is one and the same model in both frameworks (rotary positions, LayerNorm).
CONFIG = palm.PaLMConfig(num_tokens=256, dim=64, depth=2, heads=4, dim_head=16).resolve("jax")
STEPS, BATCH, LENGTH = 60, 8, 64


def batches(seed: int = 0):
    """Random windows of the text: ids (batch, length + 1)."""
    ids, rng = np.frombuffer(TEXT, np.uint8).astype(np.int64), np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(ids) - LENGTH, BATCH)
        yield torch.as_tensor(np.stack([ids[start : start + LENGTH + 1] for start in starts]))


def train(model: nn.Module) -> list[float]:
    """Train in place and return the loss of each step, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    losses = []
    for _, ids in zip(range(STEPS), batches(), strict=False):
        logits = model(ids[:, :-1])  # (batch, length, num_tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.set_num_threads(1)  # the model is too small for more
    model = palm.build(CONFIG, backend="torch", seed=0)
    losses = train(model)
    print(f"loss: {losses[0]:.2f} nats at first, {losses[-1]:.2f} after {STEPS} steps")
    assert losses[-1] < losses[0] / 2

    with tempfile.TemporaryDirectory() as folder:
        palm.save(model, f"{folder}/checkpoint")  # safetensors and JSON: either framework reads it
        in_jax = palm.load(f"{folder}/checkpoint", backend="jax")
    comparison = palm.compare(model, in_jax, np.frombuffer(TEXT[:64], np.uint8))
    print(comparison.verdict)
    assert comparison.agree


if __name__ == "__main__":
    main()

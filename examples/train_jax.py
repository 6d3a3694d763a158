"""Your own training loop in JAX: palm gives the model, Equinox and optax do the rest.

    python examples/train_jax.py

The model is an `eqx.Module`. It is trained with `optax.adamw`, saved, and loaded in PyTorch.
"""

import tempfile

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

import palm

TEXT = b"the quick brown fox jumps over the lazy dog. " * 200
# Resolved, so that it is one and the same model in both frameworks (rotary positions, LayerNorm).
CONFIG = palm.PaLMConfig(num_tokens=256, dim=64, depth=2, heads=4, dim_head=16).resolve("jax")
STEPS, BATCH, LENGTH = 60, 8, 64
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3, weight_decay=0.01))


def batches(seed: int = 0):
    """Random windows of the text: ids (batch, length + 1)."""
    ids, rng = np.frombuffer(TEXT, np.uint8).astype(np.int32), np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(ids) - LENGTH, BATCH)
        yield jnp.asarray(np.stack([ids[start : start + LENGTH + 1] for start in starts]))


def loss_of(model, ids):
    """Mean cross-entropy of the next token, in nats."""
    logits = model(ids[:, :-1])  # (batch, length, num_tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


@eqx.filter_jit
def update(model, state, ids):
    """One step: the new model, the new optimizer state, and the loss before the step."""
    loss, grads = eqx.filter_value_and_grad(loss_of)(model, ids)
    updates, state = OPTIMIZER.update(grads, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state, loss


def main() -> None:
    model = palm.build(CONFIG, backend="jax", seed=0)
    state, losses = OPTIMIZER.init(eqx.filter(model, eqx.is_array)), []
    for _, ids in zip(range(STEPS), batches(), strict=False):
        model, state, loss = update(model, state, ids)
        losses.append(float(loss))
    print(f"loss: {losses[0]:.2f} nats at first, {losses[-1]:.2f} after {STEPS} steps")
    assert losses[-1] < losses[0] / 2

    with tempfile.TemporaryDirectory() as folder:
        palm.save(model, f"{folder}/checkpoint")  # safetensors and JSON: either framework reads it
        in_torch = palm.load(f"{folder}/checkpoint", backend="torch")
    comparison = palm.compare(model, in_torch, np.frombuffer(TEXT[:64], np.uint8))
    print(comparison.verdict)
    assert comparison.agree


if __name__ == "__main__":
    main()

# %% [markdown]
# # Debug a port
#
# You have written a model again in another framework, with the same weights, and its logits do not match.
# palm tells you which mistake your port makes. You need two things: palm's model with your weights, and your
# port as a function from token ids to logits.

# %%
import numpy as np

import palm
from palm.testing import assert_agree

config = palm.PaLMConfig(num_tokens=64, dim=32, depth=2, heads=2, dim_head=16, init="reference").resolve(
    "jax"
)
model = palm.build(config, backend="torch", seed=0)
weights = {name: array.astype(np.float64) for name, array in palm.to_numpy(model).items()}

# %% [markdown]
# ## The port
#
# This port is plain NumPy. It has two mistakes: it rotates the wrong pairs in the rotary embedding, and it
# does not scale the queries.


# %%
def norm(x, scale):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale


def rotary(x):
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]  # mistake 1: PaLM rotates the pairs (2p, 2p + 1)
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    )


def query_scale():
    return 1.0  # mistake 2: PaLM multiplies the queries by dim_head ** -0.5


def attention(y, block):
    q = (y @ weights[f"{block}.attention.query"]).reshape(*y.shape[:-1], 2, 16).swapaxes(-2, -3)
    k, v = y @ weights[f"{block}.attention.key"], y @ weights[f"{block}.attention.value"]
    scores = rotary(q) @ rotary(k).swapaxes(-1, -2) * query_scale()
    scores = np.where(np.tri(len(y), dtype=bool), scores, -np.inf)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    heads = exponentials / exponentials.sum(-1, keepdims=True) @ v
    return heads.swapaxes(-2, -3).reshape(len(y), 32) @ weights[f"{block}.attention.out"]


def feedforward(y, block):
    gate, up = y @ weights[f"{block}.feedforward.gate"], y @ weights[f"{block}.feedforward.up"]
    return (gate / (1 + np.exp(-gate)) * up) @ weights[f"{block}.feedforward.down"]


def my_port(ids):
    x = weights["embedding"][ids]
    for block in ("blocks.0", "blocks.1"):
        y = norm(x, weights[f"{block}.norm"])
        x = x + attention(y, block) + feedforward(y, block)
    return norm(x, weights["norm"]) @ weights["embedding"].T


# %% [markdown]
# ## Ask for the cause
#
# `palm.compare` takes the port, the model and some token ids. Use a few dozen different ids, so that every
# mistake has an effect.

# %%
ids = np.arange(40)
comparison = palm.compare(my_port, model, ids)
print(comparison.verdict)
assert not comparison.agree
causes = comparison.likenesses[0].cause
assert "rotary layout" in causes
assert "query scale" in causes

# %% [markdown]
# ## Correct one mistake
#
# The verdict names both mistakes. Correct the query scale first, and ask again: one mistake is left.


# %%
def query_scale():
    return 16**-0.5


comparison = palm.compare(my_port, model, ids)
print(comparison.verdict)
assert comparison.likenesses[0].cause == "rotary layout"


# %% [markdown]
# ## Correct the other one
#
# With the right pairs the port agrees with palm. `palm.testing.assert_agree` makes this a test that you can
# keep.


# %%
def rotary(x):
    angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1])
    a, b = x[..., ::2], x[..., 1::2]
    pairs = [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)]
    return np.stack(pairs, -1).reshape(x.shape)


comparison = palm.compare(my_port, model, ids)
print(comparison.verdict)
assert comparison.agree
assert_agree(my_port, model, ids)

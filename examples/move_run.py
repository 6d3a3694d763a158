# %% [markdown]
# # Move a training run to the other framework
#
# A run starts in JAX, goes on in PyTorch, and writes the same text in both.

# %%
import tempfile
from pathlib import Path

import numpy as np

import palm

folder = Path(tempfile.mkdtemp())
text = b"the quick brown fox jumps over the lazy dog. " * 200
config = palm.PaLMConfig(num_tokens=256, dim=64, depth=2, heads=4, dim_head=16)
recipe = palm.recipe("adamw", steps=40, batch=8, length=64, warmup=5, learning_rate=3e-3)

# %% [markdown]
# ## Start in JAX
#
# `palm.train` writes checkpoints into the run's folder. Text is given as bytes here; a path works too.

# %%
started = palm.train(config, recipe, text, backend="jax", out=folder / "run")
print(f"step {started.step}: loss {started.log[-1]['loss']:.3f} nats, in JAX")

# %% [markdown]
# ## Go on in PyTorch
#
# `palm.resume` reads the newest checkpoint. Weights, optimizer state and the position in the data move with
# it. The text was not in a file, so it is given again.

# %%
moved = palm.resume(folder / "run", backend="torch", steps=60, data=text)
print(f"step {moved.step}: loss {moved.log[-1]['loss']:.3f} nats, in PyTorch")

# %% [markdown]
# ## Compare with a run that stayed in JAX
#
# The same 60 steps in JAX alone end with the same losses, to rounding.

# %%
stayed = palm.train(config, recipe, text, backend="jax", out=folder / "stayed")
stayed = palm.resume(folder / "stayed", backend="jax", steps=60, data=text)
losses = [np.array([line["loss"] for line in run.log[-20:]]) for run in (moved, stayed)]
print(f"largest difference of the loss: {np.abs(losses[0] - losses[1]).max():.1e} nats")
assert np.abs(losses[0] - losses[1]).max() < 1e-4

# %% [markdown]
# ## Generate in both
#
# `palm.load` takes the newest checkpoint of a run. One checkpoint and one seed give the same tokens in both
# frameworks.

# %%
in_torch, in_jax = (palm.load(folder / "run", backend=backend) for backend in ("torch", "jax"))
sampling = {"max_new_tokens": 60, "temperature": 0.5, "seed": 1}
texts = [palm.generate(model, "the quick", **sampling).text for model in (in_torch, in_jax)]
print(texts[0])
assert texts[0] == texts[1]

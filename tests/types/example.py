"""palm as its users call it: `nox -s types` checks that no expression here is of type Any. Never run."""

from pathlib import Path
from typing import assert_type

import jax.numpy as jnp
import numpy as np
import torch

import palm
from palm.backends import JaxModel, Model, TorchModel
from palm.parity.blackbox.result import ForeignComparison
from palm.spec.arrays import Array, Ids
from palm.testing import assert_agree

config = palm.PaLMConfig(num_tokens=256, dim=64, depth=2, heads=4, dim_head=16)
assert_type(config.resolve("jax"), palm.PaLMConfig)
assert_type(palm.preset("tiny", depth=3), palm.PaLMConfig)

# Models: the class follows from the backend's name.
t = palm.build(config, backend="torch", seed=0, dtype="float32")
j = palm.build(config, backend="jax")
assert_type(t, TorchModel)
assert_type(j, JaxModel)
assert_type(palm.convert(t, backend="jax"), JaxModel)
assert_type(palm.load("checkpoint", backend="torch"), TorchModel)
assert_type(palm.from_upstream("weights.pt", "palm_pytorch.palm_lite", backend="jax"), JaxModel)
name = palm.backend_of(t)
either = palm.build(config, backend=name)
assert_type(either, Model)

# Weights, logits, gradients.
weights = palm.to_numpy(t)
assert_type(palm.from_numpy(config, weights, backend="torch"), TorchModel)
tokens = np.arange(16)
assert_type(t(torch.from_numpy(tokens)), torch.Tensor)
logits = j(jnp.asarray(tokens))
print(logits.shape)
loss, gradients = palm.value_and_grad(t, tokens)
assert_type(loss, float)
print(gradients["embedding"].shape, palm.activations(j, tokens)["logits"].dtype)
assert_type(palm.save(t, "checkpoint"), Path)
assert_type(palm.export("checkpoint", "folder", format="transformers", license="mit"), Path)
assert_type(palm.from_hub("me/my-palm", backend="jax"), JaxModel)
assert_type(palm.from_hub("me/my-palm", backend=name, revision="main"), Model)
assert_type(palm.push_to_hub("RUN", "me/my-palm", private=True).commit, str)

# The instrument.
found = palm.compare(t, j, tokens)
assert_type(found, palm.Comparison)
assert_type(found.agree, bool)
print(found.verdict, found.ratios["logits"], [finding.name for finding in found.findings])
print([diagnosis.sentence for diagnosis in found.diagnoses])


def port(ids: Ids) -> Array:
    """Somebody's own model."""
    return np.zeros((*ids.shape, 256))


assert_type(palm.compare(port, t, tokens), ForeignComparison)
assert_type(palm.compare("one-bundle", "another-bundle"), palm.Comparison)
assert_type(palm.record(t, tokens, "bundle"), Path)
assert_agree(t, j, tokens)

# Runs and texts.
recipe = palm.recipe("bytes", steps=100)
assert_type(recipe, palm.Recipe)
trained = palm.train(config, recipe, "book.txt", backend="torch", out="RUN")
assert_type(trained.model, TorchModel)
print(trained.step, trained.path, trained.log[-1]["loss"])
assert_type(palm.resume("RUN", backend="jax").model, JaxModel)
assert_type(palm.resume("RUN").model, Model)
text = palm.generate(trained.model, "The ", max_new_tokens=20)
assert_type(text, palm.Generation)
assert_type(palm.generate(j, ["The ", "A "]), list[palm.Generation])
print(text.text, text.tokens.shape)

"""Models on a mesh of two devices, whose axes JAX makes explicit unless told otherwise."""

import json

import pytest
from cases import python

CODE = """
import json, os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import palm
from palm.jax_impl import PaLM, next_token_loss

architecture = sys.argv[1]
config = palm.PaLMConfig(num_tokens=14, dim=8, depth=1, heads=2, dim_head=4).resolve(architecture)
ids = jnp.arange(16).reshape(2, 8) % 13

@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def everything(model, tokens):
    logits = model(tokens)
    return next_token_loss(logits, tokens), logits

def close(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(np.asarray(x), np.asarray(y), rtol=1e-4, atol=1e-5) for x, y in pairs)

alone = palm.build(config, backend="jax")
expected = everything(alone, ids)
taps = palm.activations(alone, np.asarray(ids))
greedy = {"max_new_tokens": 2, "temperature": 0}
continued = palm.generate(alone, [1, 2, 3], **greedy).tokens.tolist()
mesh = jax.make_mesh((2,), ("x",))
assert mesh.axis_types == (AxisType.Explicit,)
found = {}

def placed(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))

with jax.set_mesh(mesh):
    model = palm.build(config, backend="jax")
    columns = jax.tree.map(lambda leaf: placed(leaf, *[None] * (leaf.ndim - 1), "x"), model)
    whole = eqx.filter_shard(model, NamedSharding(mesh, P()))
    linear = eqx.nn.Linear(8, 8, key=jax.random.key(0))
    jax.eval_shape(lambda: PaLM(config, key=jax.random.key(0)))  # shardings are refused while tracing
    for name, (own, tokens) in {
        "as built": (model, ids),
        "other tokens": (model, ids[::-1]),
        "sharded tokens": (whole, placed(ids, "x")),
        "sharded weights": (columns, ids),
    }.items():
        got = everything(own, tokens)
        (_, logits), grads = got
        specs = logits.sharding.spec, grads.norm.weight.sharding.spec
        found[name] = [close(got, expected), *map(str, specs)]
    found["activations"] = close(whole.activations(placed(ids, "x")), taps)
    found["generate"] = palm.generate(whole, [1, 2, 3], **greedy).tokens.tolist() == continued
    try:
        palm.generate(columns, [1, 2, 3], **greedy)
    except palm.BackendError as error:
        found["refusal"] = str(error)
    found["eqx.nn.Linear"] = str(jax.vmap(linear)(placed(np.ones((2, 8), np.float32), "x")).sharding.spec)
# By the arrays' own mesh, without jax.set_mesh.
found["unset, ids"] = close(whole(placed(ids, "x")), expected[0][1])
found["unset, columns"] = close(columns.activations(ids), taps)
print(json.dumps(found))
"""


@pytest.mark.whole
@pytest.mark.parametrize("architecture", ["torch", "jax"])
def test_models_compute_the_same_on_a_mesh_of_explicit_axes(architecture):
    done = python(CODE, architecture, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name in ("as built", "sharded tokens", "sharded weights"):
        assert found[name][0], name
    assert not found["other tokens"][0]  # the control
    assert found["activations"]
    assert found["generate"]
    assert "weights must be whole on each device" in found["refusal"]
    assert "got model.embedding.weight of" in found["refusal"]
    assert found["unset, ids"]
    assert found["unset, columns"]
    # Sequences stay where they were, as rows do in Equinox's Linear; gradients are where their weights are.
    for where in (found["sharded tokens"][1], found["eqx.nn.Linear"], found["sharded weights"][2]):
        assert "'x'" in where
    assert "'x'" not in found["sharded weights"][1] + found["sharded tokens"][2]

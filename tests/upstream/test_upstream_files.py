"""The same weights by every way they can come: live, as state, as leaves, in each kind of file."""

from __future__ import annotations

import numpy as np
import pytest

from palm.spec.parameters import DTYPES
from palm.upstream.read import from_upstream, read_upstream

TORCH = ("palm_pytorch.palm_lite", "palm_pytorch.palm_pytorch")
JAX = ("palm_jax.palm", "palm_jax.palm_lite")


def assert_same(one, other):
    (config, arrays), (other_config, other_arrays) = one, other
    assert config == other_config
    assert list(arrays) == list(other_arrays)
    for name, array in arrays.items():
        assert array.dtype == other_arrays[name].dtype
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)


def save(original, path):
    """Write an original's weights as its users would."""
    if path.suffix in (".pt", ".pth"):
        import torch

        torch.save(original.model.state_dict(), path)
    elif path.suffix == ".eqx":
        import equinox

        equinox.tree_serialise_leaves(path, original.model)
    elif path.suffix == ".npz":
        np.savez(path, **original.tensors())
    elif original.source in TORCH:
        from safetensors.torch import save_model

        save_model(original.model, path)  # leaves one of the two tied tensors out
    else:
        from safetensors.numpy import save_file

        save_file(original.tensors(), path)


def cast(original, dtype):
    """The original with its weights in another precision."""
    if original.source in TORCH:
        import torch

        model = original.model.to(getattr(torch, dtype))
    else:
        import jax

        model = jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), original.model)
    return type(original)(original.source, model)


@pytest.mark.parametrize(
    ("source", "suffix"),
    [(source, suffix) for source in TORCH for suffix in (".pt", ".pth", ".safetensors", ".npz")]
    + [(source, suffix) for source in JAX for suffix in (".eqx", ".safetensors", ".npz")],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_files(originals, tmp_path, source, suffix, dtype):
    original = cast(originals.build(source), dtype)
    path = tmp_path / f"weights{suffix}"
    save(original, path)
    live = read_upstream(original.model, source)
    assert {array.dtype for array in live[1].values()} == {DTYPES[dtype]}
    assert_same(read_upstream(path, source), live)
    assert_same(read_upstream(str(path), source), live)


def test_states(originals, source):
    original = originals.build(source)
    live = read_upstream(original.model, source)
    assert_same(read_upstream(original.tensors(), source), live)
    if source in TORCH:
        assert_same(read_upstream(original.model.state_dict(), source), live)
        assert_same(read_upstream(dict(original.model.state_dict(keep_vars=True)), source), live)
    else:
        import jax

        leaves = jax.tree_util.tree_leaves(original.model)
        assert_same(read_upstream(leaves, source), live)
        assert_same(read_upstream([np.asarray(leaf) for leaf in leaves], source), live)


def test_a_model_from_a_file_is_the_live_one(originals, tmp_path, backend):
    import palm

    original = originals.build("palm_jax.palm")
    save(original, tmp_path / "weights.eqx")
    options = {"source": "palm_jax.palm", "backend": backend, "dtype": "float32"}
    one = palm.to_numpy(from_upstream(tmp_path / "weights.eqx", **options))
    other = palm.to_numpy(from_upstream(original.model, **options))
    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_neither_framework_is_imported_for_files_without_torch(originals, run_python, tmp_path, source):
    original = originals.build(source)
    paths = [tmp_path / f"weights{suffix}" for suffix in ((".eqx",) if source in JAX else ())]
    paths += [tmp_path / "weights.safetensors", tmp_path / "weights.npz"]
    for path in paths:
        save(original, path)
    program = (
        "import sys; from palm.upstream.read import read_upstream; source, *paths = sys.argv[1:]; "
        "print([read_upstream(path, source)[0].heads for path in paths]); "
        "assert not {'torch', 'jax', 'equinox', 'palm_jax', 'palm_pytorch'} & set(sys.modules)"
    )
    assert run_python(program, source, *paths).strip() == str([3] * len(paths))


def test_a_jax_file_does_not_tell_its_source(originals, tmp_path):
    """Documented: shapes alone also fit the other jax source, with other heads."""
    save(originals.build("palm_jax.palm", heads=4, dim_head=6), tmp_path / "weights.eqx")
    config, _ = read_upstream(tmp_path / "weights.eqx", "palm_jax.palm_lite")
    assert (config.heads, config.dim_head) == (2, 12)

"""Every attention path, forward and backward, against the textbook in float64; and what it holds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import TORCH_DEVICE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import palm
from palm import jax_impl, torch_impl
from palm.backends import ATTENTION_PATHS
from palm.spec.rounding import UNIT_ROUNDOFF, rms

WINGS = {"torch": torch_impl, "jax": jax_impl}
# Paths that need an accelerator or have no ALiBi.
ON_GPU, ON_TPU, ROTARY_ONLY = {"flex", "cudnn"}, {"splash", "pallas"}, {"sdpa", "cudnn", "splash"}
PATHS = [
    (wing, path, positions)
    for wing in WINGS
    for path in ATTENTION_PATHS[wing]
    for positions in ("alibi", "rotary")
    if path != "auto" and not (path in ROTARY_ONLY and positions == "alibi")
]
E = 16


def skip_what_is_not_here(path: str, platform: str) -> None:
    if path in ON_GPU and platform != "gpu":
        pytest.skip(f"{path} runs on a GPU only: --platform gpu")
    if path in ON_TPU and platform != "tpu":
        pytest.skip(f"{path} runs on a TPU only: --platform tpu")


def inputs(heads: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(heads * 1000 + length)
    q, ahead = rng.standard_normal((2, 2, length, heads, E))
    return [2 * q, *rng.standard_normal((2, 2, length, E)), ahead]


def results(wing: str, path: str, positions: str, arrays: list[np.ndarray], dtype: str, platform: str):
    """The path's output, and its gradients with respect to q, k and v."""
    heads = arrays[0].shape[2]
    config = palm.PaLMConfig(num_tokens=8, dim=16, depth=1, heads=heads, dim_head=E, positions=positions)
    attend = WINGS[wing].ATTENTION[path]
    if wing == "torch":
        device, kind = torch.device(TORCH_DEVICE[platform]), getattr(torch, dtype)
        *qkv, ahead = (torch.from_numpy(x).to(device, kind) for x in arrays)
        wide = torch.promote_types(kind, torch.float32)
        slopes = torch_impl.alibi_slopes(config, device=device, dtype=wide) if positions == "alibi" else None
        qkv = [x.requires_grad_() for x in qkv]
        out = attend(*qkv, slopes)
        found = [out.detach(), *torch.autograd.grad(out, qkv, ahead)]
        return [x.double().cpu().numpy() for x in found]
    device = jax.devices(platform)[0]
    *qkv, ahead = (jax.device_put(np.asarray(x).astype(dtype), device) for x in arrays)
    wide = jnp.promote_types(dtype, jnp.float32)
    slopes = jax_impl.alibi_slopes(config, dtype=wide) if positions == "alibi" else None
    with jax.default_matmul_precision("highest"):
        out, backward = jax.vjp(lambda q, k, v: attend(q, k, v, slopes), *qkv)
        return [np.asarray(x).astype(np.float64) for x in (out, *backward(ahead))]


def errors(found: list[np.ndarray], exact: list[np.ndarray]) -> list[float]:
    return [rms(a - b) / rms(b) if rms(b) > 1e-12 else rms(a - b) for a, b in zip(found, exact, strict=True)]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("length", [1, 2, 127, 128, 300])
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize(("wing", "path", "positions"), PATHS)
def test_outputs_and_gradients_are_the_textbooks(wing, path, positions, heads, length, platform):
    skip_what_is_not_here(path, platform)
    arrays = [x.astype(np.float32).astype(np.float64) for x in inputs(heads, length)]
    with jax.enable_x64(True):
        # Of the other wing, so that the textbook is held against one, too.
        other = "jax" if wing == "torch" else "torch"
        exact = results(other, "textbook", positions, arrays, "float64", "cpu")
        assert max(errors(results(wing, path, positions, arrays, "float64", platform), exact)) <= 1e-13
        # 30 roundings of 2^-24: a sum of 300 terms and the products before it.
        bar = 30 * UNIT_ROUNDOFF["float32"]
        assert max(errors(results(wing, path, positions, arrays, "float32", platform), exact)) <= bar


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("wing", "path", "positions"), PATHS)
def test_bfloat16_is_off_by_its_rounding_alone(wing, path, positions, platform):
    skip_what_is_not_here(path, platform)
    arrays = [np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64) for x in inputs(8, 300)]
    with jax.enable_x64(True):
        exact = results(wing, "textbook", positions, arrays, "float64", "cpu")
    found = results(wing, path, positions, arrays, "bfloat16", platform)
    assert max(errors(found, exact)) <= 4 * UNIT_ROUNDOFF["bfloat16"]


@pytest.mark.parametrize(("wing", "path", "positions"), PATHS)
def test_a_gradient_of_another_function_is_noticed(wing, path, positions, platform):
    """The control: keys one place off change the gradients by far more than the bars above."""
    skip_what_is_not_here(path, platform)
    arrays = inputs(3, 127)
    with jax.enable_x64(True):
        exact = results(wing, "textbook", positions, arrays, "float64", "cpu")
        moved = [arrays[0], np.roll(arrays[1], 1, 1), *arrays[2:]]
        assert min(errors(results(wing, path, positions, moved, "float64", platform), exact)) > 1e-2


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.size = max(self.size, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)), 0)
        return made


def largest_in(jaxpr: Any) -> int:
    size = 0
    for equation in jaxpr.eqns:
        size = max(size, *(v.aval.size for v in equation.outvars if hasattr(v.aval, "size")), 0)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                size = max(size, largest_in(inner))
    return size


def largest_array(wing: str, attention: str, positions: str, length: int, remat: bool) -> int:
    """Of a model's whole forward and backward pass."""
    config = palm.PaLMConfig(
        num_tokens=8, dim=16, depth=2, heads=4, dim_head=8, positions=positions, share_kv=False
    ).resolve("jax")
    model = palm.build(config, backend=wing, attention=attention)
    tokens = np.zeros((1, length), np.int32)
    if wing == "torch":
        with Largest() as watch:
            model(torch.from_numpy(tokens), remat=remat).sum().backward()
        return watch.size
    gradient = jax.grad(lambda model: model(jnp.asarray(tokens), remat=remat).sum())
    return largest_in(jax.make_jaxpr(gradient)(model).jaxpr)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("positions", ["alibi", "rotary"])
@pytest.mark.parametrize("wing", WINGS)
def test_no_tensor_of_a_blockwise_model_grows_faster_than_its_text(wing, positions, remat):
    """Masks that were kept for all blocks at once grew with n²."""
    short, long = (largest_array(wing, "blockwise", positions, n, remat) for n in (1024, 4096))
    assert long <= 4.2 * short
    assert largest_array(wing, "textbook", positions, 1024, remat) >= 1024**2 * 4


@pytest.mark.parametrize(
    ("wing", "path", "positions", "words"),
    [
        (
            "torch",
            "sdpa",
            "alibi",
            'must be a path that has ALiBi where positions="alibi"; got attention="sdpa"',
        ),
        ("torch", "flex", "rotary", 'attention="flex" must be on a GPU'),
        (
            "jax",
            "cudnn",
            "alibi",
            'must be a path that has ALiBi where positions="alibi"; got attention="cudnn"',
        ),
        ("jax", "cudnn", "rotary", 'attention="cudnn" must be on an NVIDIA GPU'),
        ("jax", "splash", "rotary", 'attention="splash" must be on a TPU'),
        ("jax", "pallas", "alibi", 'attention="pallas" must be on a TPU'),
        ("torch", "cudnn", "rotary", "got attention='cudnn', which only backend=\"jax\" has"),
        ("jax", "sdpa", "rotary", "got attention='sdpa', which only backend=\"torch\" has"),
    ],
)
def test_a_path_that_cannot_serve_the_model_is_refused(wing, path, positions, words):
    config = palm.preset("tiny", positions=positions)
    with pytest.raises(palm.ConfigError) as caught:
        palm.build(config, backend=wing, attention=path, device="cpu")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("wing", "positions", "where", "path"),
    [
        ("torch", "alibi", torch.device("cpu"), "blockwise"),
        ("torch", "rotary", torch.device("cpu"), "blockwise"),
        ("torch", "xpos", torch.device("cuda"), "sdpa"),
        ("jax", "xpos", "gpu", "cudnn"),
        ("jax", "xpos", "tpu", "splash"),
        ("torch", "alibi", torch.device("cuda"), "flex"),
        ("torch", "rotary", torch.device("cuda"), "sdpa"),
        ("jax", "alibi", "cpu", "blockwise"),
        ("jax", "rotary", "cpu", "blockwise"),
        ("jax", "alibi", "gpu", "blockwise"),
        ("jax", "rotary", "gpu", "cudnn"),
        ("jax", "alibi", "tpu", "pallas"),
        ("jax", "rotary", "tpu", "splash"),
    ],
)
def test_the_path_that_auto_takes(wing, positions, where, path):
    config = palm.preset("tiny", positions=positions).resolve(wing)
    assert WINGS[wing].choose_path("auto", config, where) == path


@pytest.mark.parametrize("length", [1, 127, 128, 129, 640])
def test_flex_attention_sees_the_causal_blocks(length):
    """Formed from numbers of blocks, without a mask of every pair."""
    from palm.torch_impl.paths import flex

    mask = flex._causal(length, "cpu")
    pairs = torch.arange(length)
    expected = flex.flex.create_block_mask(
        lambda b, h, i, j: i >= j, None, None, length, length, device="cpu", BLOCK_SIZE=flex.BLOCK
    )
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert mask.mask_mod(0, 0, pairs[:, None], pairs).equal(pairs[:, None] >= pairs)
    with torch.inference_mode():
        flex._causal.cache_clear()
        made = flex._causal(length, "cpu")
    assert not made.kv_indices.is_inference()

import dataclasses

import equinox as eqx
import numpy as np
import pytest
from support import DTYPES, read, widened

import palm
from palm.spec import functions

KINDS = [(norm, mode) for norm in ("rmsnorm", "layernorm") for mode in ("clamp", "add")]


def config(norm: str, mode: str, eps: float = 1e-5) -> palm.PaLMConfig:
    plain = palm.PaLMConfig(num_tokens=8, dim=48, depth=1, norm=norm, norm_eps=eps, norm_eps_mode=mode)
    return plain.resolve("torch")


def inputs(scale: float = 1.0, mean: float = 0.3) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [scale * (rng.standard_normal((2, 5, 48)) + mean), rng.uniform(0.5, 1.5, 48)]


def normalise(cfg: palm.PaLMConfig):
    def evaluate(wing, x, weight):
        if wing.__name__.endswith("jax_impl"):
            norm = wing.Norm(cfg)
            return eqx.tree_at(lambda norm: norm.weight, norm, weight)(x)
        norm = wing.Norm(cfg, device=x.device, dtype=x.dtype)
        norm.load_state_dict({"weight": weight})
        return norm(x)

    return evaluate


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e3], ids=["unit", "below-eps", "large"])
@pytest.mark.parametrize(("norm", "mode"), KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_differ_by_rounding_only(norm, mode, dtype, scale, platform):
    cfg = config(norm, mode)
    reading = read(normalise(cfg), inputs(scale), dtype, platform)
    exact = functions.normalise(*widened(inputs(scale), dtype), cfg)
    assert not reading.faults(exact, dtype, roundings=8)


def test_variance_survives_a_large_mean_in_float32(platform):
    # E[x²] − E[x]² would lose all digits here: the mean is 3,000 times the deviation.
    cfg, arrays = config("layernorm", "add"), inputs(mean=3e3)
    exact = functions.normalise(*widened(arrays, "float32"), cfg)
    assert not read(normalise(cfg), arrays, "float32", platform).faults(exact, "float32", roundings=4e3)
    one_pass = read(_one_pass, arrays, "float32", platform)
    assert one_pass.faults(exact, "float32", roundings=4e3)


def _one_pass(wing, x, weight):
    variance = (x * x).mean(-1)[..., None] - x.mean(-1)[..., None] ** 2
    return (x - x.mean(-1)[..., None]) / (variance + 1e-5) ** 0.5 * weight


@pytest.mark.parametrize(
    "change",
    [{"norm_eps": 3e-5}, {"norm_eps_mode": "add"}, {"norm": "layernorm"}],
    ids=["eps", "clamp-dropped", "mean-subtracted"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_wrong_eps_convention_or_mean_is_caught(change, dtype, platform):
    cfg = config("rmsnorm", "clamp")
    wrong = dataclasses.replace(cfg, **change)
    reading = read(normalise(wrong), inputs(1e-5), dtype, platform)
    assert reading.faults(functions.normalise(*widened(inputs(1e-5), dtype), cfg), dtype, roundings=8)

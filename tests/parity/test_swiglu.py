import numpy as np
import pytest
from support import DTYPES, read, widened


def inputs() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [4 * rng.standard_normal((3, 7, 40)), rng.standard_normal((3, 7, 40))]


def referee(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_differs_by_rounding_only(dtype, platform):
    reading = read(lambda wing, gate, up: wing.swiglu(gate, up), inputs(), dtype, platform)
    assert not reading.faults(referee(*widened(inputs(), dtype)), dtype, roundings=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swapped_gate_and_up_is_caught(dtype, platform):
    reading = read(lambda wing, gate, up: wing.swiglu(up, gate), inputs(), dtype, platform)
    assert reading.faults(referee(*widened(inputs(), dtype)), dtype, roundings=4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wing_with_swapped_gate_is_caught_by_the_ratio_alone(dtype, platform):
    def evaluate(wing, gate, up):
        swap = wing.__name__.endswith("jax_impl")
        return wing.swiglu(up, gate) if swap else wing.swiglu(gate, up)

    faults = read(evaluate, inputs(), dtype, platform).faults(
        referee(*widened(inputs(), dtype)), dtype, roundings=np.inf
    )
    assert any("ratio" in fault for fault in faults)

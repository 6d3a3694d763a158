"""Options of the whole suite. Nothing here may need a framework: tests/core runs without either."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import Phase, settings

PLATFORMS = ("cpu", "gpu", "tpu")

# Whose signatures `--shapes` checks: what only palm itself calls. Users' values are checked otherwise.
BLOCKS = ("attention", "block", "decode", "feedforward", "linear", "loss", "norm", "paths", "position")
SHAPED = (
    *(f"spec.{module}" for module in ("functions", "forward", "backward")),
    *(f"{wing}_impl.{module}" for wing in ("torch", "jax") for module in BLOCKS),
)

# The suite must say the same thing twice; the deep profile looks further: `--hypothesis-profile=deep`.
# Neither shrinks: an example compiles two models, and what fails is small and printed whole.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
settings.register_profile("suite", derandomize=True, deadline=None, max_examples=5, phases=PHASES)
settings.register_profile("deep", deadline=None, max_examples=100, phases=PHASES)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--platform",
        choices=PLATFORMS,
        default="cpu",
        help="where the parity tests run; one that is absent is an error; the grid runs on this one only",
    )
    parser.addoption(
        "--whole",
        action="store_true",
        help="run every case of every test, also those that are marked `whole` or left out by `sampled`",
    )
    parser.addoption(
        "--shapes",
        action="store_true",
        help="check the shapes and dtypes in the signatures of both wings and the referee at every call",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--shapes"):
        from jaxtyping import install_import_hook

        install_import_hook([f"palm.{module}" for module in SHAPED], "beartype.beartype")
    platform = config.getoption("--platform")
    if platform != "cpu":
        missing = _missing(platform)
        if missing:
            raise pytest.UsageError(f"--platform {platform} was asked for, but {missing} has no such device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--whole"):
        return
    left_out = {item for item in items if item.get_closest_marker("whole")}
    cases: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in items:
        if item not in left_out and item.get_closest_marker("sampled"):
            cases.setdefault((item.path, item.originalname), []).append(item)
    for of_one_test in cases.values():
        [count] = of_one_test[0].get_closest_marker("sampled").args
        left_out |= set(of_one_test) - set(_sample(of_one_test, count))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _sample(cases: list[pytest.Function], count: int) -> list[pytest.Function]:
    """So many cases, each the one that brings most values of parameters, and pairs, that none has so far."""
    left = {case: set(itertools.combinations_with_replacement(_values(case), 2)) for case in cases}
    chosen: list[pytest.Function] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda case: len(left[case]))
        brought = left.pop(best)
        left = {case: pairs - brought for case, pairs in left.items()}
        chosen.append(best)
    return chosen


def _values(case: pytest.Function) -> list[tuple[int, str]]:
    """The values in the name of a case, by place: of `float32-alibi-True`, three."""
    if not hasattr(case, "callspec"):
        raise pytest.UsageError(
            f"a test that is marked `sampled` must have several cases; {case.nodeid} has one"
        )
    return list(enumerate(case.callspec.id.split("-")))


def _missing(platform: str) -> str | None:
    import jax

    try:
        jax.devices(platform)
    except RuntimeError:
        return "jax"
    if platform == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "torch"
    return None


@pytest.fixture(scope="session")
def platform(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--platform")

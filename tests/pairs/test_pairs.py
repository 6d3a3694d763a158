"""Models of `transformers` against those of JAX libraries: right pairs agree, mistakes are on their lines."""

from __future__ import annotations

import pytest
from pairs.mistakes import MISTAKES, Mistake
from pairs.sides import PAIRS, Pair

import palm

# Other libraries' warnings are not ours.
pytestmark = pytest.mark.filterwarnings("default")
FRAMEWORKS = ("torch", "jax")
BY_NAME = {pair.name: pair for pair in PAIRS}
CASES = [(pair, mistake) for pair in PAIRS for mistake in MISTAKES[pair.name]]
# The least fraction of mistakes whose first place is the line that was changed.
BAR = 0.95


@pytest.fixture(scope="module")
def table():
    """What each pair came to; printed at the end."""
    rows: dict[str, list[str]] = {}
    yield rows
    print("\n" + "\n".join(f"{name:18} {'  '.join(cells)}" for name, cells in rows.items()))


@pytest.fixture(scope="module")
def right_lines():
    """Of each mistake, whether its line was shown first."""
    return {}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_right_pair_agrees_in_nearly_every_operation(pair: Pair, table):
    model = pair.torch()
    found = palm.compare(model, pair.port(model.model), pair.inputs, frameworks=FRAMEWORKS)
    cells = [
        f"{100 * share:.0f} % of {count}"
        for share, count in zip(found.aligned, found.operations, strict=True)
    ]
    table[pair.name] = [found.outcome, *cells, f"{found.distance:.0e} apart"]
    assert found.outcome == "agree", found.verdict
    assert min(found.aligned) >= BAR


@pytest.mark.parametrize(("pair", "mistake"), CASES, ids=lambda x: x.name)
def test_a_mistake_makes_a_pair_differ(pair: Pair, mistake: Mistake, right_lines):
    with mistake.sides(pair) as (a, b):
        found = palm.compare(a, b, pair.inputs, frameworks=FRAMEWORKS)
    assert found.outcome == "differ", found.verdict
    first = found.divergences[0]
    right_lines[pair.name, mistake.name] = any(
        site is not None and end in (site.file or "") and text in site.source
        for site in (first.a, first.b)
        for end, text in mistake.at
    )


def test_mistakes_are_shown_on_their_lines(right_lines, table):
    if not right_lines:
        pytest.skip("no mistake was tried")
    for name in dict.fromkeys(name for name, _ in right_lines):
        of_pair = [right for (pair, _), right in right_lines.items() if pair == name]
        table.setdefault(name, []).append(f"{sum(of_pair)} of {len(of_pair)} mistakes on their lines")
    missed = [key for key, right in right_lines.items() if not right]
    assert sum(right_lines.values()) >= BAR * len(right_lines), missed
    print("\nnot on their lines:", missed)


def test_a_published_port_ignores_a_setting():
    """penzai's GPT-NeoX has an eps of its own in the last norm: 1e-6 whatever the configuration says."""
    pair = BY_NAME["GPT-NeoX, penzai"]
    model = Pair(
        pair.name, pair.model, {**pair.settings, "layer_norm_eps": 1e-5}, pair.port, pair.inputs
    ).torch()
    found = palm.compare(model, pair.port(model.model), pair.inputs, frameworks=FRAMEWORKS)
    assert found.outcome == "differ"
    assert [one.a.module for one in found.divergences] == ["model.gpt_neox.final_layer_norm"]

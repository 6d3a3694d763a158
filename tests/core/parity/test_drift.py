"""The verdict on two trainings, on ways made by hand; which weights are followed; what an ulp is."""

import json
import math

import numpy as np
import pytest
from cases import draw_weights, small
from rich.console import Console

import palm
from palm.cli.main import main
from palm.parity.drift.drift import BUTTERFLY_BAR, butterfly, spread_steps
from palm.parity.drift.trajectory import (
    MOST_WEIGHTS,
    Trajectory,
    read_trajectory,
    sample_places,
)
from palm.parity.drift.ulp import moved_by_an_ulp
from palm.parity.report.terminal import print_training
from palm.parity.report.training import training_outcome
from palm.spec.parameters import parameters

CONFIG = small()
START = np.random.default_rng(0).standard_normal(50)


def way(distances, losses=None, dtype=np.float64):
    """A training whose weights are `distances[k]` away from torch's, relative to them, after k updates."""
    weights = np.stack([START * (1 + distance) for distance in distances]).astype(dtype)
    losses = np.linspace(5, 4, len(distances)) if losses is None else np.array(losses)
    return Trajectory(losses, np.ones(len(distances)), weights, parameters=1234)


def control_way(explained):
    """A control that explains a distance of `explained[k]` after k updates: what it adds is in quadrature."""
    squares = np.square([0.0, *explained[1:]])
    return way(explained[0] + np.cumsum(np.sqrt(np.maximum(0, np.diff(squares, prepend=0)))))


def compared(distances, control, **options):
    return butterfly(way([0.0] * len(distances)), way(distances, **options), control_way(control))


def test_distances_and_gaps_are_those_of_their_definition():
    torch, jax = way([0.0, 0.0], [2.0, 1.0]), way([0.0, 1e-3], [2.0, 1.25])
    found = butterfly(torch, jax, way([1e-4, 2e-4], [2.5, 1.0]))
    assert found.distance == pytest.approx([0, 1e-3])
    assert found.control_distance == pytest.approx([0, 1e-4])
    assert list(found.gap) == [0, 0.25]
    assert list(found.control_gap) == [0.5, 0]
    assert (found.largest_gap, found.steps, found.followed, found.parameters) == (0.25, 1, 50, 1234)
    assert found.ratio == pytest.approx(10)


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 20])
def test_a_drift_within_the_bar_is_rounding_and_one_beyond_is_not(steps):
    control = [1e-8 * 1.1**k for k in range(steps + 1)]
    within, beyond = (
        compared([share * BUTTERFLY_BAR * distance for distance in control], control) for share in (0.9, 1.1)
    )
    assert within.agree
    assert within.ratio == pytest.approx(0.9 * BUTTERFLY_BAR, rel=1e-6)
    distance = "the distance between torch and jax is at most"
    assert f"drift apart no faster than torch and its control: {distance} 2.7 times" in within.verdict
    assert not beyond.agree
    assert f"by more than rounding explains, from step 1 on: {distance} 3.3 times" in beyond.verdict


def test_what_is_different_early_counts_though_both_end_far_away():
    control = [min(1e-8 * 2.0**k, 0.1) for k in range(129)]
    early = [min(100 * distance, 0.1) for distance in control]
    assert not compared(early, control).agree
    assert compared(control, control).agree


@pytest.mark.parametrize(("step", "octave"), [(1, 1), (2, 2), (8, 8)])
def test_a_fault_of_one_step_counts_though_it_fades(step, octave):
    control = [1e-8 * (1 + k) for k in range(21)]
    distances = [1e-8 * (1 + k) + 1e-3 * (k >= step) * 4.0 ** (step - k) for k in range(21)]
    found = compared(distances, control)
    assert not found.agree
    assert f"from step {octave} on" in found.verdict
    assert found.octaves[0].first == 1


def test_the_move_of_the_control_itself_explains_nothing():
    assert not compared([0.0] + [1e-5] * 8, [1e-2] + [1e-8] * 8).agree


def test_what_a_control_adds_step_after_step_adds_in_quadrature():
    found = butterfly(way([0.0] * 17), way([0.0] * 17), way([1e-8 * k for k in range(17)]))
    assert found.control_distance[1:] == pytest.approx([1e-8 * k**0.5 for k in range(1, 17)])


def apart(places, more=-2e-3):
    """Sides whose weights move by 1e-3 a step, and one's by `more` in step 1 at `places`; and a control."""
    weights = np.stack([START + 1e-3 * k for k in range(9)])
    rounded = weights + 1e-8 * np.arange(9)[:, None]
    other = rounded.copy()
    other[1:, np.array(places, int)] += more
    return butterfly(*(Trajectory(np.ones(9), np.ones(9), way, 50) for way in (weights, other, rounded)))


def test_a_weight_that_chance_sends_the_other_way_ends_what_can_be_told():
    found = apart([7])
    assert (found.outcome, found.agree, found.chance) == ("cannot tell", False, 1)
    assert found.ratio == pytest.approx(1, rel=0.1)
    assert "in step 1 a few weights went opposite ways" in found.verdict
    assert [octave[:2] for octave in found.octaves] == [(1, 1)]
    assert found.distance[1] > 1e-4  # nothing is left out of what is shown
    assert training_outcome(found.to_dict()) == "cannot tell"


def test_many_such_weights_or_another_size_of_step_are_no_chance():
    assert apart([]).outcome == "agree"
    assert apart([7, 8]).outcome == "differ"
    assert training_outcome(apart([7, 8]).to_dict()) == "differ"
    assert apart([7], more=2e-3).outcome == "differ"
    assert apart([7], more=-1e-4).outcome == "differ"


def test_equal_sides_agree_and_a_control_that_stays_explains_nothing():
    assert compared([0.0] * 9, [1e-8] * 9).agree
    assert compared([0.0] * 9, [0.0] * 9).ratio < 1
    assert not compared([1e-8] * 9, [0.0] * 9).agree


def test_a_run_that_diverges_is_said_to_and_never_agrees():
    losses = [5.0] * 10 + [math.nan, math.inf, 5.0]
    found = compared([1e-9] * 13, [1e-8] * 13, losses=losses)
    assert found.not_finite == {"jax": 10}
    assert not found.agree
    assert "not finite on jax from step 10 on; before that, the distance between torch and" in found.verdict
    assert found.octaves[-1].last == 9
    assert not compared([1e-9], [1e-8], losses=[math.nan]).octaves
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["losses"]["jax"][10:12] == ["nan", "inf"]
    assert plain["gap"][10:12] == ["nan", "inf"]
    assert plain["largest_gap"] == found.largest_gap > 0  # of the steps that have one
    never = compared([1e-9], [1e-8], losses=[math.nan])
    assert math.isnan(never.largest_gap)
    assert math.isnan(never.ratio)
    assert never.verdict == "over 0 training steps loss or gradient is not finite on jax from step 0 on."


def test_both_sides_infinite_at_once_are_no_agreement():
    losses = [5.0, math.inf]
    ways = [way([0.0, 0.0], losses), way([0.0, 0.0], losses), way([1e-8, 1e-8], losses)]
    found = butterfly(*ways)
    assert found.not_finite == {"torch": 1, "jax": 1, "control": 1}
    assert not found.agree
    assert math.isnan(found.gap[1])


def test_plain_values_hold_every_step():
    found = compared([1e-9] * 13, [1e-8] * 13)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["agree"] is True
    assert (plain["verdict"], plain["steps"], plain["bar"]) == (found.verdict, 12, BUTTERFLY_BAR)
    assert plain["octaves"] == [
        {"first": first, "last": last, "ratio": pytest.approx(0.1)}
        for first, last in ((1, 1), (2, 3), (4, 7), (8, 12))
    ]
    for name in ("gap", "control_gap", "distance", "control_distance"):
        assert plain[name] == list(getattr(found, name))
    assert set(plain["losses"]) == set(plain["grad_norms"]) == {"torch", "jax", "control"}


def test_the_terminal_shows_a_few_steps_in_80_columns(capsys):
    print_training(compared([1e-7] * 1001, [1e-8] * 1001).to_dict(), Console(width=80))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert [line.split()[0] for line in printed.splitlines()[1:12]] == list(map(str, spread_steps(1000)))
    assert "DIFFER" in printed


def test_a_few_steps_are_spread_over_all():
    assert spread_steps(1) == [0, 1]
    assert spread_steps(12) == [0, 1, 2, 5, 10, 12]
    assert spread_steps(500) == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]


def test_all_weights_of_a_small_model_are_followed():
    places = sample_places(CONFIG, 20, seed=0)
    sizes = {name: parameter.size for name, parameter in parameters(CONFIG).items()}
    assert {name: len(set(at.tolist())) for name, at in places.items()} == sizes


@pytest.mark.parametrize(("preset", "steps"), [("tiny", 20), ("palm-540b", 20), ("palm-540b", 10**6)])
def test_of_a_large_model_some_of_each_parameter_are_followed(preset, steps):
    config = palm.preset(preset).resolve("torch")
    table, places = parameters(config), sample_places(config, steps, seed=0)
    counts = {name: len(at) for name, at in places.items()}
    count = sum(counts.values())
    assert count == (MOST_WEIGHTS if steps == 20 else len(table))
    assert set(places) == set(table)
    total = sum(parameter.size for parameter in table.values())
    for name, parameter in table.items():
        assert len(set(places[name].tolist())) == counts[name] >= 1
        assert 0 <= places[name].min() <= places[name].max() < parameter.size
        share = (count - len(table)) * parameter.size / total
        assert abs(counts[name] - 1 - share) <= 2 + 1e-3 * share


def test_which_weights_are_followed_is_drawn_from_the_seed():
    config = palm.preset("tiny").resolve("torch")
    first, again, other = (sample_places(config, 20, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["embedding"], other["embedding"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_weight_is_moved_by_one_unit_in_its_last_place(dtype):
    weights = draw_weights(CONFIG, dtype=dtype)
    moved = moved_by_an_ulp(weights, seed=0)
    ups = []
    for name, array in weights.items():
        assert moved[name].dtype == array.dtype
        signed = np.dtype(f"i{array.itemsize}")
        # Neighbours of one sign have neighbouring bit patterns.
        steps = moved[name].view(signed).astype(object) - array.view(signed).astype(object)
        assert {abs(step) for step in steps.ravel()} == {1}
        ups.append((moved[name] > array).ravel())
    assert 0.4 < np.concatenate(ups).mean() < 0.6
    other = moved_by_an_ulp(weights, seed=1)
    assert any(not np.array_equal(moved[name], other[name]) for name in weights)


def test_a_trajectory_is_read_as_it_lies(tmp_path):
    np.save(tmp_path / "weights.npy", np.ones((2, 3), np.float32))
    fields = {"losses": [1.0, math.nan], "grad_norms": [2.0, 3.0], "parameters": 7}
    (tmp_path / "trajectory.json").write_text(json.dumps(fields))
    found = read_trajectory(tmp_path)
    assert found.first_not_finite == 1
    assert (found.weights.shape, found.parameters) == ((2, 3), 7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--train", "-1"], "train must be a whole number of at least 0; got train=-1."),
        (["--train", "2", "--recipe", "soup"], "one of bytes, adamw, paper; got recipe='soup'."),
        (["--recipe", "soup"], "one of bytes, adamw, paper; got recipe='soup'."),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_usage_is_one_line_and_status_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert len(printed.err.splitlines()) == 1

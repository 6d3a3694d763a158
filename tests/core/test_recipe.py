"""The recipe: its schedules are the paper's, its numbers exact, and its errors explain themselves."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from cases import assert_explains

from palm import RECIPES, Cadence, ConfigError, Recipe, preset, recipe
from palm.recipes import Outcome

PAPER = RECIPES["paper"]
RAMPED = Recipe(batch=6, ramp=((4, 10), (5, 2), (9, 14)), accumulate=2)
# Every field away from its default.
OTHER = Recipe(
    optimizer="adafactor",
    steps=70,
    batch=6,
    ramp=((4, 10), (9, 14)),
    length=12,
    accumulate=2,
    learning_rate=0.125,
    schedule="inverse_sqrt",
    warmup=3,
    hold=5,
    final_fraction=0.25,
    beta1=0.5,
    beta2=0.75,
    eps=1e-6,
    weight_decay=0.0625,
    clip=0.0,
    z_loss=0.0,
    precision="float64",
    remat=True,
    validation=0.0,
    pack=0,
    freeze="embedding",
    non_finite="rewind",
    rewind=7,
    skip=8,
    seed=9,
)


def is_rounded(value: float, exact: float | Fraction, units: float = 4) -> bool:
    return abs(Fraction(value) - Fraction(exact)) <= units * Fraction(math.ulp(float(exact)))


@pytest.mark.parametrize(
    ("step", "lr"), [(1, 1e-2), (9_999, 1e-2), (10_000, 1e-2), (40_000, 0.5e-2), (90_000, 1e-2 / 3)]
)
def test_the_papers_rate_holds_for_ten_thousand_steps_and_then_falls_as_the_root(step, lr):
    assert is_rounded(PAPER.lr(step), lr, 1)


def test_the_papers_rate_is_one_over_the_root_of_the_step_from_there_on():
    assert PAPER.lr(40_000) == 0.5e-2
    for step in range(10_000, 255_001, 997):
        assert is_rounded(PAPER.lr(step), 1 / math.sqrt(step)), step
    assert PAPER.lr(10_001) < PAPER.lr(10_000)


@pytest.mark.parametrize(
    ("step", "batch"),
    [
        *((1, 512), (2, 512), (50_000, 512), (50_001, 1024), (115_000, 1024), (115_001, 2048)),
        (255_000, 2048),
    ],
)
def test_the_papers_batch_grows_twice(step, batch):
    assert PAPER.batch_at(step) == batch


def test_the_papers_run_sees_776_billion_tokens():
    """The paper speaks of 780 billion; its steps, batches and length multiply to this."""
    rows = 50_000 * 512 + 65_000 * 1024 + 140_000 * 2048
    assert PAPER.rows_before(PAPER.steps + 1) == rows
    assert round(rows * PAPER.length / 1e9) == 776


@pytest.mark.parametrize("some", [Recipe(), RAMPED, OTHER], ids=["adamw", "ramped", "other"])
def test_the_rows_before_a_step_are_the_batches_of_all_steps_before_it(some):
    for step in range(1, 30):
        assert some.rows_before(step) == sum(some.batch_at(k) for k in range(1, step)), step


@pytest.mark.parametrize("edge", [50_001, 115_001])
def test_the_papers_rows_add_up_across_each_change_of_batch(edge):
    for step in range(edge - 2, edge + 3):
        assert PAPER.rows_before(step + 1) - PAPER.rows_before(step) == PAPER.batch_at(step)


def test_warm_up_is_a_straight_line_to_the_highest_rate():
    for schedule in ("constant", "cosine", "inverse_sqrt"):
        some = Recipe(schedule=schedule, warmup=8, learning_rate=0.5, steps=100)
        assert [some.lr(step) for step in range(1, 9)] == [step / 16 for step in range(1, 9)], schedule


def test_without_warm_up_the_first_rate_is_the_highest():
    for schedule in ("constant", "inverse_sqrt"):
        assert Recipe(schedule=schedule, warmup=0, learning_rate=0.5).lr(1) == 0.5


def test_a_constant_rate_stays():
    some = Recipe(schedule="constant", warmup=4, learning_rate=0.3)
    assert {some.lr(step) for step in (4, 5, 1000, 10**6)} == {0.3}


def test_the_cosine_passes_its_middle_and_ends_at_its_final_fraction():
    some = Recipe(schedule="cosine", steps=110, warmup=10, learning_rate=0.5, final_fraction=0.25)
    assert some.lr(10) == 0.5
    assert is_rounded(some.lr(60), 0.5 * 0.625)
    for step in (110, 111, 10**6):
        assert some.lr(step) == 0.125
    third = 10 + Fraction(100, 3)
    assert some.lr(math.floor(third)) > 0.5 * (0.25 + 0.75 * 0.75) > some.lr(math.ceil(third))
    rates = [some.lr(step) for step in range(10, 111)]
    assert rates == sorted(set(rates), reverse=True)


def test_a_cosine_that_ends_at_zero_is_zero_there():
    assert Recipe(schedule="cosine", steps=20, warmup=0, final_fraction=0).lr(20) == 0.0


def test_a_cosine_whose_warm_up_is_the_whole_run_only_rises():
    some = Recipe(schedule="cosine", steps=10, warmup=20, learning_rate=1.0)
    assert [some.lr(step) for step in (1, 10, 20)] == [0.05, 0.5, 1.0]


def test_the_inverse_root_starts_to_fall_where_both_warm_up_and_hold_are_over():
    held = Recipe(schedule="inverse_sqrt", warmup=4, hold=16, learning_rate=1.0)
    assert [held.lr(step) for step in (2, 4, 16, 64)] == [0.5, 1.0, 1.0, 0.5]
    warmed = Recipe(schedule="inverse_sqrt", warmup=16, hold=4, learning_rate=1.0)
    assert [warmed.lr(step) for step in (4, 8, 16, 64)] == [0.25, 0.5, 1.0, 0.5]


@pytest.mark.parametrize("step", [1, 2, 7, 1000, 255_000])
def test_adafactors_rates_are_the_papers(step):
    rates = PAPER.rates(step)
    assert is_rounded(rates.rest2, math.exp(-0.8 * math.log(step)), 16)
    assert rates.beta2 == 1 - rates.rest2
    assert (rates.lr, rates.beta1, rates.rest1) == (PAPER.lr(step), 0.9, 1 - 0.9)
    assert is_rounded(rates.decay, rates.lr * rates.lr, 1)
    assert (rates.correction1, rates.correction2) == (1.0, 1.0)


def test_adafactors_first_step_forgets_the_moment_it_starts_with():
    assert PAPER.rates(1)[4:6] == (0.0, 1.0)


def test_the_rest_is_not_formed_from_a_rounded_beta2():
    """At k = 10⁹, 1 − β₂ is 6e-8: formed from β₂ in float64 it would be 1e-9 off."""
    step = 10**9
    exact = Fraction(10) ** -8 * Fraction(10 ** Fraction(8, 10))
    rates = dataclasses.replace(PAPER, steps=step).rates(step)
    assert is_rounded(rates.rest2, exact, 16)
    assert not is_rounded(1 - rates.beta2, exact, 1000)


def test_adafactors_decay_is_the_square_of_the_rate_times_the_weight_decay():
    rates = dataclasses.replace(OTHER, schedule="constant", warmup=0).rates(1)
    assert rates.decay == 0.125 * 0.125 * 0.0625


@pytest.mark.parametrize("step", [1, 2, 50, 1000])
def test_adamws_rates_are_its_papers(step):
    some = Recipe(beta1=0.5, beta2=0.75, weight_decay=0.25)
    rates = some.rates(step)
    assert (rates.lr, rates.decay) == (some.lr(step), some.lr(step) * 0.25)
    assert (rates.beta1, rates.rest1, rates.beta2, rates.rest2) == (0.5, 0.5, 0.75, 0.25)
    # Powers of these two are exact until they no longer matter.
    assert rates.correction1 == float(1 - Fraction(1, 2) ** step)
    assert rates.correction2 == float(1 - Fraction(3, 4) ** step)


@pytest.mark.parametrize("some", [Recipe(), PAPER, RAMPED, OTHER], ids=["adamw", "paper", "ramped", "other"])
def test_a_recipe_comes_back_from_json(some):
    back = Recipe.from_dict(json.loads(some.to_json()))
    assert back == some
    assert hash(back) == hash(some)
    assert back.ramp == some.ramp
    assert all(type(pair) is tuple for pair in back.ramp)
    assert back.to_json() == some.to_json()


def test_the_json_round_trip_is_told_of_every_field():
    """The twin of the test above: no field of `OTHER` is at its default, so a lost one would show."""
    for field in dataclasses.fields(Recipe):
        assert getattr(OTHER, field.name) != field.default, field.name


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError) as raised:
        Recipe.from_dict({"lr": 1e-3})
    assert_explains(raised, "a recipe must have only known fields", "lr=0.001", "Known fields", "batch")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr", "learning_rate"),
        ("batch_size", "batch"),
        ("seq_len", "length"),
        ("wieght_decay", "weight_decay"),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_is_meant(wrong, meant):
    with pytest.raises(ConfigError, match=rf"got {wrong}=1\. Did you mean {meant}\? Known fields"):
        recipe("bytes", **{wrong: 1})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("n_layers", "depth"), ("d_model", "dim"), ("vocab_size", "num_tokens"), ("n_heads", "heads")],
)
def test_an_unknown_field_of_a_config_is_answered_likewise(wrong, meant):
    with pytest.raises(ConfigError, match=rf"Did you mean {meant}\?"):
        preset("tiny", **{wrong: 1})


@pytest.mark.parametrize("make", [Recipe, Cadence])
def test_a_constructor_answers_likewise(make):
    with pytest.raises(ConfigError, match=r"got kepe=1\. (Did you mean keep\? )?Known fields"):
        make(kepe=1)


def test_an_unknown_field_that_is_like_none_gets_no_guess():
    with pytest.raises(ConfigError, match=r"got zzz=1\. Known fields"):
        recipe("bytes", zzz=1)


@pytest.mark.parametrize("fields", [[], None, "steps=3", 3])
def test_a_recipe_that_is_no_object_is_refused(fields):
    with pytest.raises(ConfigError) as raised:
        Recipe.from_dict(fields)
    assert_explains(raised, "a recipe must be a JSON object", type(fields).__name__, "Use to_json()")


@pytest.mark.parametrize("value", [True, -1, 1.0, 1.5, math.nan, "8", None, [8]])
@pytest.mark.parametrize(
    ("field", "least"),
    [
        *((name, 1) for name in ("steps", "batch", "length", "accumulate", "rewind", "skip")),
        *((name, 0) for name in ("warmup", "hold", "seed")),
    ],
)
def test_a_count_must_be_a_whole_number(field, least, value):
    with pytest.raises(ConfigError) as raised:
        Recipe(**{field: value})
    words = f"{field} must be a whole number of at least {least}", f"{field}={value!r}", "Use an int"
    assert_explains(raised, *words)


@pytest.mark.parametrize("field", ["steps", "batch", "length", "accumulate", "rewind", "skip"])
def test_a_count_of_nothing_is_refused_and_one_of_one_allowed(field):
    with pytest.raises(ConfigError, match=f"{field} must be a whole number of at least 1; got {field}=0"):
        Recipe(**{field: 0})
    assert getattr(Recipe(**{field: np.int32(1)}), field) == 1
    assert type(getattr(Recipe(**{field: np.int32(1)}), field)) is int


@pytest.mark.parametrize("field", ["warmup", "hold", "seed"])
def test_a_count_that_may_be_nothing_may(field):
    assert getattr(Recipe(**{field: 0}), field) == 0


REALS = ("learning_rate", "eps", "weight_decay", "clip", "z_loss", "final_fraction", "validation")
SHARES = ("eps", "final_fraction", "beta1", "beta2", "validation")


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, True, "0.1", None, 1j, 10**400])
@pytest.mark.parametrize("field", [*REALS, "beta1", "beta2"])
def test_a_number_must_be_finite_and_not_negative(field, value):
    with pytest.raises(ConfigError) as raised:
        Recipe(**{field: value})
    assert_explains(raised, f"{field} must be a number", f"{field}={value!r}", "Use one in between")


def test_an_eps_of_zero_is_refused():
    with pytest.raises(ConfigError, match="eps must be a number above 0"):
        Recipe(eps=0)


@pytest.mark.parametrize("field", SHARES)
def test_a_share_must_be_below_one(field):
    with pytest.raises(ConfigError) as raised:
        Recipe(**{field: 1})
    assert_explains(raised, f"{field} must be a number", "and below 1", f"{field}=1", "Use one in between")
    assert getattr(Recipe(**{field: 1 - 2.0**-53}), field) < 1


@pytest.mark.parametrize("field", REALS)
def test_a_whole_number_becomes_a_float(field):
    if field not in SHARES:
        assert type(getattr(Recipe(**{field: 2}), field)) is float


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("optimizer", "adamw, adafactor"),
        ("schedule", "constant, cosine, inverse_sqrt"),
        ("non_finite", "stop, rewind"),
    ],
)
@pytest.mark.parametrize("value", ["sgd", "", None, 1, ["cosine"]])
def test_a_choice_must_be_one_of_those_listed(field, choices, value):
    with pytest.raises(ConfigError) as raised:
        Recipe(**{field: value})
    assert_explains(raised, f"{field} must be one of {choices}", f"{field}={value!r}", "Choose one")


@pytest.mark.parametrize("value", [1, 0, None, "yes", "blocks", np.True_, np.array(["feedforward"])])
def test_remat_must_be_a_bool_or_a_part(value):
    with pytest.raises(ConfigError) as raised:
        Recipe(remat=value)
    assert_explains(raised, 'remat must be true, false or "feedforward"', f"remat={value!r}", "Choose one")


@pytest.mark.parametrize("value", ["(", "*", "a{2,1}", b"norm", 3, ["norm"], "(" * 10_000])
def test_freeze_must_be_a_regular_expression(value):
    with pytest.raises(ConfigError) as raised:
        Recipe(freeze=value)
    assert_explains(raised, "freeze must be a regular expression", f"freeze={value!r}", "six blocks")


@pytest.mark.parametrize("value", ["float8", None, 32, ["float32"]])
def test_a_precision_must_be_one_of_palms(value):
    with pytest.raises(ConfigError) as raised:
        Recipe(precision=value)
    assert_explains(raised, "must be one of float64, float32, bfloat16", f"={value!r}", "Choose one")


def test_an_unknown_precision_is_called_by_its_fields_name():
    with pytest.raises(ConfigError) as raised:
        Recipe(precision="float8")
    assert_explains(raised, "precision must", "precision='float8'")


@pytest.mark.parametrize("value", [5, None, "ab", [5], [(5, 8, 9)], [()], {5: 8}])
def test_a_ramp_must_be_pairs(value):
    with pytest.raises(ConfigError) as raised:
        Recipe(ramp=value)
    assert_explains(
        raised, "ramp must be (first step, batch) pairs", f"ramp={value!r}", "Use ((50_001, 1024)"
    )


@pytest.mark.parametrize(
    ("pair", "least", "value"),
    [((1, 8), 2, 1), ((0, 8), 2, 0), ((5, 0), 1, 0), ((5, 8.0), 1, 8.0), ((True, 8), 2, True)],
)
def test_a_ramp_must_hold_whole_numbers(pair, least, value):
    with pytest.raises(ConfigError) as raised:
        Recipe(ramp=[pair])
    assert_explains(raised, f"ramp must be a whole number of at least {least}", f"ramp={value!r}", "Use")


@pytest.mark.parametrize("value", [((9, 8), (5, 16)), ((5, 8), (5, 16))])
def test_a_ramp_must_ascend(value):
    with pytest.raises(ConfigError) as raised:
        Recipe(ramp=value)
    assert_explains(raised, "ramp must have ascending steps", f"ramp={value}", "Sort it")


@pytest.mark.parametrize(
    ("fields", "batch"), [({"batch": 9}, 9), ({"batch": 8, "ramp": ((5, 12), (9, 10))}, 10)]
)
def test_every_batch_must_be_cut_into_equal_parts(fields, batch):
    with pytest.raises(ConfigError) as raised:
        Recipe(**fields, accumulate=4)
    assert_explains(
        raised, "batch must be a multiple of accumulate", f"batch={batch}, accumulate=4", "Change"
    )


def test_a_recipe_is_frozen_hashable_and_given_by_name_only():
    some = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        some.steps = 8
    with pytest.raises(TypeError):
        Recipe("adamw")
    assert {some: 1}[Recipe(steps=np.int64(1000), ramp=[])] == 1
    assert some != dataclasses.replace(some, seed=1)


def test_the_named_recipes_cannot_be_changed():
    with pytest.raises(TypeError):
        RECIPES["paper"] = Recipe()


def test_a_named_recipe_is_changed_by_fields():
    assert recipe("paper") == PAPER
    assert recipe("paper", batch=8, ramp=()) == dataclasses.replace(PAPER, batch=8, ramp=())
    with pytest.raises(ConfigError, match="a recipe must have only known fields; got size=8"):
        recipe("paper", size=8)


@pytest.mark.parametrize("name", ["Paper", "", None, ["paper"]])
def test_an_unknown_recipe_is_refused(name):
    with pytest.raises(ConfigError) as raised:
        recipe(name)
    assert_explains(raised, "recipe must be one of bytes, adamw, paper", f"recipe={name!r}", "Choose one")


@pytest.mark.parametrize(
    ("loss", "norm", "finite"),
    [(1.0, 2.0, True), (math.nan, 2.0, False), (1.0, math.inf, False), (-math.inf, 0.0, False)],
)
def test_an_outcome_is_finite_only_if_both_of_its_numbers_are(loss, norm, finite):
    assert Outcome(loss, norm, []).is_finite is finite

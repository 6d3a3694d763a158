"""The report as a document: everything is in it, and nothing in it is markup by accident."""

import dataclasses
import json
import re
from itertools import pairwise

import pytest
from pages import HOSTILE, Page
from reports import comparison, trained

from palm.parity.repeats import Repeats
from palm.parity.report.html import page
from palm.parity.result import Comparison
from palm.spec.taps import tap_names


@pytest.fixture
def render(tmp_path):
    def rendered(report):
        # Through JSON, as the report is kept.
        report = json.loads(json.dumps(report.to_dict() if isinstance(report, Comparison) else report))
        (tmp_path / "report.html").write_text(page(report), encoding="utf-8", newline="\n")
        markup = (tmp_path / "report.html").read_text(encoding="utf-8")
        return Page(markup)

    return rendered


@pytest.mark.parametrize("depth", [1, 2, 118])
def test_every_finding_is_in_a_table_and_under_a_pointer(render, depth):
    compared = comparison(depth)
    page = render(compared)
    names = [f.name for f in compared.findings]
    rows = [row for row in page.rows if len(row) == 11 and row[1] in set(names)]
    assert [row[1] for row in rows] == names
    expected = ["1.10", "1,280", "1.00e-07", "2.00e-07", "2.50e-07", "1.00e-05", "✓", "0", "norm"]
    assert rows[1][2:] == expected
    # A cell or a chip for each, and for each tap its place in the plot of errors.
    assert len(page.having("hit")) == len(names) + len(tap_names(depth))


def test_the_headline_gives_both_losses_and_the_referees_in_full(render):
    page = render(comparison())
    rows = {row[0]: row[1:3] for row in page.rows}
    assert rows["torch"] == ["float32", "2.75"]
    assert rows["jax"] == ["float32", "2.5"]
    assert rows["referee"] == ["float64", "2.625"]
    assert "2 × 5" in page.texts
    assert "identical" in page.texts
    assert {"title": "0.99609375"} in page.all("span")
    assert {"title": "1.25e-13", "class": "number"} in page.all("span")


@pytest.mark.parametrize(
    ("outcome", "found", "badge", "fault"),
    [
        ("agree", {}, "✓ agree", None),
        ("differ", {"ratio": 9.0, "nature": "function"}, "✕ differ", "✕ different function"),
        (
            "differ by rounding more than expected",
            {"nature": "rounding"},
            "≈ differ by rounding more than expected",
            "≈ more rounding than expected",
        ),
        (
            "cannot tell",
            {"nature": "too few numbers"},
            "? cannot tell",
            "? too few numbers",
        ),
        ("cannot tell", {"nature": "unproven"}, "? cannot tell", "? unproven"),
        (
            "cannot tell",
            {"nature": "both not finite"},
            "? cannot tell",
            "? neither is finite",
        ),
    ],
)
def test_each_outcome_is_said_in_words(render, outcome, found, badge, fault):
    compared = comparison(blocks_1_q={**found, "fault": "far"} if found else {})
    report = compared.to_dict()
    assert report["outcome"] == outcome
    page = render(report)
    assert badge in page.texts
    assert len(page.having("badge")) == 1
    assert f"torch and jax: {outcome} · palm compare" in page.texts
    if fault is None:
        assert not page.having("fault")[1:]  # the legend's alone
        assert not page.having("faulty")
    else:
        assert "first: blocks.1.q" in page.texts
        assert len(page.having("faulty")) == 1
        assert [row[1] for row in page.rows if row[-4:] == [fault, "1", "q", "far"]] == ["blocks.1.q"]


def test_a_pointer_shows_three_digits_of_each_number(render):
    far = {"ratio": 35410902836.44183, "error_a": 0.0123456, "cross": float("inf"), "fault": "far"}
    page = render(comparison(blocks_1_q={**far, "nature": "function"}))
    (shown,) = {text for text in page.texts if text.startswith("blocks.1.q, 1,280 numbers")}
    assert shown.splitlines()[1:5] == [
        "ratio 3.54e+10",
        "torch error 0.0123",
        "jax error 2.00e-07",
        "torch − jax ∞",
    ]
    assert shown.splitlines()[-1] == "✕ different function: far"


def test_a_fault_below_the_bar_is_outlined(render):
    outlines = len(render(comparison()).having("outside"))
    faults = {
        "embed": {"fault": "far"},
        "blocks_0_q": {"fault": "far"},
        "blocks_0_k": {"fault": "far", "ratio": 2.0},
    }
    page = render(comparison(**faults))
    assert len(page.having("outside")) == outlines + 1  # k is above the bar, and embed is the first


@pytest.mark.parametrize(
    "field", ["label", "verdict", "fault", "doubt", "prediction", "cause", "environment", "config"]
)
def test_text_of_others_is_never_markup(render, field):
    plain = render(comparison())
    report = comparison(embed={"fault": "far"}).to_dict()
    if field == "label":
        report["sides"][0]["label"] = HOSTILE
    elif field == "verdict":
        report["verdict"] = HOSTILE
    elif field == "fault":
        report["findings"][0]["fault"] = HOSTILE
    elif field == "doubt":
        report["doubts"] = [HOSTILE]
    elif field == "prediction":
        report["predictions"][0] |= {"context": HOSTILE, "target": HOSTILE, "a": [[HOSTILE, 0.5]]}
    elif field == "cause":
        report["diagnoses"] = [{"side": "jax", "taps": ["embed"], "cause": HOSTILE, "sentence": "no"}]
    else:
        report["sides"][1][field] = {HOSTILE: HOSTILE}
    page = render(report)
    assert HOSTILE in page.text
    assert len(page.all("script")) == len(plain.all("script")) == 1
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert {key for _, attrs in page.elements for key in attrs} <= {
        key for _, attrs in plain.elements for key in attrs
    }


def test_values_that_are_not_finite_are_shown_as_such(render):
    infinite = {
        "error_b": float("inf"),
        "cross": float("inf"),
        "ratio": float("inf"),
        "fault": "jax is not finite",
    }
    undefined = {
        "error_b": float("nan"),
        "cross": float("nan"),
        "ratio": float("nan"),
        "fault": "jax is not finite",
    }
    report = comparison(blocks_0_q=infinite, blocks_0_k=undefined, grad_norm=undefined).to_dict()
    report["loss"]["b"] = report["kl_divergence_nats"] = report["top1_agreement"] = "nan"
    page = render(report)
    rows = {row[1]: row for row in page.rows if len(row) == 12}
    assert [rows["blocks.0.q"][i] for i in (2, 5, 6)] == ["∞", "∞", "∞"]
    assert [rows["blocks.0.k"][i] for i in (2, 5, 6)] == ["nan", "nan", "nan"]
    assert "∞, nan" in page.texts
    paths = [attrs["d"] for attrs in page.all("path")]
    assert not any("nan" in d or "inf" in d for d in paths)


def test_sides_without_any_error_have_a_plot(render):
    nothing = {"error_a": 0.0, "error_b": 0.0, "cross": 0.0, "ratio": 0.0}
    compared = comparison()
    nil = tuple(dataclasses.replace(f, **nothing) for f in compared.findings)
    page = render(dataclasses.replace(compared, findings=nil))
    assert "0" in page.texts
    assert "10⁻⁵" in page.texts


def test_errors_at_the_ends_of_float64_have_a_plot(render):
    page = render(comparison(embed={"error_a": 5e-324, "cross": 1.7e308}))
    assert "10⁻³²⁴" in page.texts


def test_bounds_that_differ_have_two_columns(render):
    page = render(comparison(embed={"bound_b": 1e-2}))
    heads = next(row for row in page.rows if row[0] == "#")
    assert heads[-5:-2] == ["torch bound", "jax bound", "fault"]


def test_what_differs_between_the_sides_is_marked(render):
    page = render(comparison())
    assert ["≠ device", "cpu", "gpu"] in page.rows
    assert ["python", "3.11.7", "3.11.7"] in page.rows
    report = comparison().to_dict()
    report["sides"][1]["config"]["positions"] = "rotary"
    assert ["≠ positions", "alibi", "rotary"] in render(report).rows


def test_what_differs_comes_first_and_the_same_is_folded_up(render):
    page = render(comparison())
    environment = page.rows.index(["≠ device", "cpu", "gpu"])
    assert page.rows[environment - 1] == ["Environment", "torch", "jax"]
    assert page.rows.index(["python", "3.11.7", "3.11.7"]) > environment
    assert "1 the same" in page.texts
    assert "✓ Nothing differs." in page.texts  # in the config
    assert len(page.all("details")) == 2


def test_predictions_are_text_in_which_nothing_hides(render):
    page = render(comparison())
    assert "Predictions side by side" in page.texts
    assert "a⏎⇥b␣" in page.text  # the context, and what came
    for token, share in (
        ("\\x00", "50.0%"),
        ("<b>", "25.0%"),
        ("c", "12.5%"),
        ("\\u202e", "25.0%"),
        ("␣␣", "12.5%"),
    ):
        assert f"{token}{share}" in page.text
    assert "sequence 1, position 3, KL 0.0625 nats ≠ likeliest differs" in page.text
    report = comparison().to_dict()
    report["predictions"] = []
    assert "There is no place at which" in render(report).text


def test_doubts_are_told_whatever_the_outcome(render):
    page = render(
        dataclasses.replace(comparison(), doubts=("the weights are rounded",), differences=("config",))
    )
    assert "✕ differ" in page.texts
    assert "Doubt the weights are rounded." in page.text


def test_excerpts_are_said_to_have_no_referee_and_unmeasured_errors_are_dashes(render):
    unmeasured = {"error_a": float("nan"), "error_b": float("nan")}
    compared = comparison(loss=unmeasured, grad_norm=unmeasured)
    page = render(dataclasses.replace(compared, referee=False, losses=(2.75, 2.5, float("nan"))))
    assert "No referee judged these excerpts" in page.text
    assert "float64 referee" not in page.text
    assert not [row for row in page.rows if row[0] == "referee"]
    rows = {row[1]: row for row in page.rows if len(row) == 11}
    assert rows["grad:norm"][4:7] == ["—", "—", "2.50e-07"]
    assert next(row for row in page.rows if row[0] == "torch") == [
        "torch",
        "float32",
        "2.75",
        "—",
        "1.00e-05",
    ]
    assert "referee" in {row[0] for row in render(compared).rows}


def test_repeats_give_intervals_and_say_how_sure_they_are(render):
    repeats = Repeats()
    for seed, ratio in enumerate((1.0, 2.5, 0.5)):
        special = {"fault": "far", "nature": "function"} if ratio > 1.5 else {}
        repeats.add(seed, comparison(embed={"ratio": ratio, **special}))
    page = render(repeats.result().to_dict())
    heads = next(row for row in page.rows if row[0] == "#")
    at = heads.index("ratio, lowest – highest")
    row = next(row for row in page.rows if len(row) == len(heads) and row[1] == "embed")
    assert row[at - 1 : at + 1] == ["2.50", "0.50 – 2.50"]
    cell = next(attrs for attrs in page.all("td") if attrs.get("data-sort") == "2.5")
    assert cell["title"] == "lowest 0.5\nmedian 1.0\nhighest 2.5"
    assert "agree with seeds 0, 2; differ with seed 1. Each had another text" in page.text
    assert "with probability 0.75" in page.text


def test_one_comparison_is_no_repeat(render):
    repeats = Repeats()
    repeats.add(0, comparison())
    assert render(repeats.result().to_dict()).text == render(comparison()).text


def test_a_diagnosis_stands_at_its_taps_and_at_the_weights_that_act_there(render):
    report = comparison(blocks_1_q={"fault": "far", "nature": "function"}).to_dict()
    plain = render(report)
    assert not any("cause" in row for row in plain.rows)
    told = {
        "side": "jax",
        "taps": ["blocks.1.q"],
        "cause": "query/key scale",
        "sentence": "jax at blocks.1.q.",
    }
    backward = {**told, "taps": ["grad:norm"], "cause": "gradient scale"}
    page = render({**report, "diagnoses": [told, backward]})
    assert [row[1] for row in page.rows if "jax: gradient scale" in row] == ["grad:norm"]
    assert "Why jax at blocks.1.q." in page.text
    with_cause = [row[1] for row in page.rows if "jax: query/key scale" in row]
    assert with_cause == ["blocks.1.q", "grad:blocks.1.attention.query"]


def test_headings_go_down_one_step_at_a_time(render):
    page = render(trained(2))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_the_file_needs_nothing_from_elsewhere(render):
    page = render(comparison())
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    # Any handler or script but the one that the policy names would be refused.
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]


def test_training_has_three_plots_and_a_table_of_some_steps(render):
    page = render(trained(12))
    plain = render(comparison())
    assert "Training, 12 steps" in page.texts
    assert "Training" not in plain.text
    assert len(page.having("area")) == len(plain.having("area")) + 3
    assert len(page.having("hit")) == len(plain.having("hit")) + 3 * 13
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 7 and row[0] != "updates"}
    assert list(rows) == ["0", "1", "2", "5", "10", "12"]
    assert rows["0"][:5] == ["5.0", "5.000001", "1.00e-06", "2.00e-06", "1.00e-06"]
    assert 0 < float(rows["0"][5]) < 2**-53  # the control has changed nothing yet
    assert rows["12"] == ["4.0", "4.000001", "1.00e-06", "2.00e-06", "1.00e-06", "2.00e-06"]
    assert any(
        text.startswith("✓ over 12 training steps torch and jax drift apart no") for text in page.texts
    )
    assert "10 of 1,234 weights are measured" in page.text
    titles = [text for text in page.texts if text.startswith("after 12 updates")]
    assert titles[0] == "after 12 updates\ntorch 4.0\njax 4.000001"


def test_more_drift_than_rounding_explains_is_marked(render):
    text = render(trained(12, gap=1e-5)).text
    assert "✕ over 12 training steps torch and jax drift apart by more than rounding explains" in text


def test_a_long_training_is_drawn_in_part(render):
    page = render(trained(5000))
    assert len([text for text in page.texts if text.startswith("after ")]) == 3 * 200
    assert {"after 0 updates", "after 5000 updates"} <= {text.split("\n")[0] for text in page.texts}


@pytest.mark.parametrize("gap", [0.0, 1e-6])
def test_a_training_that_is_not_finite_has_a_plot(render, gap):
    page = render(trained(3, gap=gap, not_finite=1))
    paths = [attrs["d"] for attrs in page.all("path")]
    assert not any("nan" in d or "inf" in d for d in paths)
    assert page.texts.count("∞, nan") == 2  # beside the losses and their gap
    assert "not finite on jax from step 1 on" in page.text


def test_a_training_of_one_step_without_any_difference_has_a_plot(render):
    page = render(trained(1, gap=0.0))
    assert "Training, 1 step" in page.texts


def test_words_of_a_training_are_never_markup(render):
    report = trained(2)
    report["training"]["verdict"] = HOSTILE
    page = render(report)
    assert HOSTILE in page.text
    assert len(page.all("script")) == 1

"""A comparison on the terminal: 80 columns hold it whatever it is, and a pipe gets no colours."""

import dataclasses
import json
from io import StringIO

import pytest
from reports import comparison, recording, way
from rich.console import Console

from palm import compare
from palm.parity.drift.drift import butterfly
from palm.parity.repeats import Repeats
from palm.parity.report.terminal import print_report

LABELS = [
    ("torch", "jax"),
    ("torch bfloat16", "jax step-00000100"),
    ("torch [red]", "jax [/]"),
    ("torch float32 textbook", "jax bfloat16 matmul tensorfloat32 compile on"),
    ("torch (a-bundle-whose-name-nobody-can-break-anywhere-at-all-and-longer-than-the-screen)", "jax"),
]
FAR = {"fault": "far", "ratio": 123456.0, "error_b": 0.1, "cross": 0.1}


def repeated(*comparisons):
    repeats = Repeats()
    for seed, compared in enumerate(comparisons):
        repeats.add(seed, compared)
    return repeats.result()


def printed(found, **options):
    console = Console(file=StringIO(), width=80, **options)
    print_report(json.loads(json.dumps(found.to_dict())), console)
    return console.file.getvalue()


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("labels", LABELS, ids=lambda labels: labels[1])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("bounds", [{}, {"bound_b": 1e-2}], ids=["one bound", "two bounds"])
def test_eighty_columns_hold_every_name_and_number(labels, times, bounds):
    special = {"blocks_99_feedforward_out": FAR, "grad_blocks_99_feedforward_gate": FAR, "embed": bounds}
    found = repeated(*[comparison(118, labels=labels, **special)] * times)
    text = printed(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    numbers = 6 if times == 1 else 5 + 1
    for finding in found.shown.findings:
        if finding.kind != "gradient":
            assert len(row(text, finding.name)) == numbers + 1
    expected = ["1.0e-07", "1.0e-01", "1.0e-01", "1.0e-05", "1.23e+05", "✕"]
    if bounds:
        expected[3] = "1e+04"
    if times == 3:
        expected[2:3] = []
        expected.insert(4, "1.2e5–1.2e5")
    assert row(text, "blocks.99.feedforward_out")[1:] == expected
    assert row(text, "blocks.99.feedforward.gate")[1:] == expected
    words = text.replace("-\n", "-").replace("\n", "").replace(" ", "")
    assert all(label.replace(" ", "") in words for label in labels)


def test_a_pipe_gets_no_colours_and_a_terminal_does():
    found = repeated(comparison(embed=FAR))
    assert "\x1b" not in printed(found)
    assert "\x1b[" in printed(found, force_terminal=True, color_system="standard")


@pytest.mark.parametrize(
    ("nature", "name", "sign"),
    [
        (None, "AGREE", "✓"),
        ("function", "DIFFER", "✕"),
        ("rounding", "ROUNDING", "≈"),
        ("too few numbers", "CANNOT TELL", "?"),
        ("both not finite", "CANNOT TELL", "?"),
        ("unproven", "CANNOT TELL", "?"),
    ],
)
def test_each_outcome_has_a_word_and_a_sign(nature, name, sign):
    text = printed(repeated(comparison(blocks_0_q={**FAR, "nature": nature} if nature else {})))
    assert f"\n{name}  " in text
    assert row(text, "blocks.0.q")[-1] == sign
    assert ("where" in text) == (nature is not None)


def test_it_says_where_with_how_many_numbers_and_why():
    differing = compare(recording("torch", 1), recording("jax", 2, faulty=True))
    text = " ".join(printed(repeated(differing)).split())
    assert "where first at blocks.1.q (tap of 320 numbers); 2 of 30 taps in total" in text
    assert f"why {' '.join(differing.diagnoses[0].sentence.split())[:40]}" in text
    agreeing = printed(repeated(compare(recording("torch", 1), recording("jax", 2))))
    assert "where" not in agreeing
    assert "most apart" not in agreeing
    single = printed(repeated(comparison(loss=FAR | {"elements": 1})))
    assert "where first at loss (a single number); the loss in total" in " ".join(single.split())


def test_predictions_that_print_alike_are_left_out():
    faulty = comparison(embed=FAR | {"nature": "function"})
    alike = dataclasses.replace(faulty.predictions[0], a=(("r", 0.0131),), b=(("r", 0.0129),))
    apart = dataclasses.replace(alike, b=(("r", 0.0141),))
    assert "most apart" not in printed(repeated(dataclasses.replace(faulty, predictions=(alike,))))
    shown = " ".join(printed(repeated(dataclasses.replace(faulty, predictions=(apart,)))).split())
    assert "most apart after ‘" in shown
    assert "most likely: torch ‘r’ 1.3%, jax ‘r’ 1.4%" in shown


def test_what_would_move_a_cursor_is_escaped():
    hostile = dataclasses.replace(comparison().predictions[0], context="\x1b[2J\n", target="\x07")
    shown = dataclasses.replace(comparison(embed=FAR | {"nature": "function"}), predictions=(hostile,))
    text = printed(repeated(shown))
    assert "after ‘\\x1b[2J⏎’ the text has ‘\\x07’; most likely: torch" in " ".join(text.split())
    assert "\x1b" not in text


def test_repeats_that_disagree_are_told_apart():
    found = repeated(comparison(), comparison(embed=FAR | {"nature": "function"}), comparison())
    text = " ".join(printed(found).split())
    assert "seeds agree: 0, 2; differ: 1" in text
    assert row(printed(found), "embed")[5] == "1.10–1.2e5"
    assert "seeds" not in printed(repeated(comparison(), comparison()))


def test_excerpts_have_no_referee_and_dashes_for_what_was_not_measured():
    nan = float("nan")
    unmeasured = {"error_a": nan, "error_b": nan}
    compared = comparison(loss=unmeasured, embed=unmeasured | {"cross": nan, "ratio": nan})
    text = printed(repeated(dataclasses.replace(compared, referee=False, doubts=("only checksums",))))
    told = "no referee: the errors of each side are measured against its own float64 program"
    assert told in " ".join(text.split())
    assert row(text, "loss")[1:4] == ["—", "—", "2.5e-07"]
    assert row(text, "embed")[1:4] == ["nan", "nan", "nan"]
    assert "only checksums" in text
    assert "referee 2.625" in printed(repeated(compared))


def test_a_training_fits_too():
    console = Console(file=StringIO(), width=80)
    training = butterfly(way(0), way(1), way(2)).to_dict()
    print_report({**comparison().to_dict(), "training": training}, console)
    assert max(map(len, console.file.getvalue().splitlines())) <= 80

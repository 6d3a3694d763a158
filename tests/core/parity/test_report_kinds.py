"""One plain report for every renderer: live or stored, of two sides, or of a program seen by its logits."""

import dataclasses
import json
import re
from io import StringIO

import pytest
from cases import ROOT
from pages import HOSTILE, Page
from reports import CONFIG, comparison, recording, trained
from rich.console import Console

from palm import compare
from palm.parity.blackbox.result import ForeignComparison, Likeness
from palm.parity.repeats import Repeats
from palm.parity.report.html import fragment, page
from palm.parity.report.terminal import print_report, text

STORED = ROOT / "tests" / "fixtures" / "v0_1_0"
HIDDEN = "\u202eevil\x1b[2J\u200b\x07"  # turns text around, clears a screen, hides, beeps
FAR = {"fault": "far", "ratio": 123.0, "nature": "function"}


def foreign(**changes):
    port = ForeignComparison(
        label="port",
        config=CONFIG,
        dtype="float32",
        before=0.1,
        bound=1e-6,
        not_finite=0,
        rounding_of=None,
        likenesses=(Likeness("rotary pairing", "half-split", 1.5e-7, "Rotate pairs."),),
        top1_agreement=0.5,
        kl_divergence=0.25,
        tried=1047,
        left_out=3,
    )
    return json.loads(json.dumps(dataclasses.replace(port, **changes).to_dict()))


def repeated():
    repeats = Repeats()
    for seed in range(3):
        repeats.add(seed, comparison(embed=FAR if seed == 1 else {}))
    return repeats.result().to_dict()


KINDS = {
    "agree": lambda: comparison().to_dict(),
    "differ": lambda: comparison(blocks_1_q=FAR).to_dict(),
    "repeated": repeated,
    "training": lambda: trained(5),
    "foreign": foreign,
    "foreign that agrees": lambda: foreign(before=1e-7, likenesses=()),
    "foreign that is not finite": lambda: foreign(before=float("inf"), likenesses=(), not_finite=7),
}


def printed(report, width=80):
    console = Console(file=StringIO(), width=width)
    print_report(report, console)
    return console.file.getvalue()


def flat(words):
    return " ".join(words.split())


@pytest.mark.parametrize("name", ["report", "report-training"])
def test_a_report_of_version_0_1_0_is_rendered_today(name, tmp_path):
    report = json.loads((STORED / name / "report.json").read_text(encoding="utf-8"))
    (tmp_path / "report.html").write_text(page(report), encoding="utf-8", newline="\n")
    shown = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert report["verdict"] in shown.texts
    names = [finding["name"] for finding in report["findings"]]
    assert [row[1] for row in shown.rows if len(row) == 11 and row[1] in names] == names
    terminal = printed(report)
    parts = report["verdict"].removesuffix(".").split("; over ")
    for part in parts:
        assert part in flat(terminal)
    assert len(re.findall("^AGREE  ", terminal, re.MULTILINE)) == len(parts) == 1 + ("training" in report)
    assert text(report).startswith("AGREE  torch and jax agree")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_report_shows_what_the_live_one_shows(kind):
    live = KINDS[kind]()
    stored = json.loads(json.dumps(live))
    assert page(stored) == page(live)
    assert fragment(stored) == fragment(live)
    assert printed(stored) == printed(live)
    assert text(stored) == text(live)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_verdict_everywhere(kind):
    report = KINDS[kind]()
    shown = Page(page(report))
    assert report["verdict"] in shown.texts
    assert len(shown.having("badge")) == 1
    assert report["verdict"] in Page(fragment(report)).texts
    first = text(report).splitlines()[0]
    assert first.startswith("AGREE" if report["agree"] else "DIFFER")
    assert flat(report["verdict"].removeprefix(f"{report['outcome']} "))[:60] in flat(text(report))


def test_a_foreign_page_says_how_far_and_what_it_is_like():
    shown = Page(page(foreign()))
    rows = {row[0]: row[1:] for row in shown.rows}
    assert rows["✕ palm model"] == ["0.100", "as it is", ""]
    assert rows["✓ palm model with rotary pairing"] == ["1.50e-07", "half-split", "Rotate pairs."]
    assert rows["dim"] == ["16"]
    assert "port and palm: differ · palm compare" in shown.texts
    assert "1,047, 3 left out to save time" in shown.text
    assert [dot["class"] for dot in shown.all("circle")] == ["dot hit beyond", "dot hit explained"]
    assert "port only the logits are seen" in flat(shown.text)


def test_a_distance_that_is_not_finite_has_a_dot():
    shown = Page(page(foreign(before=float("inf"), likenesses=(), not_finite=7)))
    assert [row[1] for row in shown.rows if row[0] == "✕ palm model"] == ["∞"]
    assert "nan" not in shown.all("circle")[0]["cx"]
    assert printed(foreign(before=float("nan"))).count("nan")


@pytest.mark.parametrize("field", ["label", "verdict", "likeness", "config", "run"])
def test_text_of_others_is_never_markup_on_a_foreign_page(field):
    plain = Page(page({**foreign(), "run": {"sides": "a b"}}))
    report = foreign()
    if field == "likeness":
        report["likenesses"][0] |= {"cause": HOSTILE, "detail": HOSTILE, "fix": HOSTILE}
    elif field in ("config", "run"):
        report[field] = {HOSTILE: HOSTILE}
    else:
        report[field] = HOSTILE
    for shown in (Page(page(report)), Page(fragment(report))):
        assert HOSTILE in shown.text or (field in ("config", "run") and not shown.all("h1"))
        assert len(shown.all("script")) == len(shown.all("h1"))
        assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in plain.elements} | {"div"}


def hidden_everywhere():
    report = trained(3)
    for side in report["sides"]:
        side["label"] += HIDDEN
        side["environment"][HIDDEN] = HIDDEN
    report["verdict"] += HIDDEN
    report["doubts"] = [HIDDEN]
    report["findings"][3] |= {"fault": HIDDEN, "name": HIDDEN}
    report["diagnoses"] = [{"side": HIDDEN, "taps": ["embed"], "cause": HIDDEN, "sentence": HIDDEN}]
    report["predictions"][0] |= {"context": HIDDEN, "target": HIDDEN, "a": [[HIDDEN, 0.5]]}
    report["training"]["verdict"] = HIDDEN
    report["run"] = {HIDDEN: HIDDEN}
    return report


@pytest.mark.parametrize("render", [page, fragment, printed, text], ids=lambda render: render.__name__)
@pytest.mark.parametrize("report", [hidden_everywhere, lambda: foreign(label=HIDDEN)], ids=["two", "foreign"])
def test_no_character_of_others_can_hide_or_act(render, report):
    shown = render(report())
    assert "\\u202eevil\\x1b[2J\\u200b\\x07" in re.sub(r"<i class=\"ctl\">|</i>|\s", "", shown)
    assert [character for character in shown if not character.isprintable() and character != "\n"] == []


def test_markup_of_the_terminal_library_is_text():
    report = comparison(labels=("torch [red]", "jax [/]")).to_dict()
    report["findings"][0]["name"] = "[bold]embed[/bold]"
    for shown in (printed(report), text(report)):
        assert "[bold]embed[/bold]" in shown
        assert "torch [red]" in shown


@pytest.mark.parametrize("kind", [*KINDS, "deep"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_brief_text_fits_in_its_width_and_in_a_few_dozen_lines(kind, width):
    everywhere = {f"blocks_{i}_q": FAR for i in range(0, 118, 3)}
    report = comparison(118, **everywhere).to_dict() if kind == "deep" else KINDS[kind]()
    lines = text(report, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 50
    assert "\x1b" not in "".join(lines)
    assert lines == [line.rstrip() for line in lines]


def test_a_brief_text_folds_what_agrees_and_shows_the_fault():
    lines = text(compare(recording("torch", 1), recording("jax", 2, faulty=True)).to_dict()).splitlines()
    rows = [flat(line) for line in lines]
    assert any(re.match(r"embed … blocks\.1\.norm \(11 taps\) .* ✓$", row) for row in rows)
    assert any(re.match(r"blocks\.1\.q .* 7\.02e\+04 ✕$", row) for row in rows)
    assert any("where first at blocks.1.q (tap of 320 numbers)" in row for row in rows)


def outermost(css):
    """The selectors of a style sheet that are in no other one."""
    found, inside = [], []
    for before, brace in re.findall(r"([^{};]*)([{};])", re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)):
        if brace == "}":
            inside.pop()
        elif brace == "{":
            if all(one.startswith("@media") for one in inside) and not before.strip().startswith("@media"):
                found.append(before.strip())
            inside.append(before.strip())
    return found


def test_a_notebook_gets_a_fragment_with_its_own_styles_and_no_script():
    shown = Page(fragment(comparison(blocks_1_q=FAR).to_dict()))
    assert {"html", "head", "body", "script", "link", "iframe"}.isdisjoint(tag for tag, _ in shown.elements)
    assert shown.elements[0] == ("div", {"class": "palm-report"})
    assert [row[0] for row in shown.rows] == ["first faults", "blocks.1.q"]
    assert len(shown.having("area")) == 1
    selectors = outermost(re.search("<style>(.*)</style>", fragment(foreign()), re.DOTALL)[1])
    assert len(selectors) == 5
    assert all(".palm-report" in one for selector in selectors for one in selector.split(","))
    agreeing = Page(fragment(comparison().to_dict()))
    assert agreeing.rows[0][0] == "largest ratios"

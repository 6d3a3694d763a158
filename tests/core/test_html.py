"""The report as a document: everything is in it, and nothing in it is markup by accident."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from palm.compare import Comparison, Finding, Recording
from palm.compare.html import write_html
from palm.config import PaLMConfig
from palm.params import parameters
from palm.taps import tap_names

VOID = {"meta", "wbr"}
HOSTILE = '<script>alert("1")</script>&amp;\'$verdict ${title} </title>'


class Page(HTMLParser):
    """What a browser would make of the file: elements, the text they hold, and that all are closed."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.rows = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def having(self, class_):
        return [attrs for _, attrs in self.elements if class_ in (attrs.get("class") or "").split()]


def finding(name, kind, **measured):
    plain = {
        "error_a": 1e-7,
        "error_b": 2e-7,
        "cross": 2.5e-7,
        "ratio": 1.1,
        "bound_a": 1e-5,
        "bound_b": 1e-5,
    }
    return Finding(name, kind, **{**plain, "fault": None, **measured})


def comparison(depth=2, labels=("torch", "jax"), **special):
    """A comparison whose findings are ordinary, but for those named in `special` (with _ for . and :)."""
    config = PaLMConfig(num_tokens=16, dim=8, depth=depth, heads=2, dim_head=4).resolve("torch")
    findings = [finding(name, "tap") for name in tap_names(depth)]
    findings.append(finding("loss", "loss"))
    findings += [finding(f"grad:{name}", "gradient") for name in parameters(config)]
    changed = {re.sub(r"\W", "_", f.name): i for i, f in enumerate(findings)}
    for name, measured in special.items():
        i = changed[name]
        findings[i] = dataclasses.replace(findings[i], **measured)
    empty = {"weights": {}, "taps": {}, "grads": {}, "exact_taps": {}, "exact_grads": {}}
    sides = [
        Recording(
            label=label,
            config=config,
            dtype="float32",
            tokens=np.zeros((2, 5), int),
            loss=2.772588722239781,
            exact_loss=2.7725887222397811,
            environment={"python": "3.11.7", "device": device},
            **empty,
        )
        for label, device in zip(labels, ("cpu", "gpu"), strict=True)
    ]
    return Comparison(
        *labels, tuple(findings), (), True, 0.99609375, 1.25e-13, (2.75, 2.5, 2.625), tuple(sides)
    )


@pytest.fixture
def render(tmp_path):
    def rendered(report):
        # Through JSON, as the report is kept.
        report = json.loads(json.dumps(report.to_dict() if isinstance(report, Comparison) else report))
        write_html(report, tmp_path / "report.html")
        markup = (tmp_path / "report.html").read_text(encoding="utf-8")
        return Page(markup)

    return rendered


@pytest.mark.parametrize("depth", [1, 2, 118])
def test_every_finding_is_in_a_table_and_under_a_pointer(render, depth):
    compared = comparison(depth)
    page = render(compared)
    names = [f.name for f in compared.findings]
    rows = [row for row in page.rows if len(row) == 8 and row[1] in set(names)]
    assert [row[1] for row in rows] == names
    assert rows[1][2:] == ["1.00e-07", "2.00e-07", "2.50e-07", "1.10", "1.00e-05", "✓"]
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


def test_agreement_and_its_opposite_are_said_in_words(render):
    agreeing = render(comparison())
    assert "✓ agree" in agreeing.texts
    assert not agreeing.having("fault")[1:]  # the legend's alone
    differing = render(comparison(blocks_1_q={"ratio": 9.0, "fault": "9 times their rounding apart"}))
    assert "✕ differ" in differing.texts
    assert "first: blocks.1.q" in differing.texts
    assert len(differing.having("faulty")) == 1
    assert any(row[-1] == "✕ 9 times their rounding apart" for row in differing.rows)


def test_a_fault_below_the_bar_is_outlined(render):
    outlines = len(render(comparison()).having("outside"))
    faults = {
        "embed": {"fault": "far"},
        "blocks_0_q": {"fault": "far"},
        "blocks_0_k": {"fault": "far", "ratio": 2.0},
    }
    page = render(comparison(**faults))
    assert len(page.having("outside")) == outlines + 1  # k is above the bar, and embed is the first


@pytest.mark.parametrize("field", ["label", "verdict", "fault", "environment", "config"])
def test_text_of_others_is_never_markup(render, field):
    plain = render(comparison())
    report = comparison(embed={"fault": "far"}).to_dict()
    if field == "label":
        report["sides"][0]["label"] = HOSTILE
    elif field == "verdict":
        report["verdict"] = HOSTILE
    elif field == "fault":
        report["findings"][0]["fault"] = HOSTILE
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
    rows = {row[1]: row for row in page.rows if len(row) == 8}
    assert rows["blocks.0.q"][3:6] == ["∞", "∞", "∞"]
    assert rows["blocks.0.k"][3:6] == ["nan", "nan", "nan"]
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
    assert heads[-3:] == ["torch bound", "jax bound", "fault"]


def test_what_differs_between_the_sides_is_marked(render):
    page = render(comparison())
    assert ["≠ device", "cpu", "gpu"] in page.rows
    assert ["python", "3.11.7", "3.11.7"] in page.rows
    report = comparison().to_dict()
    report["sides"][1]["config"]["positions"] = "rotary"
    assert ["≠ positions", "alibi", "rotary"] in render(report).rows


def test_the_file_needs_nothing_from_elsewhere(render):
    page = render(comparison())
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]
    # Any handler or script but the one that the policy names would be refused.
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]

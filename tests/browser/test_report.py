"""The report in a real Chromium: it works from disk, by mouse, keyboard and finger, at any width."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from reports import CONFIG, FAULTY, comparison, recording, trained, way

from palm import compare
from palm.parity.blackbox.result import ForeignComparison, Likeness
from palm.parity.drift.drift import butterfly
from palm.parity.repeats import Repeats
from palm.parity.report import html
from palm.parity.report.html import fragment
from palm.parity.report.words import short

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module", params=["agree", "differ", "training"])
def report(request, tmp_path_factory):
    """Address of a report, and the comparison that it shows."""
    differ = request.param == "differ"
    compared = compare(recording("torch", 1, False), recording("jax", 2, differ))
    assert compared.agree is not differ
    path = tmp_path_factory.mktemp("report") / "report.html"
    found = compared.to_dict()
    if request.param == "training":
        found["training"] = butterfly(way(0), way(1), way(2)).to_dict()
    path.write_text(html.page(found), encoding="utf-8", newline="\n")
    return path.as_uri(), compared


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.fail(
            f"{CHROMIUM} is missing, and these tests need it: apt-get install chromium", pytrace=False
        )
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def open_any(browser):
    """Open a report in a fresh profile; at the end nothing may have been asked for or complained about."""
    opened, expected, seen = [], [], []

    def open_at(address, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        opened.append(context)
        expected.append(address)
        page = context.new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(address)
        return page

    yield open_at
    for context in opened:
        context.close()
    assert seen == expected


@pytest.fixture
def open_page(open_any, report):
    return partial(open_any, report[0])


def names(page, table=0):
    return page.locator(".sortable").nth(table).locator("tbody th").all_text_contents()


def test_the_verdict_is_shown(open_page, report):
    page = open_page()
    assert page.locator("h1").text_content() == report[1].verdict
    assert page.locator(".badge").text_content() == ("✓ agree" if report[1].agree else "✕ differ")
    assert page.title() == f"torch and jax: {report[1].outcome} · palm compare"


def test_faults_stand_where_their_taps_are(open_page, report):
    page = open_page()
    area = page.locator("svg.area").first
    faults = [mark.bounding_box() for mark in area.locator("rect.fault").all()]
    places = {f.name: i for i, f in enumerate(report[1].findings)}
    expected = [
        area.locator("rect.hit").nth(places[f.name]).bounding_box() for f in report[1].findings if f.fault
    ]
    assert len(faults) == (0 if report[1].agree else len(FAULTY))
    assert [mark["x"] for mark in faults] == pytest.approx([place["x"] for place in expected], abs=0.5)


def test_curves_reach_across_the_plot(open_page):
    page = open_page()
    area = page.locator("svg.area").first.bounding_box()
    for side in ("a", "b", "cross"):
        dots = page.locator(f"svg.area path.dots.{side}").first.bounding_box()
        assert dots["width"] > 0.9 * area["width"]
        assert area["y"] < dots["y"] < area["y"] + area["height"]


@pytest.mark.parametrize("table", [0, 1], ids=["taps", "gradients"])
def test_a_head_sorts_by_click(open_page, report, table):
    page = open_page()
    ratios = {f.name: f.ratio for f in report[1].findings if (f.kind == "gradient") == bool(table)}
    in_order = list(ratios)
    heads = page.locator(".sortable").nth(table).locator("th")
    head = heads.filter(has_text="ratio")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [ratios[name] for name in names(page, table)] == sorted(ratios.values(), reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [ratios[name] for name in names(page, table)] == sorted(ratios.values())
    heads.filter(has_text="#").locator("button").click()
    assert names(page, table) == in_order


@pytest.mark.parametrize("table", [0, 1], ids=["taps", "gradients"])
def test_a_head_sorts_by_keyboard(open_page, report, table):
    page = open_page()
    before = names(page, table)
    heads = page.locator(".sortable").nth(table).locator("th button")
    heads.first.focus()
    page.keyboard.press("Tab")
    assert heads.nth(1).evaluate("button => button === document.activeElement")
    assert heads.nth(1).evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert names(page, table) == sorted(before)
    page.keyboard.press("Space")
    assert names(page, table) == sorted(before, reverse=True)
    ratios = report[1].ratios
    heads.filter(has_text="ratio").focus()
    page.keyboard.press("Enter")
    assert names(page, table) == sorted(before, key=lambda name: -ratios[name])


def test_gradients_sort_by_kind_and_then_by_block(open_page):
    page = open_page()
    heads = page.locator(".sortable").nth(1).locator("th button")
    heads.filter(has_text="kind").click()
    heads.filter(has_text="block").click()
    rows = [name.split(".")[1:] for name in names(page, 1)]
    inside = [row for row in rows if len(row) > 1]
    assert inside == sorted(inside)
    assert rows[-2:] == [[], []]  # the embedding and the last norm are in no block


def test_nan_sorts_last_and_infinity_above_all_numbers(open_page):
    page = open_page()
    cells = page.locator(".sortable").first.locator("tbody td:nth-child(3)")
    for i, value in enumerate(("nan", "inf")):
        cells.nth(i).evaluate("(cell, value) => { cell.title = value }", value)
    head = page.locator(".sortable").first.locator("th button", has_text="ratio")
    head.click()
    titles = cells.evaluate_all("cells => cells.map(cell => cell.title)")
    assert titles[0] == "inf"
    assert titles[-1] == "nan"
    head.click()
    titles = cells.evaluate_all("cells => cells.map(cell => cell.title)")
    assert titles[-2:] == ["inf", "nan"]


@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
def test_the_body_never_scrolls_sideways(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        "Array.from(document.querySelectorAll('body *')).filter(e => !e.closest('.scroll > *')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("width", [320, 360, 500, 800])
def test_no_column_is_cut_off_in_a_narrow_window(open_page, width):
    page = open_page(width)
    for table in page.locator(".sortable, .losses, .few").all():
        box = table.evaluate_handle("table => table.closest('.scroll')")
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    row = page.locator(".sortable").first.locator("tbody tr").first
    name, ratio, proof = (row.locator(part).bounding_box() for part in ("th", ".ratio", ".proof"))
    assert name["y"] == ratio["y"] == proof["y"]  # what is asked first stands on one line
    assert name["x"] < ratio["x"] < proof["x"]
    labels = row.locator("td[data-label]")
    assert labels.evaluate_all("cells => cells.map(cell => cell.dataset.label)") == [
        *("numbers", "torch error", "jax error", "torch − jax", "bound"),
    ]
    for cell in labels.all():
        assert cell.bounding_box()["y"] > name["y"]
        shown = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert cell.get_attribute("data-label") in shown


def test_a_stacked_table_is_sorted_by_its_heads_too(open_page, report):
    page = open_page(500)
    page.locator(".sortable").first.locator("th button", has_text="ratio").click()
    ratios = {f.name: f.ratio for f in report[1].findings if f.kind != "gradient"}
    assert [ratios[name] for name in names(page)] == sorted(ratios.values(), reverse=True)


def test_a_wide_window_shows_every_column(open_page):
    page = open_page(1280)
    for table in page.locator(".all .scroll").all():
        assert table.evaluate("box => box.scrollWidth <= box.clientWidth + 1")


def test_dark_and_light_are_different_and_paper_is_light(open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    assert open_page(color_scheme="light").evaluate(background) == "rgb(255, 255, 255)"
    dark = open_page(color_scheme="dark")
    assert dark.evaluate(background) == "rgb(20, 24, 28)"
    dark.emulate_media(media="print")
    assert dark.evaluate(background) == "rgb(255, 255, 255)"


def test_a_pointer_shows_the_numbers_and_escape_hides_them(open_page, report):
    page = open_page()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    finding = report[1].findings[5]
    page.locator("figure").first.scroll_into_view_if_needed()
    page.locator("rect.hit").nth(5).hover()
    assert tip.is_visible()
    for value in (
        finding.name,
        *map(short, (finding.error_a, finding.error_b, finding.cross, finding.ratio, finding.bound_a)),
    ):
        assert value in tip.text_content()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("g.hit").first.hover()
    assert "blocks.0.norm" in tip.text_content()
    page.locator("h1").hover()
    assert tip.is_hidden()


def test_predictions_stand_beside_each_other(open_page, report):
    page = open_page(390)
    cards = page.locator(".cards > li")
    assert cards.count() == len(report[1].predictions) == 8
    for card, prediction in zip(cards.all(), report[1].predictions, strict=True):
        a, b = (side.bounding_box() for side in card.locator(".beside > div").all())
        assert a["y"] == b["y"]
        assert a["x"] + a["width"] <= b["x"]
        shares = card.locator(".share").evaluate_all(
            "bars => bars.map(bar => bar.getBoundingClientRect().width)"
        )
        assert min(shares) >= 1
        shown = card.locator(".likeliest .number").evaluate_all("all => all.map(one => one.title)")
        assert shown == [repr(probability) for _, probability in (*prediction.a, *prediction.b)]
    came = {prediction.target for prediction in report[1].predictions}
    shown = set(page.locator(".target").all_text_contents())
    assert shown == {{"\n": "⏎", "\t": "⇥", " ": "␣"}.get(token, token) for token in came}


def test_what_is_the_same_unfolds(open_page):
    page = open_page()
    first = page.locator("details").first
    assert not first.locator("table").is_visible()
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.locator("table").is_visible()


def test_paper_has_what_is_folded_up(open_page):
    page = open_page()
    page.locator("summary").first.click()
    is_open = "Array.from(document.querySelectorAll('details')).map(each => each.open)"
    before = page.evaluate(is_open)
    assert before[0]
    assert not all(before)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(page.evaluate(is_open))
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 900})  # A4
    assert page.evaluate("document.documentElement.scrollWidth") == 690
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(is_open) == before


def shown(kind):
    """A report of each outcome, of excerpts, of repeats, and of sides with long names."""
    fault = {"fault": "far", "ratio": 9.0}
    made = {
        "agree": comparison,
        "differ": lambda: comparison(embed={**fault, "nature": "function"}),
        "differ by rounding more than expected": lambda: comparison(embed={**fault, "nature": "rounding"}),
        "cannot tell": lambda: comparison(embed={**fault, "nature": "too few numbers"}),
    }
    if kind in made:
        return made[kind]().to_dict()
    if kind == "excerpts":
        unmeasured = {"error_a": np.nan, "error_b": np.nan}
        compared = comparison(loss=unmeasured, grad_norm=unmeasured)
        report = replace(compared, referee=False, losses=(2.0, 2.0, np.nan)).to_dict()
        return {**report, "doubts": ["the weights are of two dtypes"], "outcome": "cannot tell"}
    if kind == "repeats":
        repeats = Repeats()
        for seed in range(3):
            repeats.add(seed, comparison(embed={**fault, "nature": "function"} if seed == 1 else {}))
        return repeats.result().to_dict()
    report = trained(12)
    report["sides"][0]["label"] = name = "torch " + "a_name_that_nobody_can_break" * 3
    report["verdict"] += name
    report["doubts"] = [name]
    report["predictions"][0]["context"] = name
    return report


def foreign():
    """A report on a port of which only logits are seen, with a name that nobody can break."""
    return ForeignComparison(
        label="port_" * 30,
        config=CONFIG,
        dtype="float32",
        before=0.1,
        bound=1e-6,
        not_finite=0,
        rounding_of=None,
        likenesses=(Likeness("rotary pairing", "half-split", 1e-7, "Rotate pairs." * 9),),
        top1_agreement=0.5,
        kl_divergence=0.25,
        tried=1047,
        left_out=3,
    ).to_dict()


@pytest.mark.parametrize("width", [320, 500, 1280])
def test_a_foreign_report_fits_and_has_a_dot_for_each_distance(open_any, tmp_path, width):
    path = tmp_path / "report.html"
    path.write_text(html.page(foreign()), encoding="utf-8", newline="\n")
    page = open_any(path.as_uri(), width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    area = page.locator("svg.area").bounding_box()
    beyond, explained = (page.locator(f"circle.{kind}").bounding_box() for kind in ("beyond", "explained"))
    band = page.locator("rect.band").last.bounding_box()
    assert area["x"] <= explained["x"] < band["x"] + band["width"] < beyond["x"]
    assert beyond["x"] + beyond["width"] <= area["x"] + area["width"] + 1
    page.locator("circle.beyond").hover()
    assert "distance 0.1" in page.locator("#tip").text_content()


NOTEBOOK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>notebook</title>
<style>td, th { text-align: right; background: #eee } tbody tr:nth-child(odd) { background: #f5f5f5 }</style>
<body %s><p class="badge" id="other">other</p>%s"""


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize(
    ("theme", "scheme", "dark"),
    [
        ("", "light", False),
        ("", "dark", True),
        ('data-jp-theme-light="true"', "dark", False),
        ('data-jp-theme-light="false"', "light", True),
    ],
)
def test_a_fragment_keeps_to_itself_and_to_the_notebooks_theme(
    open_any, tmp_path, theme, scheme, dark, width
):
    path = tmp_path / "notebook.html"
    parts = [fragment(shown("differ")), fragment(foreign())]
    path.write_text(NOTEBOOK % (theme, "".join(parts)), encoding="utf-8")
    page = open_any(path.as_uri(), width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    colour = page.locator(".palm-report").first.evaluate("one => getComputedStyle(one).backgroundColor")
    assert colour == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")
    other = page.locator("#other").evaluate("one => getComputedStyle(one).borderRadius")
    assert other == "0px"  # a class of ours outside of the fragment
    assert page.locator("svg.area").count() == 2
    for what in (".badge:not(#other)", ".palm-report p", "tbody th", "tbody td"):
        assert all(contrast >= 4.5 for contrast in page.evaluate(CONTRAST, what)), what


OUTCOMES = ("agree", "differ", "differ by rounding more than expected", "cannot tell")
# WCAG's contrast of an element's text with what lies behind it; colours are opaque here.
CONTRAST = """selector => Array.from(document.querySelectorAll(selector)).map(element => {
  const light = colour => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [low, high] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
    .map(light).sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", [*OUTCOMES, "excerpts", "repeats", "long"])
def test_reports_of_all_kinds_open_fit_and_can_be_read(open_any, tmp_path, kind, scheme):
    path = tmp_path / "report.html"
    found = shown(kind)
    path.write_text(html.page(found), encoding="utf-8", newline="\n")
    page = open_any(path.as_uri(), 390, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".badge").text_content()[2:] == found["outcome"]
    if kind in OUTCOMES:
        assert found["outcome"] == kind
    always = (".badge", "h1", "h2", ".read p", ".quiet", "dt", "dd", ".proof", ".context", ".ctl", "summary")
    for what in (*always, ".why", ".words", ".cause", ".differs th", ".cards strong", ".chip", ".target"):
        contrasts = page.evaluate(CONTRAST, what)
        assert all(contrast >= 4.5 for contrast in contrasts), what
        assert contrasts or what not in always


def test_outcomes_have_colours_of_their_own(open_any, tmp_path):
    colours = set()
    for outcome in OUTCOMES:
        path = tmp_path / "report.html"
        path.write_text(html.page(shown(outcome)), encoding="utf-8", newline="\n")
        badge = open_any(path.as_uri()).locator(".badge")
        colours.add(badge.evaluate("badge => getComputedStyle(badge).backgroundColor"))
    assert len(colours) == len(OUTCOMES)


def test_a_finger_shows_the_numbers_too(open_page):
    page = open_page(360, has_touch=True, is_mobile=True)
    page.locator("g.hit").first.tap()
    tip = page.locator("#tip")
    assert tip.is_visible()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_plots_have_names_for_those_who_do_not_see_them(open_page):
    page = open_page()
    labels = [plot.get_attribute("aria-label") for plot in page.locator("svg.area[role=img]").all()]
    assert len(labels) == (6 if page.locator(".training").count() else 3)
    assert "torch and jax at 30 taps" in labels[0]
    for region in page.get_by_role("region").all():
        assert region.get_attribute("aria-label")
        assert region.get_attribute("tabindex") == "0"


@pytest.mark.parametrize("report", ["training"], indirect=True)
@pytest.mark.parametrize("width", [320, 1280])
def test_training_is_drawn_to_the_last_step_and_shows_all_digits(open_page, width):
    page = open_page(width)
    plots = page.locator(".training svg.area")
    assert plots.count() == 3
    for plot, curves in zip(
        plots.all(), (("a", "b"), ("cross", "control"), ("cross", "control")), strict=True
    ):
        box = plot.bounding_box()
        for curve in curves:
            dots = plot.locator(f"path.dots.{curve}").bounding_box()
            assert dots["width"] > 0.9 * box["width"]
            assert box["y"] < dots["y"] < box["y"] + box["height"]
        for label in plot.locator("text").all():
            place = label.bounding_box()
            assert box["x"] <= place["x"]
            assert place["x"] + place["width"] <= box["x"] + box["width"] + 0.5
    last = page.locator(".training rect.hit").nth(3 * 21 - 1)
    last.scroll_into_view_if_needed()
    last.hover()
    assert page.locator("#tip").text_content().startswith("after 20 updates\nup to 3 times the control")
    expected = float(
        page.locator(".few tbody tr:last-child td").nth(4).locator("span").get_attribute("title")
    )
    assert f"torch against jax {expected!r}" in page.locator("#tip").text_content()

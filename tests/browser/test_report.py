"""The report in a real Chromium: it works from disk, by mouse, keyboard and finger, at any width."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from palm import compare, reference, reference_grad
from palm.compare import Recording
from palm.compare.butterfly import butterfly
from palm.compare.html import write_html
from palm.compare.trajectory import Trajectory
from palm.config import PaLMConfig
from palm.params import initial_value, parameters

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CONFIG = PaLMConfig(num_tokens=32, dim=16, depth=3, heads=2, dim_head=8).resolve("torch")
FAULTY = ("blocks.1.q", "blocks.1.attention")


def recording(label: str, seed: int, faulty: bool) -> Recording:
    """The referee's own values with rounding's errors, and taps that no rounding explains if `faulty`."""
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(0).integers(0, CONFIG.num_tokens, (2, 6))
    weights = {p.name: initial_value(p, 0, "float64") for p in parameters(CONFIG).values()}
    taps = reference.activations(CONFIG, weights, tokens)
    loss, grads = reference_grad.value_and_grad(CONFIG, weights, tokens)
    if faulty:
        taps |= {name: taps[name] * 1.01 for name in FAULTY}

    def rounded(arrays):
        return {
            n: (x * (1 + 1e-7 * rng.standard_normal(x.shape))).astype("float32") for n, x in arrays.items()
        }

    return Recording(
        label=label,
        config=CONFIG,
        dtype="float32",
        tokens=tokens,
        weights=weights,
        taps=rounded(taps),
        grads=rounded(grads),
        loss=float(np.float32(loss)),
        exact_taps=taps,
        exact_grads=grads,
        exact_loss=loss,
        environment={"device": label},
    )


def way(seed: int) -> Trajectory:
    """A training of 20 steps with rounding's errors, that doubles them in each."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((21, 50)) * 1e-7 * 2.0 ** np.arange(21)[:, None]
    losses = np.linspace(5, 4, 21) + 1e-6 * rng.standard_normal(21)
    return Trajectory(losses, np.ones(21), 1 + noise, parameters=50)


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
    write_html(found, path)
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
def open_page(browser, report):
    """Open the report in a fresh profile; at the end nothing may have been asked for or complained about."""
    opened, seen = [], []

    def open_at(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(report[0])
        return page

    yield open_at
    for context in opened:
        context.close()
    assert seen == [report[0]] * len(opened)


def names(page):
    return page.locator(".sortable").first.locator("tbody th").all_text_contents()


def test_the_verdict_is_shown(open_page, report):
    page = open_page()
    assert page.locator("h1").text_content() == report[1].verdict
    assert page.locator(".badge").text_content() == ("✓ agree" if report[1].agree else "✕ differ")


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


def test_a_head_sorts_by_click(open_page, report):
    page = open_page()
    ratios = {f.name: f.ratio for f in report[1].findings if f.kind != "gradient"}
    in_order = list(ratios)
    head = page.locator(".sortable").first.locator("th", has_text="ratio")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [ratios[name] for name in names(page)] == sorted(ratios.values(), reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [ratios[name] for name in names(page)] == sorted(ratios.values())
    page.locator(".sortable").first.locator("th button", has_text="#").click()
    assert names(page) == in_order


def test_a_head_sorts_by_keyboard(open_page):
    page = open_page()
    before = names(page)
    heads = page.locator(".sortable").first.locator("th button")
    heads.first.focus()
    page.keyboard.press("Tab")
    assert heads.nth(1).evaluate("button => button === document.activeElement")
    assert heads.nth(1).evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert names(page) == sorted(before)
    page.keyboard.press("Space")
    assert names(page) == sorted(before, reverse=True)


def test_nan_sorts_last_and_infinity_above_all_numbers(open_page):
    page = open_page()
    cells = page.locator(".sortable").first.locator("tbody td:nth-child(6)")
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


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_body_never_scrolls_sideways(open_page, width):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    outside = page.evaluate(
        "Array.from(document.querySelectorAll('body *')).filter(e => !e.closest('.scroll > *')"
        " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


def test_wide_tables_scroll_on_a_phone(open_page):
    page = open_page(360)
    table = page.locator(".all .scroll").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    name = table.locator("tbody th").first
    before = name.bounding_box()["x"]
    table.evaluate("box => { box.scrollLeft = 200 }")
    assert name.bounding_box()["x"] <= before
    assert name.bounding_box()["x"] >= 0  # the row keeps its name in sight


def test_dark_and_light_are_different_and_paper_is_light(open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    assert open_page(color_scheme="light").evaluate(background) == "rgb(255, 255, 255)"
    dark = open_page(color_scheme="dark")
    assert dark.evaluate(background) == "rgb(20, 24, 28)"
    dark.emulate_media(media="print")
    assert dark.evaluate(background) == "rgb(255, 255, 255)"


def test_a_pointer_shows_all_digits_and_escape_hides_them(open_page, report):
    page = open_page()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    finding = report[1].findings[5]
    page.locator("figure").first.scroll_into_view_if_needed()
    page.locator("rect.hit").nth(5).hover()
    assert tip.is_visible()
    for value in (
        finding.name,
        finding.error_a,
        finding.error_b,
        finding.cross,
        finding.ratio,
        finding.bound_a,
    ):
        assert str(value) in tip.text_content()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("g.hit").first.hover()
    assert "blocks.0.norm" in tip.text_content()
    page.locator("h1").hover()
    assert tip.is_hidden()


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

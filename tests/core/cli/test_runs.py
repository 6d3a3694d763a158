"""`palm runs` and `palm plot`: what is printed, and what is in the files that are written."""

import json
import os
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from run_lists import make_run

from palm.cli.main import main

NASTY = "<script>alert(1)</script> $x_2$ \x1b[31m & _"
BLUE, ORANGE, GREEN = (23, 100, 171), (217, 72, 15), (43, 138, 62)
# Orange at 18 % on white.
BAND = tuple(round(255 - 0.18 * (255 - value)) for value in ORANGE)


@pytest.fixture
def folder(tmp_path):
    """Two lines, one of them of three seeds; and a run that is damaged."""
    runs = tmp_path / "runs"
    for seed in range(3):
        make_run(runs / f"slow-{seed}", [5 - step / 20 + seed / 5 for step in range(40)], seed=seed)
    make_run(runs / "fast", [5 - step / 10 for step in range(40)], learning_rate=0.5)
    (make_run(runs / "torn", [1.0]).path / "run.json").write_text("[")
    return runs


def palm(capsys, *arguments, status=0):
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr()


def test_runs_are_printed_a_line_each_and_damage_too(folder, capsys):
    printed = palm(capsys, "runs", folder)
    lines = printed.out.splitlines()
    head = "run step loss validation lowest learning_rate seed"
    assert " ".join(lines[0].split()) == head
    assert " ".join(lines[1].split()) == "fast 40/10 1.1000 2.1000 2.1000 0.5 0"
    assert [line.split()[0] for line in lines[2:5]] == ["slow-0", "slow-1", "slow-2"]
    assert lines[5].startswith("damaged: torn: ")
    assert len(lines) == 6
    assert printed.err == ""


def test_runs_are_printed_as_json(folder, capsys):
    told = json.loads(palm(capsys, "runs", folder, "--json").out)
    assert told["differing"] == ["learning_rate", "seed"]
    assert [run["run"] for run in told["runs"]] == ["fast", "slow-0", "slow-1", "slow-2"]
    assert list(told["damaged"]) == ["torn"]


def test_a_folder_without_runs_says_so_and_a_missing_one_is_an_error(tmp_path, capsys):
    assert palm(capsys, "runs", tmp_path).out == f"no runs in {tmp_path}\n"
    assert "folder must be" in palm(capsys, "runs", tmp_path / "gone", status=2).err


def test_a_name_cannot_control_the_terminal(tmp_path, capsys):
    make_run(tmp_path / NASTY.replace("/", "|"), [1.0])
    printed = palm(capsys, "runs", tmp_path).out
    assert "\x1b" not in printed
    assert "\\x1b[31m" in printed


def pixels(file):
    from matplotlib.image import imread

    return np.round(imread(file)[:, :, :3] * 255).astype(int)


def has(picture, colour):
    return int((abs(picture - colour) <= 1).all(2).sum())


def test_a_png_has_a_line_for_each_group_and_a_band_for_several_seeds(folder, tmp_path, capsys):
    out = tmp_path / "losses.png"
    printed = palm(capsys, "plot", folder, "--out", out)
    assert printed.out.splitlines()[-1] == str(out)
    assert "a band and bars from the lowest to the highest" in printed.out
    assert printed.err.startswith(f"left out {folder / 'torn'}: ")
    picture = pixels(out)
    assert has(picture, BLUE) > 200
    assert has(picture, ORANGE) > 200
    assert has(picture, GREEN) == 0
    assert has(picture, BAND) > 2000
    assert (picture == 255).all(2).mean() > 0.5  # a light background
    palm(capsys, "plot", folder / "fast", folder / "slow-0", "--out", out)
    assert has(pixels(out), BAND) < 500  # the soft edges of a line


@pytest.mark.parametrize("equal", [True, False])
def test_of_two_equal_runs_both_lines_are_seen(tmp_path, capsys, equal):
    losses = np.linspace(4, 2, 50).tolist()
    for batch in (1, 2):
        make_run(
            tmp_path / f"{batch}", losses if equal else [x + batch for x in losses], batch=batch, steps=50
        )
    printed = palm(capsys, "plot", tmp_path, "--out", tmp_path / "equal.png").out
    picture = pixels(tmp_path / "equal.png")
    assert min(has(picture, BLUE), has(picture, ORANGE)) > 1000
    assert ("Where lines coincide, the lower one is wider." in printed) == equal
    assert "a running mean over 5 % of the steps" in printed


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("axis", ["step", "tokens"])
def test_an_svg_has_its_text_as_text_and_is_the_same_each_time(folder, tmp_path, capsys, axis):
    out = tmp_path / "losses.svg"
    palm(capsys, "plot", folder, "--out", out, "--x", axis)
    first = out.read_bytes()
    palm(capsys, "plot", folder, "--out", out, "--x", axis)
    assert out.read_bytes() == first
    assert {"runs", axis, "loss (nats per token)", "fast", "slow (3 seeds)"} <= set(texts(first))


def test_a_page_has_picture_and_table_and_loads_nothing(folder, tmp_path, capsys):
    out = tmp_path / "losses.html"
    palm(capsys, "plot", folder, "--out", out)
    page = out.read_text(encoding="utf-8")
    assert "<svg" in page
    assert page.count("<tr>") == 5
    assert "<td>slow (3 seeds)</td><td>slow-1</td>" in page
    assert not any(word in page for word in ("<script", "src=", "@import", "url(http"))


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_no_name_becomes_markup_or_mathematics(tmp_path, capsys, kind):
    name = NASTY.replace("/", "|")
    make_run(tmp_path / "in <b>" / name, [1.0, 2.0])
    out = tmp_path / f"losses.{kind}"
    palm(capsys, "plot", tmp_path / "in <b>", "--out", out)
    content = out.read_text(encoding="utf-8")
    assert "<script" not in content
    assert "<b>" not in content
    assert "\x1b" not in content
    assert "&lt;script&gt;alert(1)&lt;|script&gt; $x_2$ \\x1b[31m &amp; _" in content
    assert "in &lt;b&gt;" in content


@pytest.mark.filterwarnings("error")
def test_letters_that_a_font_lacks_are_no_error(tmp_path, capsys):
    make_run(tmp_path / "run-漢字", [1.0, 2.0])
    assert palm(capsys, "plot", tmp_path, "--out", tmp_path / "losses.png").err == ""


def test_a_run_that_is_named_twice_is_drawn_once(folder, tmp_path, capsys):
    out = tmp_path / "losses.svg"
    palm(capsys, "plot", folder, folder / "fast", "--out", out)
    assert texts(out.read_bytes()).count(os.path.join("runs", "fast")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "losses.gif"], "out must end in .png, .svg, .html; got out=losses.gif"),
        (["--out", "gone/losses.png"], "out must be a writable file; got out=gone/losses.png"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder.parent)
    printed = palm(capsys, "plot", "runs/fast", *arguments, status=2)
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_damaged_run_by_name_is_an_error(folder, tmp_path, capsys):
    printed = palm(capsys, "plot", folder / "torn", "--out", tmp_path / "losses.png", status=2)
    assert "run.json must be" in printed.err
    assert not (tmp_path / "losses.png").exists()

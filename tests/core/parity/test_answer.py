"""What an answer prints, what a prompt shows of it, and the report that it writes."""

import json

import pytest
from reports import comparison, recording

from palm import PalmError
from palm.parity.recording.excerpt import excerpt_of
from palm.parity.repeats import Repeats

FAR = {"fault": "far", "nature": "function", "ratio": 123456.0, "error_b": 0.1, "cross": 0.1}


def repeated(times):
    repeats = Repeats()
    for seed in range(times):
        repeats.add(seed, comparison(2))
    return repeats.result()


@pytest.mark.parametrize("fault", [{}, {"blocks_99_feedforward_out": FAR}], ids=["agree", "differ"])
def test_print_shows_the_verdict_and_a_table_of_a_few_lines(fault):
    found = comparison(118, **fault)
    lines = str(found).splitlines()
    assert lines[0].startswith("DIFFER" if fault else "AGREE")
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert any("blocks.99.feedforward_out" in line for line in lines) == bool(fault)


@pytest.mark.parametrize("make", [lambda: comparison(118), lambda: repeated(3)], ids=["one", "repeats"])
def test_a_prompt_shows_two_lines_at_most(make):
    shown = repr(make())
    assert len(shown) <= 160
    assert "agree" in shown


def test_the_report_is_a_page_or_json_by_the_name_of_its_file(tmp_path):
    found = comparison(2)
    page = found.save_report(tmp_path / "x.html")
    assert page.read_text(encoding="utf-8") == found.to_html()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(found.save_report(tmp_path / "x.json").read_text()) == json.loads(
        json.dumps(found.to_dict())
    )


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(PalmError, match=r"path must be a file that can be written; got path=.*/no\. Choose"):
        comparison(1).save_report(tmp_path / "no" / "x.html")


@pytest.mark.parametrize("name", ["x.pdf", "x", "x.html.txt"])
def test_a_report_in_a_form_that_palm_does_not_write_is_refused(name, tmp_path):
    with pytest.raises(PalmError, match=rf"path must end in \.html or \.json; got path=.*{name}\. Choose"):
        comparison(1).save_report(tmp_path / name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "make",
    [
        lambda: comparison(1),
        lambda: repeated(2),
        lambda: recording("a", 0),
        lambda: excerpt_of(recording("a", 0)),
    ],
    ids=["comparison", "repeats", "recording", "excerpt"],
)
def test_answers_and_recordings_are_equal_to_themselves_alone(make):
    found = make()
    assert found == found  # noqa: PLR0124 - what is tested
    assert found != make()
    assert len({found, make()}) == 2


def test_a_notebook_shows_a_part_of_a_page_without_a_script():
    shown = comparison(2)._repr_html_()
    assert "torch" in shown
    assert "<html" not in shown
    assert "<script" not in shown

"""No link of the documentation leads nowhere; and one that does would be found."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cases import ROOT
from links import broken_in_pages, pages

BROKEN = {
    "[x](gone.md)": "no such file",
    "![x](gone.png)": "no such file",
    '<img src="gone.png" alt="x">': "no such file",
    "[x](#gone)": "no such heading",
    "[x](other.md#gone)": "no such heading",
    "[x](https:/example.org)": "no host",
    "[x](htp://example.org)": "a scheme that is not used here",
}
RIGHT = (
    "[x](other.md)",
    "[x](other.md#two-words-and-code)",
    "[x](#here-1)",
    "[x](https://example.org/a_(b))",
    "`[x](gone.md)`",
    "```\n[x](gone.md)\n```",
)


def test_no_link_of_the_project_is_broken():
    assert ROOT / "README.md" in pages(ROOT)
    assert list(broken_in_pages(pages(ROOT))) == []


def page(folder, text):
    (folder / "other.md").write_text("# Two words, and `code`\n", encoding="utf-8")
    (folder / "page.md").write_text(f"# Here\n\n# Here\n\n{text}\n", encoding="utf-8")
    return [folder / "page.md"]


@pytest.mark.parametrize("link", BROKEN)
def test_a_broken_link_is_found(tmp_path, link):
    [found] = broken_in_pages(page(tmp_path, link))
    assert found.endswith(f": {BROKEN[link]}")


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_one_is_not(tmp_path, text):
    assert list(broken_in_pages(page(tmp_path, text))) == []


@pytest.mark.parametrize(
    ("link", "status"),
    [("../", 0), ("../#here", 0), ("../#gone", 1), ("../gone/", 1), ("gone.svg", 1), ("https:///x", 1)],
)
def test_the_built_site_is_checked_too(tmp_path, link, status):
    (tmp_path / "inner").mkdir()
    (tmp_path / "index.html").write_text('<h1 id="here">x</h1>', encoding="utf-8")
    (tmp_path / "inner" / "index.html").write_text(f'<a href="{link}">x</a>', encoding="utf-8")
    command = [sys.executable, str(ROOT / "tests" / "links.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout


def test_a_folder_that_is_no_site_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "links.py"), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1

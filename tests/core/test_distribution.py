"""What `nox -s package` finds wrong with a wheel and a source archive; and what describes this version."""

import re
import sys
from pathlib import Path

import pytest
from cases import ROOT
from distribution import IN_SOURCE, IN_WHEEL, wrong_environment, wrong_in_source, wrong_in_wheel

import palm

SOURCES = ["palm/__init__.py", *sorted(IN_WHEEL)]
WHEEL = [*SOURCES, "palm_dual-1.dist-info/METADATA", "palm_dual-1.dist-info/licenses/LICENSE"]
TRACKED = [
    *sorted(IN_SOURCE - {"PKG-INFO"}),
    "src/palm/py.typed",
    "tests/cases.py",
    ".github/workflows/ci.yml",
]
SOURCE = [f"palm_dual-1/{name}" for name in (*TRACKED, "PKG-INFO") if not name.startswith(".")]


def test_a_right_wheel_and_a_right_archive_have_nothing_wrong():
    assert list(wrong_in_wheel(WHEEL, SOURCES)) == []
    assert list(wrong_in_source(SOURCE, TRACKED)) == []


@pytest.mark.parametrize("name", ["tests/cases.py", "palm/__pycache__/x.pyc", "palm/notes.txt", "setup.py"])
def test_what_should_not_be_in_a_wheel_is_found(name):
    assert list(wrong_in_wheel([*WHEEL, name], SOURCES)) == [f"wheel: {name} should not be there"]


@pytest.mark.parametrize("name", [*SOURCES, "palm_dual-1.dist-info/licenses/LICENSE"])
def test_what_a_wheel_lacks_is_found(name):
    [found] = wrong_in_wheel([other for other in WHEEL if other != name], SOURCES)
    assert found == ("wheel: the licence is missing" if "LICENSE" in name else f"wheel: {name} is missing")


@pytest.mark.parametrize("name", ["notes.txt", "src/palm/__pycache__/x.py", "build/x", ".env"])
def test_what_should_not_be_in_a_source_archive_is_found(name):
    [found] = wrong_in_source([*SOURCE, f"palm_dual-1/{name}"], TRACKED)
    assert found == f"source: {name} should not be there"


@pytest.mark.parametrize("name", ["LICENSE", "src/palm/py.typed", "tests/cases.py", "PKG-INFO"])
def test_what_a_source_archive_lacks_is_found(name):
    [found] = wrong_in_source([other for other in SOURCE if other != f"palm_dual-1/{name}"], TRACKED)
    assert found == f"source: {name} is missing"


def test_an_environment_with_more_than_palm_is_found():
    found = list(wrong_environment(Path(sys.executable)))
    assert "the base brings pytest along" in found


def test_the_citation_is_of_this_version_and_names_the_authors_of_the_project():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    [version] = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert version == palm.__version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [authors] = re.findall(r'^authors = \[\{ name = "(.+)" \}\]$', project, re.MULTILINE)
    assert f"authors:\n  - name: {authors}\n" in citation
    assert authors in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_release_keeps_no_secret():
    release = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert "id-token: write" in release
    assert not re.search(r"secrets\.|password|token:(?! write)", release.replace("id-token: write", ""))

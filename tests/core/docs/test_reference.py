"""The reference has a place for every public name."""

from __future__ import annotations

import re

from cases import ROOT

import palm
import palm.testing

# Tables, of which the reference says in words what is in them.
IN_WORDS = {"palm.PRESETS", "palm.RECIPES"}


def described() -> set[str]:
    """What mkdocstrings is asked to describe."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("api-*.md")]
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}


def missing(names: set[str]) -> set[str]:
    return names - described() - IN_WORDS


def test_every_public_name_is_described():
    assert missing({f"palm.{name}" for name in palm.__all__}) == set()
    assert missing({f"palm.testing.{name}" for name in palm.testing.__all__}) == set()


def test_a_name_that_is_not_described_would_be_found():
    assert missing({"palm.build", "palm.gone"}) == {"palm.gone"}


def test_what_is_described_in_words_is_there():
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("api-*.md"))
    assert all(f"`{name}`" in text for name in IN_WORDS)

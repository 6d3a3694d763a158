"""Links that lead nowhere: in the Markdown pages of the project, and in the site that is built from them.

    python tests/links.py build/site

A link inside the project must lead to a file that exists, and to a heading or an id in it. A link to another
machine is checked by its form alone: no test needs a network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FENCED = re.compile(r"^( *)(```|~~~).*?^\1\2[^\n]*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)(?:\s+\"[^\"]*\")?\)")
_TAG = re.compile(r"<(?:a|img|source)\s[^>]*?(?:href|src|srcset)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_OUTSIDE = ("http", "https", "mailto")


def pages(root: Path) -> list[Path]:
    """The Markdown pages of the project."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/*.md")])


def broken_in_pages(files: Iterable[Path]) -> Iterator[str]:
    """Every link of these Markdown files that leads nowhere, with the file it stands in."""
    for file in files:
        text = _CODE.sub("", _FENCED.sub("", file.read_text(encoding="utf-8")))
        for link in [*_LINK.findall(text), *_TAG.findall(text)]:
            if reason := _broken(file, link):
                yield f"{file.name}: {link}: {reason}"


def broken_in_site(site: Path) -> Iterator[str]:
    """Every link of the built pages that leads nowhere, with the page it stands in."""
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # its links start at the root of a server
            continue
        for link in _parsed(file).links:
            if reason := _broken(file, link):
                yield f"{file.relative_to(site)}: {link}: {reason}"


def _broken(file: Path, link: str) -> str | None:
    """Why a link of this file leads nowhere, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return _malformed(link)
    target = file if not parts.path else (file.parent / unquote(parts.path)).resolve()
    if target.is_dir() and file.suffix == ".html":
        target /= "index.html"
    if not target.exists():
        return "no such file"
    if (
        parts.fragment
        and target.suffix in (".md", ".html")
        and unquote(parts.fragment) not in _anchors(target)
    ):
        return "no such heading"
    return None


def _malformed(link: str) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("data", "javascript"):
        return None
    if parts.scheme not in _OUTSIDE:
        return "a scheme that is not used here"
    has_host = parts.scheme == "mailto" or re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc)
    return None if has_host else "no host"


@cache
def _anchors(file: Path) -> frozenset[str]:
    if file.suffix == ".html":
        return frozenset(_parsed(file).ids)
    text = _FENCED.sub("", file.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for heading in _HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return frozenset(found)


class _Page(HTMLParser):
    """The links of a page, and the ids that links may lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids += [given[name] for name in ("id", "name") if name in given]
        self.links += [given[name] for name in ("href", "src") if name in given and tag != "base"]


@cache
def _parsed(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def main() -> None:
    """Check the site in the folder that is given; exit status 1 if a link is broken."""
    site = Path(sys.argv[1])
    if not (site / "index.html").exists():
        sys.exit(f"{site} must be a built site; it has no index.html.")
    found = list(broken_in_site(site))
    print("\n".join(found) or "No link is broken.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

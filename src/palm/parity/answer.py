"""What every answer of the instrument can do: print itself, show itself in a notebook, become a report."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import Any

from palm.errors import PalmError
from palm.files.write import remedy, replace_file
from palm.parity.finding import Outcome
from palm.parity.report import html, terminal


class Answer(ABC):
    """The answer of a comparison. `print(answer)` shows the verdict and a table of at most 80 columns."""

    @property
    @abstractmethod
    def outcome(self) -> Outcome:
        """The answer in a word or two."""

    @property
    @abstractmethod
    def verdict(self) -> str:
        """The answer in a sentence or two."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; docs/report.md describes each key."""

    def to_html(self) -> str:
        """The report as one HTML page that needs no other file."""
        return html.page(self.to_dict())

    def save_report(self, path: str | PathLike[str]) -> Path:
        """Write the report to the file `path`: an HTML page if its name ends in .html, JSON if in .json.

        Raises `PalmError` for another ending, and if the file cannot be written.
        """
        file = Path(path)
        if file.suffix not in (".html", ".json"):
            raise PalmError(f"path must end in .html or .json; got path={file}. Choose one of the two.")
        text = json.dumps(self.to_dict(), indent=1) if file.suffix == ".json" else self.to_html()
        try:
            replace_file(file, text.encode(errors="backslashreplace"))
        except OSError as error:
            why = error.strerror if file.parent.is_dir() else f"there is no folder {file.parent}"
            raise PalmError(
                f"path must be a file that can be written; got path={file}: {why}. {remedy(error)}"
            ) from None
        return file

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.fragment(self.to_dict())

    def __str__(self) -> str:
        return terminal.text(self.to_dict())

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {shorten(self.verdict, 120, placeholder=' …')}>"

"""Where the report of a comparison goes: into a folder and onto the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palm.cli.display import Terminal
from palm.errors import PalmError
from palm.files.write import remedy, replace_files
from palm.parity.finding import Outcome
from palm.parity.report.html import page
from palm.parity.report.terminal import print_report

STATUS: dict[Outcome, int] = {
    "agree": 0,
    "differ": 1,
    "differ by rounding more than expected": 1,
    "cannot tell": 3,
}


def check_writable(out: Path) -> None:
    """Make the folder of the reports, before any work. Raises `PalmError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(0, "no permission to write")
    except OSError as error:
        raise PalmError(
            f"out must be a writable folder; got out={out}: {error.strerror}. Name another with --out."
        ) from None


def show(report: Mapping[str, Any], out: Path) -> int:
    """Write the report, print it, and give the command's exit status. Raises `PalmError`."""
    files = {out / "report.html": page(report), out / "report.json": json.dumps(report, indent=1)}
    try:
        # A name of bytes that are no UTF-8 may stand in a report.
        replace_files({file: text.encode(errors="backslashreplace") for file, text in files.items()})
    except OSError as error:
        raise PalmError(
            f"out must be a writable folder; got out={out}: {error.strerror}. {remedy(error)}"
        ) from None
    console = Terminal()
    settings = ", ".join(f"{name} {value}" for name, value in report["run"].items())
    console.print(f"{settings}\n", highlight=False, markup=False)
    print_report(report, console)
    console.print("\n" + "\n".join(map(str, files)), highlight=False, markup=False)
    return STATUS[report["outcome"]]

"""What the parts of gpu.sh share: their arguments, and the file that each keeps its results in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from speed import slug

from palm.parity.recording.recording import environment


def path_of(out: Path, part: str, device: str, kind: str = "json") -> Path:
    """A part's file."""
    return out / f"{part}_{slug(device)}.{kind}"


def parser(doc: str) -> argparse.ArgumentParser:
    """Takes what gpu.py gives every part."""
    parser = argparse.ArgumentParser(description=doc.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--device", required=True, help="what the device is called in results")
    parser.add_argument("--dry-run", action="store_true", help="small, on a CPU")
    return parser


class Results:
    """A part's results, written whole whenever something is added, so that an end at any time loses little.

    `lines` say in words what gpu.py prints at its end.
    """

    def __init__(self, part: str, asked: argparse.Namespace) -> None:
        self._path = path_of(asked.out, part, asked.device)
        self._words: dict[str, Any] = {
            **{"part": part, "device": asked.device, "dry_run": asked.dry_run},
            **{"environment": environment(), "lines": []},
        }
        self.keep()

    def keep(self, **words: Any) -> None:
        """Add or replace fields."""
        self._words |= words
        text = json.dumps(self._words, indent=1, ensure_ascii=False)
        self._path.write_text(text + "\n", encoding="utf-8")

    def say(self, line: str) -> None:
        """Add a line, and print it."""
        print(line, flush=True)
        self.keep(lines=[*self._words["lines"], line])

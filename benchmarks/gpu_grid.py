"""The parity tests on this machine's GPU: pytest tests/parity --platform gpu, counted as they come.

A dry run takes a few of them, on the CPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from gpu_part import Results, parser

TESTS = Path(__file__).parents[1] / "tests" / "parity"
SOME = ("test_norm.py", "test_attention_paths.py::test_the_path_that_auto_takes")
# Processes that share the GPU: each holds both frameworks.
MOST_WORKERS = 8
# Written so often, and at each failure.
EVERY = 50


class Counted:
    """A plugin that keeps how many tests passed, and which failed or were skipped."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._counts: Counter[str] = Counter()
        self._failures: dict[str, str] = {}
        self._skips: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Once a phase of a test; what passes counts when it is called."""
        if report.failed:
            self._counts["failed"] += 1
            self._failures[report.nodeid] = str(report.longrepr)[-1000:]
        elif report.skipped:
            self._counts["skipped"] += 1
            self._skips[str(report.longrepr[-1]) if isinstance(report.longrepr, tuple) else ""] += 1
        elif report.when == "call":
            self._counts["passed"] += 1
        if report.failed or sum(self._counts.values()) % EVERY == 0:
            self.keep()

    def keep(self) -> None:
        """Write what is known."""
        told = ", ".join(f"{self._counts[name]} {name}" for name in ("passed", "failed", "skipped"))
        lines = [told, *(f"FAILED {name}" for name in self._failures)][:30]
        skips = dict(self._skips)
        self._results.keep(counts=self._counts, failures=self._failures, skips=skips, lines=lines)


def main() -> None:
    asked = parser(__doc__).parse_args()
    counted = Counted(Results("grid", asked))
    tests = [str(TESTS / name) for name in SOME] if asked.dry_run else [str(TESTS)]
    # Warnings of other versions than the tests are run with are not what is judged here.
    how = ["-q", "--tb=short", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    if not asked.dry_run:
        how.append("--whole")
        if importlib.util.find_spec("xdist"):
            how += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    platform = "cpu" if asked.dry_run else "gpu"
    status = pytest.main([*how, "--platform", platform, *tests], plugins=[counted])
    counted.keep()
    sys.exit(int(status))


if __name__ == "__main__":
    main()

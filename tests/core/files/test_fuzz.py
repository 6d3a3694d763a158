"""A few hundred inputs of `nox -s fuzz`, without a framework; and that it finds what is wrong on purpose."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("resource")  # not on Windows
from fuzz import readers
from fuzz.run import Session, available
from fuzz.targets import TARGETS, WRONG

LIGHT = [name for name in available() if not TARGETS[name].needs]


@pytest.mark.whole
def test_mutated_files_are_refused_or_read(tmp_path):
    session = Session(seed=0, limit=60, keep=tmp_path)
    session.run(LIGHT, seconds=600, inputs=20 * len(LIGHT), workers=2)
    assert session.findings == []
    counts = Counter(verdict for _, verdict in session.verdicts.elements())
    assert counts["refused"] > 200
    assert counts["read"] > 50


@pytest.mark.whole
def test_every_way_to_be_wrong_is_found_and_kept(tmp_path):
    session = Session(seed=1, limit=60, keep=tmp_path)
    others = [name for name in WRONG if name != "hang"]
    session.run(others, seconds=600, inputs=len(others))
    session.limit = 1.5
    session.run(["hang"], seconds=600, inputs=1)
    found = {finding["target"]: finding for finding in session.findings}
    assert {name: finding["verdict"] for name, finding in found.items()} == {
        "bare": "raises JSONDecodeError",
        "other kind": "raises ConfigError",
        "hang": "takes more than 1.5 s",
        "crash": "dies with status -6",
        "memory": "takes more than 256 MiB",
        "not the original": "reads other values",
        "not what the file says": "reads other values",
    }
    assert "targets.py" in found["hang"]["stderr"]
    assert "Aborted" in found["crash"]["stderr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}-1-0" for name in WRONG)
    kept = tmp_path / "bare-1-0"
    assert (kept / "files" / "text.txt").is_file()
    assert json.loads((kept / "finding.json").read_text())["again"].endswith("--seed 1 --input bare/0")


def test_other_values_are_told_apart():
    told = {"a": np.ones(2), "b": [1, {"c": float("nan")}], "d": None}
    assert readers.holds({"a": np.ones(2), "b": (1, {"c": float("nan"), "more": 1})}, told)
    for name, other in (
        ("a", np.ones(2, np.float32)),
        ("a", -np.ones(2)),
        ("b", [True, {"c": 0.0}]),
        ("b", []),
    ):
        assert not readers.holds({**told, name: other}, told)
    assert not readers.holds({}, told)

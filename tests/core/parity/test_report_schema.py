"""docs/report.md names every key that is written, says of what type it is, and names no other."""

import json
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from cases import ROOT
from reports import CONFIG, comparison, recording, way

from palm import compare
from palm.cli.main import main
from palm.config import PaLMConfig
from palm.parity.blackbox.result import ForeignComparison, Likeness
from palm.parity.drift.drift import butterfly
from palm.parity.finding import Nature, Outcome
from palm.parity.programs.parameters import Parameter
from palm.parity.programs.precision import Precision, Row
from palm.parity.programs.result import Divergence, ProgramComparison, Site
from palm.parity.recording.bundle import write_bundle
from palm.parity.recording.excerpt import excerpt_of
from palm.parity.repeats import Repeats

PAGE = ROOT / "docs" / "report.md"
# What no bundle brings and no comparison of bundles can be asked for.
LIVE = {f"run.{name}" for name in ("data", "tokens", "batch", "length", "seed", "repeat", "train", "recipe")}
# Objects whose keys are names; and one that is documented elsewhere on the page.
BY_NAME = {
    "sides[].environment",
    "repeats.intervals",
    "training.not_finite",
    "training.losses",
    "training.grad_norms",
    "environment",
    "digests",
    "statistics",
}


def is_number(value):
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (plain and np.isfinite(value)) or value in ("nan", "inf", "-inf")


TYPES = {
    "text": lambda value: isinstance(value, str),
    "whole": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": is_number,
    "yes/no": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def documented(heading):
    """The keys under a heading of the page, and their types."""
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [body] = [part for part in section if part.splitlines()[0] == heading]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", body, re.MULTILINE)
    assert len(rows) == len(dict(rows)) == body.count("\n| `")
    return {key: kinds.strip().split(" or ") for key, kinds in rows}


SITE = Site("add", "mine.py", 3, "norm", "layers.0", "x + 1e-5", (1e-5,), (("mine.py", 9),))
DIVERGENCES = (
    Divergence(SITE, SITE, "other constant", "a has 1 where b has 2.", 0.1),
    Divergence(None, replace(SITE, file=None, line=None), None, "b computes add.", float("nan"), 2),
)


def walked(value, path="", leave=()):
    """Every key in `value` with what it has, as the page writes them."""
    if isinstance(value, list):
        for element in value:
            yield from walked(element, f"{path}[]", leave)
    elif isinstance(value, dict) and path not in leave:
        for name, inner in value.items():
            own = "NAME" if path in BY_NAME else name
            key = f"{path}.{own}" if path else own
            yield key, inner
            yield from walked(inner, key, leave)


def assert_documented(values, heading, *, leave=(), besides=frozenset()):
    page = documented(heading)
    seen = set()
    for value in values:
        for key, inner in walked(json.loads(json.dumps(value)), leave=leave):
            seen.add(key)
            assert key in page, f"{key} is not in docs/report.md"
            assert any(TYPES[kind](inner) for kind in page[key]), f"{key} is no {page[key]}: {inner!r}"
    assert set(page) - seen == besides


def test_every_key_of_a_comparison_is_documented(tmp_path):
    repeats = Repeats()
    for seed in range(3):
        repeats.add(seed, compare(recording("torch", 1), recording("jax", seed + 2, faulty=seed == 1)))
    report = {**repeats.result().to_dict(), "training": butterfly(way(0), way(1), way(2)).to_dict()}
    assert report["diagnoses"]
    broken = way(1)
    broken.losses[5:] = np.nan
    not_finite = {**report, "training": butterfly(way(0), broken, way(2)).to_dict()}
    nan = float("nan")
    odd = comparison(embed={"error_a": nan, "ratio": float("inf"), "fault": "far", "nature": "function"})
    for name, seed in (("a", 1), ("b", 2)):
        write_bundle(excerpt_of(recording("torch", seed)), tmp_path / name)
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    by_command = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert by_command["loss"]["referee"] == "nan"
    reports = [report, not_finite, odd.to_dict(), by_command]
    assert_documented(reports, "report.json", besides=LIVE)
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_every_field_of_a_config_is_documented():
    page = documented("report.json")
    fields = {key.rpartition(".")[2] for key in page if key.startswith("sides[].config.")}
    assert fields == set(PaLMConfig.__dataclass_fields__)


def test_every_key_of_a_foreign_comparison_is_documented():
    found = ForeignComparison(
        label="port",
        config=CONFIG,
        dtype="float32",
        before=0.1,
        bound=1e-6,
        not_finite=0,
        rounding_of=None,
        likenesses=(Likeness("norm", "layernorm", 1e-7, "Use RMSNorm."),),
        top1_agreement=0.5,
        kl_divergence=float("nan"),
        tried=7,
        left_out=0,
        traced=True,
        divergences=DIVERGENCES,
    ).to_dict()
    heading = "report.json of a model that is not palm's"
    assert_documented([{**found, "run": {}}], heading, leave={"config", "run", "divergences[].a"})


def test_every_key_of_a_comparison_of_programs_is_documented():
    common = {"label_a": "a", "label_b": "b", "aligned": (0.5, 1.0), "operations": (7, 8), "bound": 1e-9}
    known = Parameter("a", "w", ("v",), "joined along axis 0")
    alone = Parameter("b", "u", (), nearest="w", distance=0.1)
    found = ProgramComparison(
        **common, divergences=DIVERGENCES, doubts=(), distance=0.1, parameters=(known, alone)
    )
    doubtful = ProgramComparison(**common, divergences=(), doubts=("a is random",), distance=float("nan"))
    lossy = ProgramComparison(
        **common,
        divergences=(),
        doubts=(),
        distance=0.0,
        precision=(Precision("a", "float32", 0.1, 0.01),),
        losses=DIVERGENCES,
        rows=(Row("add at a.py:1", "add at b.py:1", 0.1, 0.01),),
    )
    assert lossy.outcome == "differ by rounding more than expected"
    reports = [{**one.to_dict(), "run": {}} for one in (found, doubtful, lossy)]
    assert_documented(reports, "report.json of two programs", leave={"run", "divergences[].a", "losses[]"})


def test_every_key_of_a_bundle_is_documented(tmp_path):
    whole = recording("torch", 1)
    heads = []
    for kind, side in (("complete", whole), ("excerpt", excerpt_of(whole))):
        write_bundle(side, tmp_path / kind)
        heads.append(json.loads((tmp_path / kind / "bundle.json").read_text(encoding="utf-8")))
        assert heads[-1]["kind"] == kind
    assert_documented(heads, "bundle.json", leave={"config"})


def test_the_page_names_the_versions_that_are_written(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    written = comparison().to_dict()
    assert f"Schema `{written['schema']}`, version {written['version']}:" in text
    write_bundle(recording("torch", 1), tmp_path / "bundle")
    head = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert f"Format `{head['format']}`, version {head['version']}:" in text


@pytest.mark.parametrize(("key", "values"), [("outcome", Outcome), ("findings[].nature", Nature)])
def test_the_page_names_every_outcome_and_nature(key, values):
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{key}` ")
    )
    assert all(f'"{value}"' in row for value in get_args(values))

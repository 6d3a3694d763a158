"""The examples of the README and of the tutorials run as written, on a short text and for few steps."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ROOT

import palm
from palm.cli.main import main
from palm.data.windows import standard_library_text

# What the pages ask for, and what is run here.
FEWER = {"1000": "2", "2000": "4", "200": "2", "400": "4"}
COUNTS = re.compile(r"(?<=steps=)\d+|(?<=--steps )\d+|(?<=max_new_tokens=)\d+|(?<=--max-new-tokens )\d+")
SMALLER = {
    "--preset tiny": "--preset tiny --dim 16 --depth 1 --batch 2 --length 16",
    "palm.recipe(": "palm.recipe(batch=2, length=16, name=",
}


def fewer(text: str) -> str:
    for asked, here in SMALLER.items():
        text = text.replace(asked, here)
    return COUNTS.sub(lambda asked: FEWER[asked.group()], text)


def examples(page: str) -> list[str]:
    """The Python examples of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [fewer(code) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def commands(page: str) -> list[str]:
    """The commands of a page that train or generate, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        fewer(line)
        for line in re.findall(r"^    (palm (?:train|generate) .*?)(?: +#.*)?$", text, re.MULTILINE)
    ]


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "example", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a `book.txt`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_bytes(standard_library_text()[:20_000])
    return tmp_path


def test_the_readme_builds_both_moves_weights_and_compares(capsys):
    [code] = [code for code in examples("README.md") if "palm.convert" in code]
    names = run(code, {})
    verdict, ratio = capsys.readouterr().out.splitlines()
    assert verdict.startswith("torch and jax agree: every difference is rounding (")
    assert 0 < float(ratio) < 1.5
    for name, array in palm.to_numpy(names["in_torch"]).items():
        assert np.array_equal(array, palm.to_numpy(names["in_jax"])[name])


def test_the_readme_names_both_mistakes_of_a_port_on_their_lines(folder, capsys, monkeypatch):
    [code] = [code for code in examples("README.md") if "def port(" in code]
    (folder / "example.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("example")
    told = capsys.readouterr().out.splitlines()
    documented = (ROOT / "README.md").read_text("utf-8").partition("The port has two mistakes.")[2]
    for line in re.findall(r"^    (.*)$", documented.partition("[Compare two")[0], re.MULTILINE):
        assert any(found.strip().startswith(line.strip().removesuffix(" (…)")) for found in told), line


@pytest.mark.whole
@pytest.mark.parametrize("page", ["README.md", "docs/first-training.md"])
def test_the_commands_of_a_page_train_resume_and_generate(folder, page, capsysbinary):
    lines = commands(page)
    assert len(lines) >= 3
    texts = []
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
        out = capsysbinary.readouterr().out
        texts += [out] * (" generate " in line)
    assert len(set(texts)) == 1
    assert texts[0]


def test_the_python_of_the_tutorial_trains_resumes_and_generates(folder, capsys):
    [code] = [code for code in examples("docs/first-training.md") if "palm.train" in code]
    assert run(code, {})["trained"].step == 4
    assert capsys.readouterr().out


@pytest.mark.whole
def test_the_first_comparison_says_what_the_tutorial_says(capsys):
    built, compared, looked, planted = examples("docs/first-comparison.md")
    names = run(built + compared + looked, {})
    assert names["comparison"].outcome == "agree"
    assert capsys.readouterr().out.startswith("torch and jax agree: every difference is rounding (")
    run(planted, names)
    said = dict(re.findall(r"^print\((.*?)\) +# (\S+)$", planted, re.MULTILINE))
    shown = capsys.readouterr().out.splitlines()
    assert shown[: len(said)] == list(said.values())


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_examples_of_the_frameworks_page_run(capsys):
    names: dict[str, Any] = {}
    for code in examples("docs/frameworks.md"):
        run(code, names)
    assert capsys.readouterr().out == "torch.Size([20, 32])\n"
    assert names["logits"].shape == (20, 64)
    assert names["same"].shape == (2, 20, 64)
    assert names["shapes"].embedding.weight.shape == names["drawn"].embedding.weight.shape == (64, 32)


def test_the_drift_of_two_loops_is_what_the_page_says(capsys):
    [code] = [code for code in examples("docs/own-training-loop.md") if "drift(" in code]
    faulty = code.replace("optax.adamw(1e-2, weight_decay=0.1)", "optax.adamw(1e-2)")
    assert faulty != code
    right, wrong = (run(text, {})["found"] for text in (code, faulty))
    assert (right.outcome, wrong.outcome) == ("agree", "differ")
    page = " ".join((ROOT / "docs/own-training-loop.md").read_text(encoding="utf-8").split())
    told = capsys.readouterr().out.splitlines()
    assert f"`{told[0].partition(': ')[0]}: …`" in page
    assert f"`… {told[1].partition(': ')[0].removeprefix('over 20 training steps ')}: …`" in page


def test_a_loss_of_ones_own_is_the_same_in_both_frameworks():
    pages = examples("docs/own-training-loop.md")
    [in_torch] = [code for code in pages if "label_smoothing=0.1" in code]
    [in_jax] = [code for code in pages if "smooth_labels(" in code]
    ours, theirs = (np.array(run(code, {})["losses"]) for code in (in_torch, in_jax))
    assert ours[-1] < ours[0] - 1
    assert np.abs(ours - theirs).max() <= 1e-4
    plain = run(in_torch.replace("label_smoothing=0.1", "label_smoothing=0"), {})["losses"]
    assert np.abs(ours - plain).max() > 1e-2

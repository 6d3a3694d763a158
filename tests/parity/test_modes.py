"""What palm writes can be read and changed by exactly those whom the user's umask lets."""

import os
import stat
from contextlib import contextmanager

import pytest
from cases import draw_tokens, small
from tokenizers import Tokenizer, models, pre_tokenizers

import palm
from palm.cli import main as command

CONFIG = small()
TOKENS = draw_tokens(CONFIG, 2, 6)
WORDS = Tokenizer(models.WordLevel({chr(ord("a") + i): i for i in range(13)}, unk_token="a"))
WORDS.pre_tokenizer = pre_tokenizers.Whitespace()
WRITTEN = {
    "bundle": {"arrays.safetensors", "bundle.json"},
    "checkpoint": {"config.json", "manifest.json", "tokenizer.json", "weights-00001-of-00001.safetensors"},
    "complete": {"arrays.safetensors", "bundle.json"},
    "program.trace": set(),
    "report.html": set(),
    "report.json": set(),
    "reports": {"report.html", "report.json"},
    "run": {
        *(".lock", "loss.png", "metrics.jsonl", "run.json", "samples.jsonl", "tokenizer.json"),
        *("step-00000000", "step-00000002"),
    },
}


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Data that is there before."""
    file = tmp_path_factory.mktemp("data") / "text"
    file.write_text(" ".join("abcdefghijklm" * 40))
    return file


def write_all(folder, wing, text):
    """One of each kind of what palm writes."""
    model = palm.build(CONFIG, backend=wing)
    palm.save(model, folder / "checkpoint", tokenizer=WORDS)
    palm.record(model, TOKENS, folder / "bundle")
    palm.record(model, TOKENS, folder / "complete", complete=True)
    palm.trace(model, TOKENS).save(folder / "program.trace")
    found = palm.compare(folder / "bundle", folder / "bundle")
    for name in ("report.html", "report.json"):
        found.save_report(folder / name)
    assert command.main(["compare", *[str(folder / "bundle")] * 2, "--out", str(folder / "reports")]) == 0
    palm.train(
        CONFIG,
        palm.Recipe(steps=2, batch=2, length=8, warmup=1, validation=0.2),
        text,
        backend=wing,
        out=folder / "run",
        tokenizer=WORDS,
        cadence=palm.Cadence(sample_every=2, sample_tokens=2, sample_prompt="a"),
    )


@pytest.mark.parametrize(
    ("wing", "mask"),
    [
        *(("torch", mask) for mask in (0o002, 0o022, 0o027, 0o077)),
        pytest.param("jax", 0o027, marks=pytest.mark.whole),
    ],
)
def test_everything_has_the_mode_that_the_umask_says(tmp_path, text, wing, mask):
    with umask(mask):
        write_all(tmp_path, wing, text)
    for name, files in WRITTEN.items():
        place = tmp_path / name
        assert {entry.name for entry in place.iterdir()} == files if files else place.is_file()
    for entry in tmp_path.rglob("*"):
        most = 0o777 if entry.is_dir() else 0o666
        assert oct(stat.S_IMODE(entry.stat().st_mode)) == oct(most & ~mask), entry

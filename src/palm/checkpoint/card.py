"""README.md of a folder for transformers: what the Hugging Face hub calls a model card.

It says what the checkpoint and its run record, and nothing else: of files their names, and no paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import palm
from palm.checkpoint.manifest import METRICS, RUN_SETTINGS
from palm.checkpoint.progress import Summary
from palm.data.tokenizer import ByteTokenizer, Tokenizer, default_tokenizer
from palm.data.tokenizer_file import FileTokenizer
from palm.errors import ConfigError
from palm.files.markup import plain, table
from palm.files.objects import MalformedError
from palm.files.read import read_file
from palm.files.schema import NATURAL, NUMBER, TEXT, Optional, Record, check, complete_lines
from palm.files.sealed import read_sealed
from palm.spec.parameters import parameters

CARD = "README.md"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_FRAMEWORKS = ("torch", "jax", "equinox")
_LINE = Record({"step": NATURAL, "loss": NUMBER}, {"val_loss": NUMBER, "tokens": NUMBER})
_DATA = Record(
    {"data": Record({"path": Optional(TEXT), "digest": TEXT}, {"tokenizer_digest": Optional(TEXT)})}
)
_MOST_LOG_BYTES = 1 << 32


@dataclass(frozen=True)
class _Run:
    """What is recorded of a run beside its checkpoints: `data` of its settings, and its log by step."""

    data: Mapping[str, Any] | None = None
    log: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


def check_license(license: str | None) -> None:
    """Raise `ConfigError` unless this can be the name of a license on the hub, or None."""
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(
            f"license must be a name that the hub knows, in small letters; got license={license!r:.80}. "
            "For example, mit or apache-2.0."
        )


def card(found: Summary, tokenizer: Tokenizer | None, name: str, license: str | None) -> bytes:
    """The model card, in Markdown.

    `name` is what the model is loaded by: a folder, or OWNER/NAME. Without a `license` the card has none.
    """
    tokens = tokenizer or default_tokenizer(found.config.num_tokens)
    size = sum(parameter.size for parameter in parameters(found.config).values())
    about = {**found.config.to_dict(), "parameters": f"{size:,}", "dtype": found.dtype}
    parts = [
        _front(license),
        f"# PaLM, {size:,} parameters",
        "A language model of the PaLM architecture ([arXiv:2204.02311](https://arxiv.org/abs/2204.02311)).",
        "## Load it",
        _loading(name, tokens),
        "## Config",
        table(("field", "value"), about.items()),
        *_training(found),
        *_section("Where the weights come from", ("", "value"), found.origin.items()),
        "## Versions",
        _versions(),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _front(license: str | None) -> str:
    """What the hub reads. A license is quoted, for some names would be something else in YAML."""
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- palm"]
    lines += [] if license is None else [f"license: {json.dumps(license)}"]
    return "\n".join(["---", *lines, "---"])


def _loading(name: str, tokenizer: Tokenizer | None) -> str:
    classes, told = "AutoModelForCausalLM", "The model takes token ids. No tokenizer is recorded."
    extra = ""
    if isinstance(tokenizer, FileTokenizer):
        told = f"Its tokenizer is in `{tokenizer.file}`."
        if tokenizer.file.endswith(".json"):
            classes += ", AutoTokenizer"
            extra = f'\ntokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)'
    elif isinstance(tokenizer, ByteTokenizer):
        told = "Its tokens are the bytes of a text."
    is_here = "/" not in name
    command = f"palm import transformers {'' if is_here else 'hub:'}{name} OUT"
    python = "" if is_here else f'\nmodel = palm.from_hub("{name}", backend="torch")  # or "jax"'
    return f"""```python
from transformers import {classes}

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True){extra}
```

`trust_remote_code=True` runs `modeling_palm.py`, which is beside the weights. {told}
palm loads the same weights in PyTorch or JAX, bit for bit, and runs no code of this folder:

```
{command}
```""" + ("" if is_here else f"\n\n```python\nimport palm\n{python}\n```")


def _training(found: Summary) -> list[str]:
    """What the run did up to this checkpoint; nothing of a checkpoint without a run."""
    if found.fields is None:
        return []
    run, step = _run_of(found.path), found.fields["step"]
    recipe = {
        name: value for name, value in found.fields.get("recipe", {}).items() if value not in (None, [])
    }
    line, steps = run.log.get(step, {}), recipe.pop("steps", None)
    rows = {
        "backend": found.fields.get("backend"),
        "step": f"{step:,} of {steps:,}" if isinstance(steps, int) else f"{step:,}",
        "tokens seen": f"{int(line['tokens']):,}" if "tokens" in line else None,
        **recipe,
    }
    validated = {at: each["val_loss"] for at, each in run.log.items() if at <= step and "val_loss" in each}
    best = min(validated, key=lambda at: (validated[at], at), default=None)
    losses = {
        f"training loss, step {step:,}": line.get("loss"),
        f"validation loss, step {step:,}": found.fields.get("val_loss"),
    }
    if best is not None:
        losses[f"lowest validation loss so far, step {best:,}"] = validated[best]
    return [
        *_section("Training", ("setting", "value"), _known(rows)),
        *_section("Data", ("", "name", "SHA-256, as the run recorded it"), _data_rows(run)),
        *_section(
            "Losses", ("loss", "nats per token"), ((name, f"{loss:.4f}") for name, loss in _known(losses))
        ),
    ]


def _known(rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in rows.items() if value is not None]


def _section(title: str, head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> list[str]:
    """A table under its title; nothing if it has no rows."""
    kept = [*rows]
    return [f"## {title}", table(head, kept)] if kept else []


def _data_rows(run: _Run) -> list[tuple[str, str, str]]:
    if run.data is None:
        return []
    rows = [("data", _last(run.data["path"]) or "an array", run.data["digest"])]
    if run.data.get("tokenizer_digest") and run.data.get("tokenizer"):
        rows.append(("tokenizer", _last(run.data["tokenizer"]), run.data["tokenizer_digest"]))
    return rows


def _last(path: object) -> str:
    """The name at the end of a path of any system."""
    return re.split(r"[/\\]", str(path or "").rstrip("/\\"))[-1]


def _run_of(path: Path) -> _Run:
    """The run that the checkpoint at `path` lies in, as far as its files can be read."""
    folder = path.resolve().parent
    data, log = None, {}
    try:
        settings, is_intact = read_sealed(folder / RUN_SETTINGS)
        if settings is None or not is_intact:
            return _Run()
        check(settings, _DATA)
        data = settings["data"]
        content = read_file(folder / METRICS, _MOST_LOG_BYTES)
        log = {line["step"]: line for line in complete_lines(content, _LINE)}
    except (OSError, MalformedError):
        pass
    return _Run(data, log)


def _versions() -> str:
    """Of what is installed where the card is written; a run does not record what trained it."""
    found = []
    for name in _FRAMEWORKS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    installed = f" with {', '.join(found)} installed" if found else ""
    return plain(f"This folder was written by palm-dual {palm.__version__}{installed}.")

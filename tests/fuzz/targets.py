"""What palm reads: a kind of file, the entry point that reads it, and what it must say."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz import entries, makers, readers
from fuzz.entries import SOURCE, Read, Refused
from fuzz.makers import WRITTEN, copied

import palm
from palm import BundleError, CheckpointError, ConfigError, DataError, DivergedError, PalmError, RunError
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.progress import load_progress, summarise
from palm.checkpoint.tokenizer import checkpoint_tokenizer
from palm.cli.program_files import read_inputs
from palm.cli.prompts import read_prompts
from palm.errors import UpstreamError
from palm.parity.programs.trace import read_trace
from palm.parity.recording.bundle import read_bundle
from palm.training.summary import summarise as summarise_run
from palm.upstream.read import read_upstream
from palm.upstream.rlhf import RLHF

STEP = "step-00000004"


@dataclass(frozen=True)
class Target:
    """A kind of file: `make` writes it into a folder, `read` reads it there and says what it has read.

    `errors` are those that `read` may raise. `told` is what the files say, by another reader: what is read
    must hold it. Without one, it must hold what `read` says of the original. `seal` makes checksums fit a
    changed file; where they do not, only the original may be read. `needs`: packages that `read` imports.
    """

    make: Read
    read: Read
    errors: tuple[type[PalmError], ...]
    told: Read | None = None
    seal: Callable[[Path], object] | None = None
    needs: tuple[str, ...] = ()


def at(name: str, act: Read) -> Read:
    return lambda folder: act(folder / name)


def _upstream(suffix: str, save: Callable[..., object], load: Read, *needs: str) -> Target:
    name = f"w.{suffix}"
    return Target(
        makers.upstream(save, name),
        at(name, lambda file: read_upstream(file, SOURCE)),
        (UpstreamError,),
        at(name, lambda file: read_upstream(load(file), SOURCE)),
        needs=needs,
    )


def _rlhf(suffix: str, save: Callable[..., object], load: Read, *needs: str) -> Target:
    name = f"w.{suffix}"

    def read(given: object) -> object:
        return read_upstream(given, RLHF, tell=lambda told: None)

    return Target(
        makers.rlhf(save, name),
        at(name, read),
        (UpstreamError,),
        at(name, lambda f: read(load(f))),
        needs=needs,
    )


SEALED = (CheckpointError,), readers.weights, readers.reseal
RUN = (RunError, CheckpointError, DataError, ConfigError, DivergedError)
PROMPTS = '{"prompt": "The ", "id": 7}\n{"prompt": [84, 104], "more": {"x": [1.5, null]}}\n'
TEXT, TRACE = copied("text.txt"), at("t.trace", lambda file: makers.trace().save(file))
TARGETS: dict[str, Target] = {
    "checkpoint": Target(copied("checkpoint-torch"), load_arrays, *SEALED),
    "checkpoint.torch": Target(copied("checkpoint-bfloat16"), entries.load("torch"), *SEALED, ("torch",)),
    "checkpoint.jax": Target(copied("checkpoint-jax"), entries.load("jax"), *SEALED, ("jax", "equinox")),
    "checkpoint.tokenizer": Target(
        makers.checkpoint_with_tokenizer,
        lambda folder: (*load_arrays(folder), checkpoint_tokenizer(folder).content),
        (CheckpointError, DataError),
        lambda folder: [*readers.weights(folder), (folder / "tokenizer.json").read_bytes()],
        readers.reseal,
    ),
    "checkpoint.summary": Target(
        copied(f"run-torch/{STEP}"), summarise, (CheckpointError,), readers.summary, readers.reseal
    ),
    "checkpoint.progress": Target(
        copied(f"run-torch/{STEP}"), load_progress, (CheckpointError,), readers.progress, readers.reseal
    ),
    "checkpoint.boxes": Target(
        makers.checkpoint_in_pieces, entries.boxes, (CheckpointError,), None, readers.reseal
    ),
    "checkpoint.replace": Target(copied("checkpoint-torch"), entries.replace_checkpoint, *SEALED),
    "transformers": Target(makers.exported, entries.exported, (CheckpointError,), readers.exported),
    "run": Target(
        copied("run-jax-tokenizer"), summarise_run, (RunError, DataError), readers.run, readers.reseal
    ),
    "run.resume": Target(copied("run-torch"), entries.resume, RUN, None, readers.reseal, ("torch",)),
    "run.info": Target(copied("run-torch"), entries.info, (Refused,), readers.info, readers.reseal),
    "run.generate": Target(
        copied("run-jax-tokenizer"),
        entries.generate,
        (Refused,),
        None,
        readers.reseal,
        ("torch", "tokenizers"),
    ),
    "bundle.excerpt": Target(
        copied("bundle-torch"), read_bundle, (BundleError,), readers.bundle, readers.reseal
    ),
    "bundle.complete": Target(makers.bundle, read_bundle, (BundleError,), readers.bundle, readers.reseal),
    "bundle.replace": Target(
        makers.bundle, entries.replace_bundle, (BundleError,), readers.bundle, readers.reseal
    ),
    "bundle.compare": Target(
        copied("bundle-torch"),
        lambda folder: entries.command("compare", folder, WRITTEN / "bundle-jax", "--out", folder / "report"),
        (Refused,),
        None,
        readers.reseal,
    ),
    "trace": Target(TRACE, at("t.trace", read_trace), (BundleError,), readers.trace, readers.reseal_trace),
    "trace.compare": Target(TRACE, entries.compare_traces, (Refused,), None, readers.reseal_trace),
    "corpus.ids": Target(
        at("i.npy", lambda file: np.save(file, np.arange(300, dtype=np.int32))),
        at("i.npy", entries.corpus),
        (DataError,),
        at("i.npy", lambda file: np.load(file).astype(np.int64)),
    ),
    "corpus.shards": Target(
        makers.shards, entries.corpus, (DataError,), readers.shards, readers.reseal_shards
    ),
    "corpus.text": Target(TEXT, at("text.txt", entries.corpus), (DataError,), at("text.txt", readers.text)),
    "corpus.folder": Target(TEXT, entries.corpus, (DataError,), at("text.txt", readers.text)),
    "tokenizer.json": Target(
        copied("run-jax-tokenizer/tokenizer.json"),
        at("tokenizer.json", entries.tokenize),
        (DataError,),
        needs=("tokenizers",),
    ),
    "tokenizer.model": Target(
        makers.sentences, at("t.model", entries.tokenize), (DataError,), needs=("sentencepiece",)
    ),
    "upstream.safetensors": _upstream("safetensors", makers.save_safetensors, readers.tensors),
    "upstream.npz": _upstream("npz", makers.save_npz, readers.npz),
    "upstream.eqx": _upstream("eqx", makers.save_eqx, readers.npy_sequence),
    "upstream.pt": _upstream("pt", makers.save_torch, readers.pt, "torch"),
    "rlhf.npz": _rlhf("npz", makers.save_npz, readers.npz),
    "rlhf.pt": _rlhf("pt", makers.save_torch, readers.pt, "torch"),
    "upstream.import": Target(
        makers.upstream(makers.save_npz, "w.npz"),
        entries.import_,
        (Refused,),
        at("w.npz", lambda file: read_upstream(readers.npz(file), SOURCE)),
    ),
    "inputs.npz": Target(
        at("i.npz", lambda file: np.savez(file, a=np.arange(5), b=np.ones((2, 3)))),
        at("i.npz", read_inputs),
        (ConfigError,),
        at("i.npz", lambda file: [*readers.npz(file).values()]),
    ),
    "inputs.npy": Target(
        at("i.npy", lambda file: np.save(file, np.ones((2, 3)))),
        at("i.npy", read_inputs),
        (ConfigError,),
        at("i.npy", lambda file: [np.load(file)]),
    ),
    "prompts.jsonl": Target(
        at("p.jsonl", lambda file: file.write_text(PROMPTS)),
        at("p.jsonl", lambda file: read_prompts(str(file)).fields),
        (DataError,),
        at("p.jsonl", lambda file: [*map(json.loads, readers.lines(file))]),
    ),
    "prompts.txt": Target(
        at("p.txt", lambda file: file.write_text("The \né\n# a third\n", "utf-8")),
        at("p.txt", lambda file: [fields["prompt"] for fields in read_prompts(str(file)).fields]),
        (DataError,),
        at("p.txt", readers.lines),
    ),
    "config": Target(
        copied("checkpoint-torch/config.json"),
        at("config.json", entries.config),
        (ConfigError, Refused),
        at("config.json", readers.load_json),
    ),
    "arguments": Target(
        at("given.args", lambda file: file.write_text("info\ntiny\n--length\n64\n--architecture\njax")),
        at("given.args", entries.arguments),
        (Refused,),
    ),
}


def _text(folder: Path) -> bytes:
    return (folder / "text.txt").read_bytes()


def _wrong(read: Read, seal: Callable[[Path], object] | None = None) -> Target:
    return Target(TEXT, read, (DataError,), _text, seal)


# Each is wrong in one way, so that the session itself is held to account.
WRONG: dict[str, Target] = {
    "bare": _wrong(lambda folder: json.loads("")),
    "other kind": _wrong(lambda folder: palm.PaLMConfig.from_json("")),
    "hang": _wrong(lambda folder: time.sleep(60)),
    "crash": _wrong(lambda folder: os.abort()),
    "memory": _wrong(lambda folder: b"x" * (300 << 20)),
    "not the original": _wrong(_text, lambda file: 1 / 0),
    "not what the file says": _wrong(lambda folder: _text(folder) + b"x"),
}

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
from palm.errors import UpstreamError
from palm.parity.programs.trace import read_trace
from palm.parity.recording.bundle import read_bundle
from palm.training.summary import summarise as summarise_run
from palm.upstream.read import read_upstream

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


def _upstream(suffix: str, save: Callable[..., object], load: Read, *needs: str) -> Target:
    name = f"w.{suffix}"
    return Target(
        makers.upstream(save, name),
        lambda folder: read_upstream(folder / name, SOURCE),
        (UpstreamError,),
        lambda folder: read_upstream(load(folder / name), SOURCE),
        needs=needs,
    )


SEALED = (CheckpointError,), readers.weights, readers.reseal
RUN = (RunError, CheckpointError, DataError, ConfigError, DivergedError)
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
    "checkpoint.replace": Target(copied("checkpoint-torch"), entries.replace_checkpoint, *SEALED),
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
    "trace": Target(
        lambda folder: makers.trace().save(folder / "t.trace"),
        lambda folder: read_trace(folder / "t.trace"),
        (BundleError,),
        readers.trace,
        readers.reseal_trace,
    ),
    "trace.compare": Target(
        lambda folder: makers.trace().save(folder / "t.trace"),
        entries.compare_traces,
        (Refused,),
        seal=readers.reseal_trace,
    ),
    "corpus.ids": Target(
        lambda folder: np.save(folder / "i.npy", np.arange(300, dtype=np.int32)),
        entries.corpus("i.npy"),
        (DataError,),
        lambda folder: [np.load(folder / "i.npy").astype(np.int64)],
    ),
    "corpus.shards": Target(
        makers.shards, entries.corpus(""), (DataError,), readers.shards, readers.reseal_shards
    ),
    "corpus.text": Target(
        copied("text.txt"),
        entries.corpus("text.txt"),
        (DataError,),
        lambda folder: [np.fromfile(folder / "text.txt", np.uint8).astype(np.int64)],
    ),
    "corpus.folder": Target(
        copied("text.txt"),
        entries.corpus(""),
        (DataError,),
        lambda folder: [np.fromfile(folder / "text.txt", np.uint8).astype(np.int64)],
    ),
    "tokenizer.json": Target(
        copied("run-jax-tokenizer/tokenizer.json"),
        entries.tokenize("tokenizer.json"),
        (DataError,),
        needs=("tokenizers",),
    ),
    "tokenizer.model": Target(
        makers.sentences, entries.tokenize("t.model"), (DataError,), needs=("sentencepiece",)
    ),
    "upstream.safetensors": _upstream("safetensors", makers.save_safetensors, readers.tensors),
    "upstream.npz": _upstream("npz", makers.save_npz, readers.npz),
    "upstream.eqx": _upstream("eqx", makers.save_eqx, readers.npy_sequence),
    "upstream.pt": _upstream("pt", makers.save_torch, readers.pt, "torch"),
    "upstream.import": Target(
        makers.upstream(makers.save_npz, "w.npz"),
        entries.import_,
        (Refused,),
        lambda folder: read_upstream(readers.npz(folder / "w.npz"), SOURCE),
    ),
    "inputs.npz": Target(
        lambda folder: np.savez(folder / "i.npz", a=np.arange(5), b=np.ones((2, 3))),
        lambda folder: read_inputs(folder / "i.npz"),
        (ConfigError,),
        lambda folder: [*readers.npz(folder / "i.npz").values()],
    ),
    "inputs.npy": Target(
        lambda folder: np.save(folder / "i.npy", np.ones((2, 3))),
        lambda folder: read_inputs(folder / "i.npy"),
        (ConfigError,),
        lambda folder: [np.load(folder / "i.npy")],
    ),
    "config": Target(
        copied("checkpoint-torch/config.json"),
        entries.config,
        (ConfigError, Refused),
        lambda folder: readers.load_json(folder / "config.json"),
    ),
    "arguments": Target(
        lambda folder: (folder / "given.args").write_text("info\ntiny\n--length\n64\n--architecture\njax"),
        entries.arguments,
        (Refused,),
    ),
}


def _text(folder: Path) -> bytes:
    return (folder / "text.txt").read_bytes()


def _wrong(read: Read, seal: Callable[[Path], object] | None = None) -> Target:
    return Target(copied("text.txt"), read, (DataError,), _text, seal)


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

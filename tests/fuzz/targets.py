"""What palm reads: small valid files of each kind, and the entry point that reads them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import palm
from palm import BundleError, CheckpointError, ConfigError, DataError, PalmError, RunError, UpstreamError
from palm.checkpoint.checkpoint import load_arrays
from palm.checkpoint.manifest import fingerprint
from palm.checkpoint.progress import load_progress
from palm.checkpoint.progress import summarise as summarise_checkpoint
from palm.cli.main import main
from palm.cli.program_files import read_inputs
from palm.data.corpus import open_corpus
from palm.data.tokenizer import load_tokenizer
from palm.files.sealed import sealed
from palm.parity.programs.trace import _digest
from palm.parity.recording.bundle import read_bundle
from palm.training.summary import summarise as summarise_run
from palm.upstream.read import read_upstream

WRITTEN = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
STEP = "step-00000004"
SOURCE = "palm_jax.palm_lite"
# Logs are written line by line, without a checksum.
UNSEALED = (".jsonl",)


@dataclass(frozen=True)
class Target:
    """A kind of file: `make` writes it into a folder, `read` reads it there and says what it has read.

    `errors` are those that `read` may raise. `seal` makes the checksums of a folder fit a changed file; where
    there are none, what is read may differ. `needs` are the packages that `read` imports.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    errors: tuple[type[PalmError], ...]
    seal: Callable[[Path, Path], None] | None = None
    needs: tuple[str, ...] = ()


def copied(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(WRITTEN / name, folder, dirs_exist_ok=True)


def reseal(folder: Path, changed: Path) -> None:
    """Make manifest.json, run.json or bundle.json fit what has changed, as far as it can be parsed."""
    name = {"bundle.json": "bundle.json", "arrays.safetensors": "bundle.json", "run.json": "run.json"}
    header = changed.parent / name.get(changed.name, "manifest.json")
    if not header.exists():  # the logs of a run
        return
    content = json.loads(header.read_bytes())
    if changed != header:
        entry = content["arrays"] if header.name == "bundle.json" else content["files"][changed.name]
        entry.update(fingerprint(changed))
        if "tensors" in entry:
            entry["tensors"] = _checksums(changed.read_bytes()) or entry["tensors"]
    content.pop("seal", None)
    header.write_text(sealed(content), "utf-8")


def _checksums(content: bytes) -> dict[str, int]:
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        length = int.from_bytes(content[:8], "little")
        rows, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        return {name: zlib.crc32(data[slice(*row["data_offsets"])]) for name, row in rows.items()}
    return {}


def reseal_trace(folder: Path, changed: Path) -> None:
    with np.load(changed, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "sha256"}
    arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
    with changed.open("wb") as file:
        np.savez(file, **arrays)


def _twice(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ x.T) * 2


@cache
def _trace() -> Any:
    return palm.trace(_twice, np.arange(6.0).reshape(2, 3) / 7)


@cache
def _bundle(kind: str) -> Any:
    from recordings import side

    return read_bundle(WRITTEN / "bundle-jax") if kind == "excerpt" else side("b")


def _make_complete(folder: Path) -> None:
    from recordings import side

    from palm.parity.recording.bundle import write_bundle

    write_bundle(side("a"), folder)


def _compare(folder: Path, kind: str) -> object:
    read_bundle(folder)
    return json.dumps(palm.compare(folder, _bundle(kind)).to_dict(), default=str)


def _compare_traces(folder: Path) -> object:
    return json.dumps(palm.compare(folder / "t.trace", _trace()).to_dict(), default=str)


class _Reached(Exception):  # noqa: N818
    """The first step was made."""


def _resume(folder: Path) -> object:
    def stop(entry: object) -> None:
        raise _Reached

    with contextlib.suppress(_Reached):
        palm.resume(folder, data=WRITTEN / "text.txt", steps=5, backend="torch", on_step=stop)
    return [path.name for path in folder.iterdir() if path.name.startswith("step-")]


def _load(folder: Path) -> object:
    return palm.to_numpy(palm.load(folder, backend="torch"))


def _info(folder: Path) -> object:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        status = main(["info", str(folder)])
    if status:
        raise RunError("said by palm info")
    return "palm info leaves out checkpoints that are damaged"


def _settings(folder: Path) -> object:
    found = summarise_run(folder)  # it leaves out damaged checkpoints, too
    return found.config, found.recipe


def upstream_arrays() -> dict[str, np.ndarray]:
    """dim 8, 2 heads of 4, one block, 16 tokens."""
    shapes = {"embedding": (16, 8), "norm.gamma": (8,), "layers.0.norm.gamma": (8,)}
    shapes |= {"layers.0.wi": (8, 8 + 4 + 64), "layers.0.attn_wo": (8, 8), "layers.0.ff_wo": (32, 8)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _make_upstream(suffix: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path, arrays = folder / f"w.{suffix}", upstream_arrays()
        if suffix == "npz":
            np.savez(path, **arrays)
        elif suffix == "eqx":
            with path.open("wb") as file:
                for array in arrays.values():
                    np.save(file, array)
        elif suffix == "pt":
            import torch

            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        else:
            from safetensors.numpy import save_file

            save_file(arrays, path)

    return make


def _make_sentences(folder: Path) -> None:
    import sentencepiece

    written = io.BytesIO()
    text = (WRITTEN / "text.txt").read_text("utf-8")[:500]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20),
        model_writer=written,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "t.model").write_bytes(written.getvalue())


def _tokenize(file: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        found = load_tokenizer(folder / file)
        ids = found.encode("the palm, naïve: 🌴\n\0")
        stream = found.stream()
        return found.num_tokens, ids.tolist(), found.decode(ids), [*map(stream.feed, ids[:8].tolist())]

    return read


def _ids(path: Path) -> object:
    corpus = open_corpus(path)
    return corpus.digest, [piece for _, piece in corpus.pieces()], corpus.largest_possible


def _config(folder: Path) -> object:
    text = (folder / "config.json").read_bytes().decode("utf-8", "surrogateescape")
    return palm.PaLMConfig.from_json(text).resolve("torch").to_json()


def _make_inputs(folder: Path) -> None:
    np.savez(folder / "i.npz", a=np.arange(5), b=np.ones((2, 3)))


TARGETS: dict[str, Target] = {
    "checkpoint": Target(copied("checkpoint-torch"), load_arrays, (CheckpointError,), reseal),
    "progress": Target(copied(f"run-torch/{STEP}"), load_progress, (CheckpointError,), reseal),
    "summary": Target(copied(f"run-torch/{STEP}"), summarise_checkpoint, (CheckpointError,), reseal),
    "load": Target(copied("checkpoint-bfloat16"), _load, (CheckpointError,), reseal, ("torch",)),
    "run": Target(copied("run-jax-tokenizer"), _settings, (RunError, DataError), reseal),
    "info": Target(copied("run-torch"), _info, (RunError,), reseal),
    "resume": Target(
        copied("run-torch"), _resume, (RunError, CheckpointError, DataError, ConfigError), reseal, ("torch",)
    ),
    "excerpt": Target(
        copied("bundle-torch"), lambda folder: _compare(folder, "excerpt"), (BundleError,), reseal
    ),
    "bundle": Target(_make_complete, lambda folder: _compare(folder, "complete"), (BundleError,), reseal),
    "trace": Target(
        lambda folder: _trace().save(folder / "t.trace"), _compare_traces, (BundleError,), reseal_trace
    ),
    "ids": Target(
        lambda folder: np.save(folder / "i.npy", np.arange(300, dtype=np.int32)),
        lambda folder: _ids(folder / "i.npy"),
        (DataError,),
    ),
    "text": Target(lambda folder: shutil.copy(WRITTEN / "text.txt", folder), _ids, (DataError,)),
    "tokenizer.json": Target(
        lambda folder: shutil.copy(WRITTEN / "run-jax-tokenizer" / "tokenizer.json", folder),
        _tokenize("tokenizer.json"),
        (DataError,),
        needs=("tokenizers",),
    ),
    "tokenizer.model": Target(_make_sentences, _tokenize("t.model"), (DataError,), needs=("sentencepiece",)),
    **{
        f"upstream.{suffix}": Target(
            _make_upstream(suffix),
            lambda folder, suffix=suffix: read_upstream(folder / f"w.{suffix}", SOURCE),
            (UpstreamError,),
            needs=("torch",) if suffix == "pt" else (),
        )
        for suffix in ("safetensors", "npz", "eqx", "pt")
    },
    "inputs.npz": Target(_make_inputs, lambda folder: read_inputs(folder / "i.npz"), (ConfigError,)),
    "inputs.npy": Target(
        lambda folder: np.save(folder / "i.npy", np.ones((2, 3))),
        lambda folder: read_inputs(folder / "i.npy"),
        (ConfigError,),
    ),
    "config": Target(
        lambda folder: shutil.copy(WRITTEN / "checkpoint-torch" / "config.json", folder),
        _config,
        (ConfigError,),
    ),
}


def _wrong(read: Callable[[Path], object], **others: Any) -> Target:
    return Target(lambda folder: shutil.copy(WRITTEN / "text.txt", folder), read, (DataError,), **others)


# Each is wrong in one way, so that the session itself is held to account.
WRONG: dict[str, Target] = {
    "bare": _wrong(lambda folder: json.loads((folder / "text.txt").read_bytes() or b"x")),
    "other kind": _wrong(lambda folder: palm.PaLMConfig.from_json("")),
    "hang": _wrong(lambda folder: time.sleep(60)),
    "crash": _wrong(lambda folder: os.abort()),
    "other values": _wrong(lambda folder: (folder / "text.txt").read_bytes(), seal=lambda folder, file: None),
}

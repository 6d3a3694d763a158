"""Small valid files of the kinds that the fixtures of version 0.1.0 lack."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from shards import write_rows
from teams import cut

import palm
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.progress import load_progress
from palm.checkpoint.team import alone, save_pieces
from palm.data.tokenizer_file import read_tokenizer_file
from palm.parity.recording.bundle import write_bundle

WRITTEN = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
TEXT = WRITTEN / "text.txt"
Arrays = dict[str, np.ndarray]


def copied(name: str) -> Callable[[Path], object]:
    """A file or a folder of the fixtures."""
    given = WRITTEN / name
    if given.is_dir():
        return lambda folder: shutil.copytree(given, folder, dirs_exist_ok=True)
    return lambda folder: shutil.copy(given, folder)


def checkpoint_with_tokenizer(folder: Path) -> None:
    config, arrays = load_arrays(WRITTEN / "checkpoint-torch")
    folder.rmdir()
    tokenizer = read_tokenizer_file(WRITTEN / "run-jax-tokenizer" / "tokenizer.json")
    save_arrays(config, arrays, folder, tokenizer=tokenizer)


def exported(folder: Path) -> None:
    """For transformers, in several files and with a tokenizer."""
    checkpoint, out = folder / "checkpoint", folder / "out"
    checkpoint.mkdir()
    checkpoint_with_tokenizer(checkpoint)
    with mock.patch("palm.checkpoint.export.MOST_BYTES", 9000):
        palm.export(checkpoint, out, format="transformers")
    shutil.rmtree(checkpoint)
    for file in out.iterdir():
        file.rename(folder / file.name)
    out.rmdir()


def checkpoint_in_pieces(folder: Path) -> None:
    """Of one process, and with moments."""
    config, arrays, progress = load_progress(WRITTEN / "run-torch" / "step-00000004")
    folder.rmdir()
    [pieces] = cut({**arrays, **progress.moments}, 1)
    save_pieces(config, pieces, folder, alone(), fields=progress.fields)


def shards(folder: Path) -> None:
    write_rows(folder, [np.arange(300), np.arange(5)], 300)


def bundle(folder: Path) -> None:
    write_bundle(_recording(), folder)


@cache
def _recording() -> Any:
    from recordings import side

    return side("a")


@cache
def trace() -> Any:
    return palm.trace(_twice, np.arange(6.0).reshape(2, 3) / 7)


def _twice(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ x.T) * 2


def upstream(save: Callable[[Path, Arrays], object], name: str) -> Callable[[Path], object]:
    """Weights of palm_jax.palm_lite: dim 8, 2 heads of 4, one block, 16 tokens."""
    shapes = {"embedding": (16, 8), "norm.gamma": (8,), "layers.0.norm.gamma": (8,)}
    shapes |= {"layers.0.wi": (8, 8 + 4 + 64), "layers.0.attn_wo": (8, 8), "layers.0.ff_wo": (32, 8)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return lambda folder: save(folder / name, arrays)


def rlhf(save: Callable[[Path, Arrays], object], name: str) -> Callable[[Path], object]:
    """Weights of palm-rlhf-pytorch: dim 8, 2 heads of 4, one block with norms of queries and keys."""
    shapes = {"token_emb.weight": (16, 8), "norm.gamma": (8,), "layers.0.fn.norm.gamma": (8,)}
    shapes |= {
        "layers.0.fn.q_scale": (4,),
        "layers.0.fn.k_scale": (4,),
        "layers.0.fn.attn_out.weight": (8, 8),
    }
    shapes |= {"layers.0.fn.fused_attn_ff_proj.weight": (80, 8), "layers.0.fn.ff_out.2.weight": (8, 32)}
    rng = np.random.default_rng(0)
    arrays = {name: 1 + 0.1 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    buffers = {
        "norm.beta": [0.0] * 8,
        "rotary_emb.inv_freq": [1.0, 0.01],
        "rotary_emb.scale": [2 / 7, 9 / 14],
    }
    arrays |= {f"layers.0.fn.{name}": np.array(values, np.float32) for name, values in buffers.items()}
    arrays["norm.beta"] = np.zeros(8, np.float32)
    return lambda folder: save(folder / name, {f"module.{name}": array for name, array in arrays.items()})


def save_npz(file: Path, arrays: Arrays) -> None:
    np.savez(file, **arrays)


def save_safetensors(file: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, file)


def save_eqx(file: Path, arrays: Arrays) -> None:
    with file.open("wb") as stream:
        for array in arrays.values():
            np.save(stream, array)


def save_torch(file: Path, arrays: Arrays) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)


def sentences(folder: Path) -> None:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT.read_text("utf-8")[:500]] * 20),
        model_writer=written,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "t.model").write_bytes(written.getvalue())

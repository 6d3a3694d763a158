"""How much host memory one process of a mesh needs to build, save and load its pieces of a model."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import palm
from palm.backends import wing
from palm.spec.boxes import Piece
from palm.spec.initial import Initial, initial_weights
from palm.spec.parameters import parameters

# Large enough that what a framework keeps for itself hardly counts, and of many layers.
CONFIG = palm.PaLMConfig(num_tokens=256, dim=256, depth=12, heads=4, dim_head=64).resolve("torch")
TINY = palm.PaLMConfig(num_tokens=16, dim=8, depth=1, heads=2, dim_head=4).resolve("torch")
# Writing this resets the peak that Linux keeps.
RESET = Path("/proc/self/clear_refs")


def memory(row: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(row))


def checksums(pieces: Iterator[Piece]) -> dict[tuple[Any, ...], int]:
    return {(piece.name, piece.start): zlib.crc32(piece.array.tobytes()) for piece in pieces}


def peaks(backend: str, mesh: str, folder: Path) -> dict[str, Any]:
    """The peaks of one process above what it had before, over the bytes of its pieces.

    All processes of the mesh must call this. `control`: of a model built from whole weights. `largest`: the
    part of a tensor that was drawn at once, over the largest piece.
    """
    module: Any = wing(backend)
    options: dict[str, Any] = {"backend": backend, "mesh": mesh}
    palm.save(palm.build(TINY, **options), folder / "tiny")  # imports what is imported then
    palm.load(folder / "tiny", **options)
    gc.collect()
    base, found = memory("VmRSS"), dict[str, Any]()

    def peak(name: str, action: Callable[[], Any]) -> Any:
        gc.collect()
        RESET.write_text("5", "ascii")
        result = action()
        found[name] = memory("VmHWM") - base
        return result

    drawn, own_draw = [0], Initial.__getitem__

    def watched(self: Initial, at: tuple[slice, ...]) -> np.ndarray:
        part = own_draw(self, at)
        drawn.append(part.size)
        return part

    Initial.__getitem__ = watched  # type: ignore[method-assign]
    model = peak("build", lambda: palm.build(CONFIG, **options))
    Initial.__getitem__ = own_draw  # type: ignore[method-assign]
    sizes = [piece.array.size for piece in module.pieces(model)]
    peak("save", lambda: palm.save(model, folder / "model"))
    saved = checksums(module.pieces(model))
    del model
    model = peak("load", lambda: palm.load(folder / "model", **options))
    same = checksums(module.pieces(model)) == saved
    del model
    peak("control", lambda: palm.from_numpy(CONFIG, initial_weights(CONFIG, 0, "float32"), **options))
    own = 4 * sum(sizes)
    total = sum(row.size for row in parameters(CONFIG).values())
    return {name: size / own for name, size in found.items()} | {
        "same": same,
        "drawn": sum(drawn) / sum(sizes),
        "largest": max(drawn) / max(sizes),
        "share": sum(sizes) / total,
    }

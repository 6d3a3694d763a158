"""A run's checkpoint to damage, and every kind of damage; without a framework."""

import hashlib
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cases import assert_same_bits, draw_weights, small

from palm import CheckpointError
from palm.checkpoint import checkpoint
from palm.checkpoint.checkpoint import load_arrays, save_arrays
from palm.checkpoint.progress import MOMENTS, Progress, load_progress
from palm.recipes import RECIPES

CONFIG = small()
FIELDS = {
    "step": 300,
    "row": 10**15,
    "rewinds": 0,
    "spike": 0,
    "val_loss": 0.1 + 0.2,
    "backend": "jax",
    "note": "naïve\n\u2028",
    "recipe": RECIPES["paper"].to_dict(),
}


def draw_moments(weights: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """Moments of all sizes a run has: from subnormal to large, of both signs and both zeros."""
    rng = np.random.default_rng(seed)
    moments = {}
    for moment, (name, weight) in itertools.product(MOMENTS, weights.items()):
        values = rng.standard_normal(weight.shape) * 10.0 ** rng.uniform(-44, 37, weight.shape)
        values.flat[0] = -0.0
        moments[f"{moment}.{name}"] = values.astype(weight.dtype)
    return moments


def draw_state(seed: int = 0, dtype: str = "float64") -> tuple[dict[str, np.ndarray], Progress]:
    weights = draw_weights(CONFIG, seed, dtype)
    return weights, Progress({**FIELDS, "seed": seed}, draw_moments(weights, seed))


OLD, NEW = draw_state(0), draw_state(1)


def save_state(state: tuple[dict[str, np.ndarray], Progress], path: Path, *, overwrite: bool = False) -> Path:
    """Save in several files of weights and several of moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "MAX_FILE_BYTES", 5000)
        return save_arrays(CONFIG, state[0], path, overwrite=overwrite, progress=state[1])


def entry_of_pieces(file: Path) -> dict[str, int | str]:
    """What a manifest says of a file of pieces as a whole."""
    content = file.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    return {"bytes": len(content), "header": hashlib.sha256(header).hexdigest()}


def assert_is_state(path: Path, state: tuple[dict[str, np.ndarray], Progress]) -> None:
    config, weights, progress = load_progress(path)
    assert config == CONFIG
    assert_same_bits(weights, state[0])
    assert_same_bits(progress.moments, state[1].moments)
    assert progress.fields == state[1].fields
    assert_same_bits(load_arrays(path)[1], state[0])


def change(rng: random.Random, good: bytes) -> tuple[str, bytes | None]:
    """One way in which a file can be damaged: its name, and what is then in the file (None: it is gone)."""
    at = rng.randrange(len(good))
    more = min(len(good), at + rng.randint(1, 600))
    ways = {
        "flip": good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :],
        "replace": good[:at] + bytes([good[at] ^ rng.randint(1, 255)]) + good[at + 1 :],
        "cut": good[:at],
        "delete": None,
        "append": good + rng.choice((rng.randbytes(rng.randint(1, 600)), good, b"\0", b"\n")),
        "repeat": good[:more] + good[at:],
        "blank": good[:at] + bytes(more - at) + good[more:],
        "drop": good[:at] + good[more:],
    }
    kind = rng.choice(list(ways))
    return kind, ways[kind]


@contextmanager
def damaged(path: Path, rng: random.Random) -> Iterator[str]:
    """A checkpoint with one file damaged at random, and what was done; restored afterwards."""
    file = rng.choice(sorted(path.iterdir()))
    good = file.read_bytes()
    content: bytes | None = good
    while content == good:  # blank bytes may have been blank before
        kind, content = change(rng, good)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield f"{kind} of {file.name}"
    finally:
        file.write_bytes(good)


def undetected(path: Path, rng: random.Random) -> list[str]:
    """Damage a checkpoint once; which ways of loading it did not explain that with a `CheckpointError`."""
    missed = []
    with damaged(path, rng) as what:
        for load in (load_arrays, load_progress):
            try:
                load(path)
                missed.append(f"{load.__name__} loaded after {what}")
            except CheckpointError as error:
                if str(path) not in str(error):
                    missed.append(f"{load.__name__} does not say where after {what}: {error}")
            except Exception as error:
                missed.append(f"{load.__name__} raised {error!r} after {what}")
    return missed

"""Bundles that are damaged, or rewritten with seals that fit: none may crash palm or be said to agree."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recordings import scaled, side
from safetensors.numpy import load_file, save_file

from palm import PalmError, compare
from palm.checkpoint.manifest import fingerprint
from palm.files.sealed import sealed
from palm.parity.recording.bundle import ARRAYS, HEADER, write_bundle
from palm.parity.recording.excerpt import excerpt_of

RIGHT = {True: side("a"), False: excerpt_of(side("a"))}
PARTNER = {True: side("b"), False: excerpt_of(side("b"))}
# What says how a side is called and where it ran, and what only says why: nothing that two sides could differ
# in. `order` is the order of a report's rows.
HARMLESS = {"label", "environment", "order", "seed", "exact_loss"}
STRANGE: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1e308, "", "nan", "x", [], [[]], {}, {"a": []}, [None])


def mutate(path: Path, kind: str, is_complete: bool, rng: random.Random) -> str:
    """Write a bundle, mutate it, and hold it against its partner; says what became of it."""
    write_bundle(RIGHT[is_complete], path)
    MUTATIONS[kind](path, rng)
    try:
        found = compare(path, PARTNER[is_complete])
        found.to_dict()
    except PalmError as error:
        return type(error).__name__
    assert found.outcome != "agree", kind
    return str(found.outcome)


def _flip(path: Path, rng: random.Random) -> None:
    file = path / rng.choice((HEADER, ARRAYS))
    content = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def _cut(path: Path, rng: random.Random) -> None:
    file = path / rng.choice((HEADER, ARRAYS))
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _insert(path: Path, rng: random.Random) -> None:
    file = path / rng.choice((HEADER, ARRAYS))
    content = file.read_bytes()
    place = rng.randrange(len(content))
    file.write_bytes(content[:place] + rng.randbytes(rng.randint(1, 64)) + content[place:])


def _lose_a_field(path: Path, rng: random.Random) -> None:
    header = _header(path)
    del header[rng.choice(list(header))]
    _seal(path, header)


def _strange_field(path: Path, rng: random.Random) -> None:
    header = _header(path)
    name = rng.choice([name for name in header if name not in HARMLESS])
    header[name] = rng.choice([value for value in STRANGE if value != header[name]])
    _seal(path, header)


def _strange_value(path: Path, rng: random.Random) -> None:
    """Somewhere below a field."""
    header = _header(path)
    groups = [name for name in ("config", "digests", "arrays") if name in header]
    group = header[rng.choice(groups)]
    name = rng.choice([name for name in group if name not in ("init", "logit_scale")])
    group[name] = rng.choice([value for value in STRANGE if value != group[name]])
    _seal(path, header)


def _strange_statistic(path: Path, rng: random.Random) -> None:
    header = _header(path)
    if "statistics" not in header:
        return _strange_value(path, rng)
    row = header["statistics"][rng.choice(list(header["statistics"]))]
    row[rng.choice(("rms", "not_finite", "shape"))] = rng.choice((None, True, "x", {}, [None], -1, 1e300))
    _seal(path, header)


def _change_arrays(change: Callable[[dict[str, np.ndarray], str, random.Random], None]) -> Any:
    def mutation(path: Path, rng: random.Random) -> None:
        arrays = load_file(path / ARRAYS)
        change(arrays, rng.choice(sorted(arrays)), rng)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path / ARRAYS)
        header = _header(path)
        order = [name for name in header["order"] if name in arrays]
        order += [name for name in arrays if name not in order]
        _seal(path, {**header, "order": order, "arrays": fingerprint(path / ARRAYS)})

    return mutation


def _rename(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    arrays[rng.choice(("", "x", "taps/", "taps/x", "sketches/grad:x", "weights/x", f"{name}/"))] = arrays.pop(
        name
    )


def _retype(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    types = [np.int8, np.float16, np.float32, np.float64, np.uint16]
    arrays[name] = arrays[name].astype(rng.choice([t for t in types if t != arrays[name].dtype]))


def _reshape(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    array = arrays[name]
    arrays[name] = rng.choice(
        [array.reshape(-1), array[None], array[:0], array[..., :-1], np.concatenate([array, array])]
    )
    if arrays[name].shape == array.shape:
        arrays[name] = array[None]


def _spoil(arrays: dict[str, np.ndarray], name: str, rng: random.Random) -> None:
    """Numbers that are wrong, not finite, or none of the vocabulary."""
    array = arrays[name].copy()
    wrong = (-1, 10**9) if array.dtype.kind == "i" else (np.nan, np.inf, 1e30)
    array.flat[rng.randrange(array.size)] = rng.choice(wrong)
    arrays[name] = array


def _fault(path: Path, rng: random.Random) -> None:
    """A whole bundle of a side that computes something else."""
    name = rng.choice(["embed", "blocks.0.q", "blocks.1.out", "logits", "grad:norm"])
    faulty = side("a", change=scaled(name, 1.01))
    is_complete = _header(path)["kind"] == "complete"
    write_bundle(faulty if is_complete else excerpt_of(faulty), path)


MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    "bits flipped": _flip,
    "cut short": _cut,
    "bytes inserted": _insert,
    "field lost": _lose_a_field,
    "field strange": _strange_field,
    "value strange": _strange_value,
    "statistic strange": _strange_statistic,
    "array lost": _change_arrays(lambda arrays, name, rng: arrays.pop(name)),
    "array renamed": _change_arrays(_rename),
    "array of another dtype": _change_arrays(_retype),
    "array of another shape": _change_arrays(_reshape),
    "array spoilt": _change_arrays(_spoil),
    "other function": _fault,
}


def _header(path: Path) -> dict[str, Any]:
    header = json.loads((path / HEADER).read_text())
    del header["seal"]
    return header


def _seal(path: Path, header: dict[str, Any]) -> None:
    (path / HEADER).write_text(sealed(header))

"""The recording of a program: what it computes, where, and the fingerprints; in memory and as a file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from palm.errors import BundleError
from palm.files.arrays import read_npz
from palm.files.objects import parse_object
from palm.files.read import open_regular
from palm.files.schema import (
    ABSENT,
    FLAG,
    NATURAL,
    PRINTABLE,
    TEXT,
    ByName,
    Items,
    Leaf,
    Optional,
    Record,
    check,
    one_of,
)
from palm.files.write import remedy, replace_file
from palm.parity.programs.scales import HELD, SHARED
from palm.tracing.fingerprint import LENGTH
from palm.tracing.operation import NOTHING, Change, Operation, Own, Place, Run
from palm.tracing.program import Program
from palm.tracing.rounding import Rounding

SUFFIX = ".trace"
_SCHEMA, _VERSION = "palm-trace", 1
# What a damaged file makes readers raise.
_DAMAGE = (LookupError, ValueError, TypeError)
_KINDS = ("operation", "input", "parameter", "constant")
_CALLER = Leaf(
    "a file and a line",
    lambda value: isinstance(value, list) and [type(part) for part in value] == [str, int],
)
_NUMBER = Leaf(
    "a number that float64 has",
    lambda value: type(value) is float or (type(value) is int and abs(value) < 2**1023),
)
_PLACE = Record(
    {"file": TEXT, "line": NATURAL, "function": TEXT, "module": TEXT, "callers": Items(_CALLER)},
    others=ABSENT,
)
_OPERATION = Record(
    {
        "op": TEXT,
        "kind": one_of(*_KINDS),
        "shape": Items(NATURAL),
        "dtype": TEXT,
        "place": Optional(_PLACE),
        "name": TEXT,
        "inputs": Items(NATURAL),
        "constants": Items(_NUMBER),
        "moves": FLAG,
        "draws": FLAG,
        "rounds": TEXT,
    },
    others=ABSENT,
)
_ABOUT = Record(
    {
        "schema": TEXT,
        "version": NATURAL,
        "label": PRINTABLE,
        "dtype": TEXT,
        "operations": Items(_OPERATION),
        "outputs": ByName(TEXT, NATURAL),
    }
)


@dataclass(frozen=True, eq=False)
class Trace:
    """A program that was run once in float64: `palm.trace` makes it, `palm.compare` takes it as a side.

    `operations`: its values in the order in which they came to be. `fingerprints`: shape (operations, 8),
    see `palm.tracing.fingerprint`. `moved`: the same after each leaf was disturbed by its rounding, once as
    of values that the other side shares, and once as of constants that are held in float32. `outputs`: which
    operation each output is; `results`: the outputs. `dtype`: what the program computes in by itself.
    `rounding`: error and need of each operation there, shape (2, operations), see `palm.tracing.rounding`.
    """

    label: str
    dtype: str
    operations: tuple[Operation, ...]
    fingerprints: np.ndarray
    moved: np.ndarray
    rounding: np.ndarray
    outputs: Mapping[str, int]
    results: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        """Short, unlike its arrays."""
        return f"<Trace of {self.label}: {len(self.operations):,} operations in {self.dtype}>"

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it to one file, whose name must end in .trace. It holds outputs and fingerprints, no weights.

        Raises `BundleError` for another name or if the file cannot be written.
        """
        file = Path(path)
        if file.suffix != SUFFIX:
            raise BundleError(f"path must end in {SUFFIX}; got path={file}. Choose such a name.")
        about = {
            "schema": _SCHEMA,
            "version": _VERSION,
            "label": self.label,
            "dtype": self.dtype,
            "operations": [asdict(op) for op in self.operations],
            "outputs": dict(self.outputs),
        }
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        arrays |= {"fingerprints": self.fingerprints, "moved": self.moved, "rounding": self.rounding}
        arrays |= {f"result {name}": value for name, value in self.results.items()}
        arrays["sha256"] = np.frombuffer(_digest(arrays).encode(), np.uint8)
        held = io.BytesIO()
        np.savez_compressed(held, **arrays)
        try:
            replace_file(file, held.getvalue())
        except OSError as error:
            raise BundleError(
                f"path must be a file that can be written; got {file}: {error.strerror}. {remedy(error)}"
            ) from None
        return file


def is_trace(side: object) -> bool:
    """Whether it is the path of a trace."""
    return isinstance(side, (str, PathLike)) and Path(side).suffix == SUFFIX


def read_trace(path: str | PathLike[str]) -> Trace:
    """Inverse of `Trace.save`. Raises `BundleError` for anything that it did not write."""
    try:
        with open_regular(path) as stream:
            arrays = read_npz(stream)
        digest = arrays.pop("sha256").tobytes().decode()
        if digest != _digest(arrays):
            raise BundleError(f"{path} must be as it was written; its checksum differs. Record again.")
        about = parse_object(arrays.pop("about").tobytes(), finite=False)
        check(about, _ABOUT)
        return _trace_of(about, arrays)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"path must be a trace; {path} cannot be read: {error.strerror}.") from None
    except _DAMAGE as error:
        raise BundleError(
            f"{path} must be a trace that palm wrote; got {error!s:.80}. Record again."
        ) from None


def record_trace(program: Program) -> Trace:
    """The trace of a program: six more runs."""
    leaves = {i: op for i, op in enumerate(program.operations) if op.kind != "operation"}
    scales = (
        dict.fromkeys(leaves, SHARED),
        {i: HELD if op.kind == "constant" and op.dtype != "float64" else SHARED for i, op in leaves.items()},
    )
    moved = [program.run(Change(scale=scale)).fingerprints for scale in scales]
    found = program.rounding()
    return Trace(
        label=program.label,
        dtype=program.dtype,
        operations=tuple(program.operations),
        fingerprints=program.first.fingerprints,
        moved=np.stack(moved),
        rounding=np.stack((found.error, found.need)),
        outputs=dict(program.outputs),
        results=program.first.outputs,
    )


class RecordedProgram(Program):
    """A trace in the place of a program: it cannot run with a change."""

    recorded = True

    def __init__(self, trace: Trace) -> None:
        self.label, self.dtype = trace.label, trace.dtype
        self.operations, self.outputs = list(trace.operations), dict(trace.outputs)
        self.first = Run(trace.fingerprints, {}, trace.results)
        self._moved, self._rounding = trace.moved, trace.rounding

    def run(self, change: Change = NOTHING, values: Collection[int] = ()) -> Run:
        """What was recorded, with the disturbance that is nearest to the one asked for."""
        if values or change.values or change.constants:
            raise NotImplementedError("a recorded program does not run again")
        if not change.scale:
            return self.first
        return Run(self._moved[int(max(change.scale.values()) > SHARED)], {}, self.first.outputs)

    def own(self) -> Own:
        """Not known any more: `rounding` has what is kept of it."""
        raise NotImplementedError("a recorded program does not run again")

    def rounding(self) -> Rounding:
        """What was recorded."""
        return Rounding(self.dtype, *self._rounding)


def _trace_of(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Trace:
    operations = tuple(operation_of(one, i) for i, one in enumerate(about["operations"]))
    count = len(operations)
    outputs = {str(name): int(i) for name, i in about["outputs"].items()}
    results = {name: arrays[f"result {name}"] for name in outputs}
    fits = (
        about["schema"] == _SCHEMA
        and about["version"] == _VERSION
        and arrays["fingerprints"].shape == (count, LENGTH)
        and arrays["moved"].shape == (2, count, LENGTH)
        and arrays["rounding"].shape == (2, count)
        and all(0 <= i < count for i in outputs.values())
        and all(x.dtype == np.float64 for x in (*arrays.values(), *results.values()))
    )
    if not fits:
        raise BundleError("a trace must have a fingerprint of each operation; this has not. Record again.")
    label, dtype = str(about["label"]), str(about["dtype"])
    return Trace(
        label=label,
        dtype=dtype,
        operations=operations,
        fingerprints=arrays["fingerprints"],
        moved=arrays["moved"],
        rounding=arrays["rounding"],
        outputs=outputs,
        results=results,
    )


def operation_of(plain: Mapping[str, Any], index: int) -> Operation:
    """Inverse of `dataclasses.asdict`, of the operation number `index`."""
    values = {field.name: plain[field.name] for field in fields(Operation)}
    place = values["place"]
    values["place"] = None if place is None else _place(place)
    for name in ("shape", "inputs", "constants"):
        values[name] = tuple(values[name])
    if values["kind"] not in _KINDS or not all(0 <= i < index for i in values["inputs"]):
        raise BundleError("an operation of a trace must be computed from earlier ones. Record again.")
    return Operation(**values)


def _place(plain: Mapping[str, Any]) -> Place:
    values = {field.name: plain[field.name] for field in fields(Place)}
    return Place(**{**values, "callers": tuple((str(file), int(line)) for file, line in plain["callers"])})


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()

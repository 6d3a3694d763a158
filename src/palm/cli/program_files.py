"""`palm compare FILE.py:NAME OTHER.py:NAME --inputs FILE`: two programs of anyone's."""

from __future__ import annotations

import os
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from palm.errors import ConfigError
from palm.files.arrays import read_npy, read_npz
from palm.files.objects import MalformedError
from palm.files.read import open_regular
from palm.parity.programs.compare import compare_programs
from palm.parity.programs.trace import RecordedProgram, is_trace, read_trace
from palm.parity.run.remote import ProgramFile, RemoteProgram


def is_program(side: str) -> bool:
    """Whether a side is a program in a file, or the trace of one."""
    return ProgramFile.of(side) is not None or is_trace(side)


def compare_program_files(
    sides: tuple[str, str], pythons: tuple[Path | None, Path | None], inputs: Path | None
) -> dict[str, Any]:
    """The report of two programs, each in its own process. Raises `ConfigError`."""
    for side in sides:
        if not is_program(side):
            raise ConfigError(
                f"both sides must be programs, FILE.py:NAME or a .trace; got {side} beside one. Name another."
            )
    arrays = () if all(map(is_trace, sides)) else read_inputs(inputs)
    labels = sides if sides[0] != sides[1] else (f"{sides[0]} (a)", f"{sides[1]} (b)")
    with ExitStack() as stack:
        found = []
        for each in zip(sides, labels, pythons, strict=True):
            found.append(_program(*each, arrays))
            if isinstance(found[-1], RemoteProgram):
                stack.push(found[-1])
        # Both processes have started before the first is waited for.
        a, b = (x.__enter__() if isinstance(x, RemoteProgram) else x for x in found)
        report = compare_programs(a, b).to_dict()
    return {**report, "run": {"sides": " ".join(sides), "inputs": str(inputs)}}


def _program(
    side: str, label: str, python: Path | None, arrays: tuple[np.ndarray, ...]
) -> RecordedProgram | RemoteProgram:
    # A path has lost its `./` by now: what lies here is meant, or else what is on the search path.
    found = python.absolute() if python is not None and python.is_file() else python
    file = ProgramFile.of(side, None if found is None else str(found))
    return RecordedProgram(read_trace(side)) if file is None else RemoteProgram(file, arrays, label)


def read_inputs(path: Path | None) -> tuple[np.ndarray, ...]:
    """The arrays that programs are called with. Raises `ConfigError`."""
    if path is None:
        raise ConfigError(
            "inputs must be given to run programs; got none. Name an .npz or .npy: --inputs FILE."
        )
    try:
        with open_regular(path) as stream:
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                return tuple(read_npz(stream).values())
            stream.seek(0)
            return (read_npy(stream, os.fstat(stream.fileno()).st_size),)
    except (OSError, MalformedError) as error:
        raise ConfigError(f"inputs must be a file of NumPy's, .npz or .npy; got {path}: {error}.") from None

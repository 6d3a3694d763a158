"""A program of anyone's in a process of its own: runs it as often as `RemoteProgram` asks.

    python -m palm.parity.run.program_worker FOLDER

FOLDER has what the two say to one another: request.json in it says what to run; each line on standard input
names a change, whose answer is written before the line `done` appears on standard output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from palm.errors import PalmError, ProbeError
from palm.parity.programs.kinds import traced_program
from palm.process import lines_of_parent, refuse
from palm.tracing.operation import Change, Run
from palm.tracing.program import Program


def main(folder: Path) -> None:
    """Trace the program, then run it for each line."""
    lines = lines_of_parent()
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the program prints is its own affair
    with np.load(folder / "inputs.npz", allow_pickle=False) as held:
        inputs = tuple(held[name] for name in held.files)
    program = traced_program(
        found(request["file"], request["name"]),
        inputs,
        label=request["label"],
        framework=request["framework"],
    )
    about = {
        "operations": [asdict(op) for op in program.operations],
        "outputs": program.outputs,
        "dtype": program.dtype,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    write(program.first, folder)
    print("done", file=answers, flush=True)
    for line in lines:
        try:
            reply(program, json.loads(line), folder)
        except Exception as error:  # a program need not run with what is tried on it
            print(json.dumps(f"{type(error).__name__}: {error}"), file=answers, flush=True)
        else:
            print("done", file=answers, flush=True)


def reply(program: Program, asked: dict[str, Any], folder: Path) -> None:
    """Do what is asked, and write what came of it."""
    if "rounding" in asked:
        of = program.rounding()
        np.savez(folder / "rounding.npz", rounding=np.stack((of.error, of.need)))
    elif "numbers" in asked:
        program.settle(asked["numbers"])
        write(program.first, folder)
    else:
        with np.load(folder / "change.npz", allow_pickle=False) as held:
            values = {int(name): held[name] for name in held.files}
        scale, constants = ({int(i): x for i, x in asked[key].items()} for key in ("scale", "constants"))
        change = Change(scale, values, constants, only=asked["only"])
        write(program.run(change, values=asked["values"]), folder)


def write(run: Run, folder: Path) -> None:
    """Write what a run gave."""
    arrays: dict[str, Any] = {"fingerprints": run.fingerprints}
    arrays |= {f"value {i}": x for i, x in run.values.items()}
    arrays |= {f"output {name}": x for name, x in run.outputs.items()}
    np.savez(folder / "answer.npz", **arrays)


def found(file: str, name: str) -> Any:
    """The object `name`, which may have dots, of the Python file `file`. Raises `ProbeError`."""
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ProbeError(f"a program must be in a Python file; got {file}. Write it as FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ProbeError(
            f"{file} must run; it raised {type(error).__name__}: {error}. Run it by itself."
        ) from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [key for key, x in vars(module).items() if callable(x) and not key.startswith("_")]
            raise ProbeError(
                f"{file} must define {name}; it has {', '.join(names[:12]) or 'nothing to call'}."
            )
        value = getattr(value, part)
    if not callable(value):
        raise ProbeError(f"{file}:{name} must be a program to call; got {type(value).__name__}.")
    return value


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        main(Path(sys.argv[1]))
    except PalmError as error:
        refuse(error)

"""What a comparison of programs is given, as programs; and the recording of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from palm.backends import is_model, model_of
from palm.parity.label import label_of
from palm.parity.programs.kinds import Framework, framework_of, traced_program
from palm.parity.programs.trace import RecordedProgram, Trace, record_trace
from palm.parity.recording.recording import OnStep, quietly
from palm.tracing.program import Program


def trace(program: Any, *inputs: Any, framework: Framework | None = None) -> Trace:
    """Run a program in float64 and record every operation: its place, its fingerprint, what it was made of.

    Program, inputs and `framework` are as in `compare`, which takes the trace, or the file that
    `Trace.save` wrote, in the place of the program: to compare two programs that cannot run on one machine.
    It holds no weights. Raises `ProbeError` if the program fails.
    """
    label = label_of(program, "")
    own = model_of(program) if is_model(program) else program
    return record_trace(traced_program(own, inputs, label=label, framework=framework))


def programs(
    sides: tuple[Any, Any],
    inputs: tuple[Any, ...],
    frameworks: Sequence[Framework | None],
    on_step: OnStep = quietly,
) -> tuple[Program, Program]:
    """Both sides, each run once; a trace stands for its program. Labels that look alike are told apart.

    `on_step` is called with the name of each finished step.
    """
    known = [
        None if isinstance(side, Trace) else framework or framework_of(side, inputs)
        for side, framework in zip(sides, frameworks, strict=True)
    ]
    names = [side.label if isinstance(side, Trace) else label_of(side, "") for side in sides]
    if names[0].casefold() == names[1].casefold():
        kinds = [kind or "trace" for kind in known] if known[0] != known[1] else ["a", "b"]
        names = [f"{name} ({kind})" for name, kind in zip(names, kinds, strict=True)]
    found: list[Program] = []
    for side, label, framework in zip(sides, names, frameworks, strict=True):
        if isinstance(side, Trace):
            found.append(RecordedProgram(replace(side, label=label)))
        else:
            found.append(traced_program(side, inputs, label=label, framework=framework))
        on_step(f"traced {label}")
    return found[0], found[1]

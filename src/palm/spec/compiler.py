"""Ask the TPU's own compiler what it makes of a training step, on a machine without a TPU.

The compiler comes with the package libtpu. It takes gigabytes and minutes, and a program
that is too large may end it. So it runs in a process of its own (`palm.jax_impl.compiled`), which is killed
when its time is over. Both ends of what the two say are here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import IO, Any

from palm import errors
from palm.config import PaLMConfig
from palm.errors import BackendError, MissingFrameworkError, PalmError
from palm.process import end, lines_of_parent, refusal, refuse, start_python, tell
from palm.recipes import Recipe
from palm.spec.mesh import Mesh

_CHILD = "palm.jax_impl.compiled"
# There is no TPU, and no service that tells what TPU this is; other processes may compile too.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a step, and the bytes that each device receives by them."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step on each chip. Sizes are in bytes."""

    topology: str
    """The kind of chip, and how many along each dimension."""
    total: int
    """What the program takes."""
    memory: int
    """What programs may use of a chip."""
    seconds: float
    """How long it took to compile."""
    sizes: Mapping[str, int]
    """Arguments, temporary values, outputs that are not donated arguments, and the program; empty if it is
    too large, and the compiler gave up."""
    collectives: Mapping[str, Collective]
    """By their kind: all-gather, reduce-scatter, …; empty if it is too large."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain Python values, as JSON holds them."""
        return asdict(self)


def compile_step(
    config: PaLMConfig, recipe: Recipe, mesh: Mesh, topology: str, *, timeout: float
) -> Compiled:
    """Compile the step of a resolved config for `topology`, such as `v4:2x2x1`; in at most `timeout` seconds.

    Raises `MissingFrameworkError` without JAX or libtpu, `ConfigError` for a topology that there is not, of
    another size than the mesh, or for which there is no program, and `BackendError` if the compiler dies or
    is not done in time.
    """
    for package, where in {
        "jax": "palm-dual[jax]",
        "equinox": "palm-dual[jax]",
        "libtpu": "jax[tpu]",
    }.items():
        if find_spec(package) is None:
            raise MissingFrameworkError(
                f'{package} must be installed to compile for a TPU; it is not. Run: pip install "{where}".'
            )
    request = {
        "config": config.to_dict(),
        "recipe": recipe.to_dict(),
        "mesh": mesh.shape,
        "topology": topology,
    }
    told = _told(request, timeout)
    told["collectives"] = {kind: Collective(**of) for kind, of in told["collectives"].items()}
    return Compiled(topology=topology, **told)


def answer(compiled: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """In the child: say what comes of the request, or why it is refused."""
    try:
        print(json.dumps(compiled(json.loads(next(lines_of_parent())))))
    except PalmError as error:
        refuse(error)


def _told(request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """What a child says of the request. Raises as `compile_step`."""
    with ExitStack() as held:
        # Files: a pipe that nobody reads becomes full.
        out, err = (held.enter_context(TemporaryFile()) for _ in range(2))
        child = held.enter_context(start_python(_CHILD, env=_ENVIRONMENT, stdout=out, stderr=err))
        held.callback(end, child)
        tell(child, request)
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise BackendError(
                f"compiling must be done in {timeout:g} seconds; got no program in that time. "
                "Give it more, or run less beside it."
            ) from None
        said, words = (_read(file) for file in (out, err))
    refused = refusal(status, words)
    if refused is not None:
        raise getattr(errors, refused[0], PalmError)(" ".join(refused[1].split()))
    if status:
        words = "\n".join(words.splitlines()[-5:])
        raise BackendError(
            f"the compiler must finish; got status {status}. "
            f"Give it more memory, if that is what it lacked. {words}"
        )
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    return told


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "backslashreplace")

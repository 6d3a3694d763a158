"""Ask the TPU's own compiler what it makes of a training step, on a machine without a TPU.

The compiler comes with the package libtpu. It takes gigabytes and minutes, and a program
that is too large may end it. So it runs in a process of its own (`palm.jax_impl.compiled`), which is killed
when its time is over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from palm.config import PaLMConfig
from palm.errors import BackendError, ConfigError, MissingFrameworkError
from palm.recipes import Recipe
from palm.spec.mesh import Mesh

# There is no TPU, and no service that tells what TPU this is; other processes may compile too.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
REFUSED = 3


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
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "palm.jax_impl.compiled"],
            input=json.dumps(request) + "\n",
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"compiling must be done in {timeout:g} seconds; got no program in that time. "
            "Give it more, or run less beside it."
        ) from None
    last = done.stdout.splitlines()[-1:] or [""]
    if done.returncode == REFUSED:
        raise ConfigError(last[0])
    if done.returncode:
        words = "\n".join(done.stderr.splitlines()[-5:])
        raise BackendError(
            f"the compiler must finish; got status {done.returncode}. "
            f"Give it more memory, if that is what it lacked. {words}"
        )
    told = json.loads(last[0])
    told["collectives"] = {kind: Collective(**of) for kind, of in told["collectives"].items()}
    return Compiled(topology=topology, **told)

"""The command that examines the installation: `palm doctor`. Neither framework is imported here."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.table import Table
from rich.text import Text

import palm
from palm.backends import available_backends
from palm.cli.display import Terminal
from palm.cli.flags import Request
from palm.config import BACKENDS, Backend
from palm.files.names import visible
from palm.memory import free_memory, in_units
from palm.process import end, start_python

BROKEN = 1
# A GPU's or a TPU's runtime may wait for another program that has the device.
_PATIENCE = 180.0


@dataclass(frozen=True)
class Extra:
    """Packages that palm can do without, and what they are for."""

    packages: tuple[str, ...]
    purpose: str


EXTRAS: dict[str, Extra] = {
    "torch": Extra(("torch",), "models in PyTorch"),
    "jax": Extra(("jax", "equinox"), "models in JAX"),
    "tokenizers": Extra(("tokenizers", "sentencepiece"), "tokens other than bytes"),
    "tensorboard": Extra(("tensorboardX",), "--log tensorboard"),
    "hub": Extra(("huggingface-hub",), "palm import hub:…"),
    "wandb": Extra(("wandb",), "--log wandb"),
    "trackio": Extra(("trackio",), "--log trackio"),
    "eval": Extra(("lm-eval",), "palm eval --tasks"),
}
# What changes speed, memory or results without a word.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
    *("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_COMPILATION_CACHE_DIR"),
    *("XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION"),
    *("TORCHINDUCTOR_CACHE_DIR", "WANDB_MODE"),
)


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What `palm doctor` is asked for."""

    json: bool = False
    """Print what was found as JSON."""


def doctor(request: Request[DoctorRequest]) -> int:
    """Say what is installed and what palm runs on, what is missing, and the command that installs it.

    Each framework is tried in a process of its own. Exit status 1: one that is installed does not work, or a
    package is too old.
    """
    found = examine()
    if request.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return BROKEN if found["problems"] else 0


def examine() -> dict[str, Any]:
    """What is installed and what this machine is, as JSON values; memory in bytes."""
    available = available_backends()
    frameworks = {backend: _try(backend) for backend in available}
    broken = [
        f"{name} does not work: {found['broken']}" for name, found in frameworks.items() if "broken" in found
    ]
    packages = {name: _version(name) for extra in EXTRAS.values() for name in extra.packages}
    packages["transformers"] = _version("transformers")  # no extra: it loads what palm export writes
    missing = [
        {"extra": name, "purpose": extra.purpose, "command": f'pip install "palm-dual[{name}]"'}
        for name, extra in EXTRAS.items()
        if (name in BACKENDS and name not in available) or None in map(packages.get, extra.packages)
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "palm": palm.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores,
        "memory": {"free": free_memory(), "total": _all_memory()},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "frameworks": frameworks,
        "packages": packages,
        "missing": missing,
        "problems": [*broken, *_too_old()],
    }


def _try(backend: Backend) -> dict[str, Any]:
    """What a framework says of itself, or why it does not work."""
    pipe = subprocess.PIPE
    with start_python("palm.cli.installation", backend, stdout=pipe, stderr=pipe) as process:
        try:
            printed, errors = process.communicate(timeout=_PATIENCE)
            said: dict[str, Any] = json.loads(printed.splitlines()[-1])
            return said
        except subprocess.TimeoutExpired:
            return {"broken": f"it took more than {_PATIENCE:.0f} s to start"}
        except (ValueError, IndexError):
            return {"broken": _reason(process.returncode, errors)}
        finally:
            end(process)


def _reason(status: int, errors: str) -> str:
    """Why a process printed nothing, in a line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if status < 0:
        return f"it ended with {signal.Signals(-status).name}"
    return lines[-1] if lines else f"it ended with status {status}"


def _too_old() -> list[str]:
    """Packages that palm needs in a later release, each with the command."""
    try:
        needed = metadata.requires("palm-dual") or []
    except metadata.PackageNotFoundError:  # a source tree on the path: nothing says what it needs
        return []
    found = []
    for requirement in needed:
        parts = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", requirement)
        version = None if parts is None else _version(parts[1])
        if parts is not None and version is not None and _numbers(version) < _numbers(parts[2]):
            found.append(f'{parts[1]} {version} is too old. Run: pip install "{parts[1]}>={parts[2]}".')
    return sorted(set(found))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """The numbers of a release, which compare as releases do."""
    release = re.match(r"[\d.]*", version)
    return [int(number) for number in re.findall(r"\d+", release[0] if release else "")]


def _all_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not of this system
        return None


def _show(found: Mapping[str, Any]) -> None:
    console = Terminal()
    sizes = {name: "unknown" if size is None else in_units(size) for name, size in found["memory"].items()}
    rows = {name: str(found[name]) for name in ("palm", "python", "system", "cores")}
    rows |= {"memory": f"{sizes['free']} free of {sizes['total']}", **found["variables"]}
    others = {name: version or "not installed" for name, version in found["packages"].items()}
    sections = [
        rows,
        *(_framework(backend, said) for backend, said in found["frameworks"].items()),
        {name: told for name, told in others.items() if name not in found["frameworks"]},
    ]
    for number, section in enumerate(sections):
        if number:
            console.print()
        _print(console, section)
    if found["missing"]:
        console.print("\nto install what is missing", highlight=False)
        _print(console, {f"  {one['command']}": one["purpose"] for one in found["missing"]})
    for problem in found["problems"]:
        console.print(f"\nproblem: {problem}", highlight=False, markup=False)


def _framework(backend: str, said: Mapping[str, Any]) -> dict[str, str]:
    if "broken" in said:
        return {backend: "does not work"}
    devices = [
        one["name"] if one["memory"] is None else f"{one['name']} ({in_units(one['memory'])})"
        for one in said["devices"]
    ]
    return {
        backend: said["version"],
        "  devices": ", ".join(devices),
        "  float32 products": said["matmul"],
        "  threads": str(said["threads"]),
    }


def _print(console: Terminal, rows: Mapping[str, str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, told in rows.items():
        table.add_row(Text(name), Text(visible(told)))
    console.print(table, highlight=False)

"""Every environment the project is built, tested and measured in. `nox -l` lists them."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
# What is imported is compiled when it is first imported; all of torch and JAX would take a minute.
CONSTRAINTS = ("--no-compile", "-c", "constraints.txt")
# And what was compiled is kept: otherwise each of hundreds of processes compiles torch or JAX anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The originals declare more than their model files need (one of them a GPU-only package).
UPSTREAM = ("PaLM-pytorch==0.2.2", "PaLM-jax==0.1.2")
# The program of the public weights, before and after its norms changed: one environment cannot have both.
RLHF = {version: Path(".nox/rlhf", version).resolve() for version in ("0.2.1", "0.8.0")}


# What the suite leaves to sessions of their own: a browser, and what takes half an hour or more.
APART = (
    "--ignore=tests/browser",
    "--ignore=tests/endurance",
    "--ignore=tests/faults",
    "--ignore=tests/fuzz",
    "--ignore=tests/harness",
    "--ignore=tests/loggers",
    "--ignore=tests/pairs",
    "--ignore=tests/tpu",
)
# Hundreds of small programs are compiled once and run once. `parity` runs the grid at full effort.
# One thread for each process: two on two cores would only wait for one another.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "OMP_NUM_THREADS": "1"}
# Compiled programs, for the sessions that run the same ones; `tests` begins anew.
COMPILED = Path(".nox/compiled").resolve()
BUILT = Path("build/dist")
# The core that knows of frameworks. It runs where one of them or both are missing; with `-- --whole`, all of
# the core does.
AWARE = ("tests/core/test_import.py", "tests/core/test_startup.py", "tests/core/checkpoint", "tests/core/cli")
# What runs once more with the shapes in signatures checked at each call.
SHAPED = (
    "tests/core/spec/test_forward.py",
    *(f"tests/{wing}_impl/test_modules.py" for wing in ("torch", "jax")),
    *(f"tests/parity/test_{name}.py" for name in ("attention", "norm", "position", "swiglu")),
)


CACHED = {"JAX_COMPILATION_CACHE_DIR": str(COMPILED)} | {
    f"JAX_PERSISTENT_CACHE_MIN_{what}": "0" for what in ("COMPILE_TIME_SECS", "ENTRY_SIZE_BYTES")
}


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def install(session: nox.Session, extras: str = "", *groups: str) -> None:
    """Install palm with `extras` and dependency `groups`, everything pinned by constraints.txt."""
    requirements = [requirement for name in groups for requirement in group(name)]
    session.install(*CONSTRAINTS, "-e", f".[{extras}]" if extras else ".", *requirements)


def install_upstream(session: nox.Session) -> None:
    session.install("--no-compile", "--no-deps", *UPSTREAM)
    for version, folder in RLHF.items():
        if not folder.exists():
            package = f"palm-rlhf-pytorch=={version}"
            session.install("--no-compile", "--no-deps", "--target", str(folder), package)


@nox.session
def tests(session: nox.Session) -> None:
    """The suite: core, both wings, parity, originals. It samples the largest grids; `whole` runs all."""
    run_suite(session, session.posargs, *([] if session.posargs else [("-q", "--shapes", *SHAPED)]))


@nox.session
def whole(session: nox.Session) -> None:
    """Every case of every test in `tests`: half an hour. `browser`, `endurance`, `faults` are apart."""
    run_suite(session, ("--whole", *session.posargs))


def run_suite(session: nox.Session, *runs: Sequence[str]) -> None:
    """Install everything, and run pytest with each of the given arguments, in three processes.

    Two would leave two cores idle for a quarter of the time. Each program is compiled once for all.
    """
    install(session, "all", "tests", "peers")
    install_upstream(session)
    # What takes half an hour does not run here, but must not rot either.
    session.run("pytest", "tests/endurance", "tests/faults", "--collect-only", "-q", silent=True)
    shutil.rmtree(COMPILED, ignore_errors=True)
    for arguments in runs:
        session.run("pytest", "-n", "3", "--dist", "worksteal", *APART, *arguments, env=QUICK | CACHED)


@nox.session
def core(session: nox.Session) -> None:
    """What must work with neither framework installed: all of it is imported, and what knows of them runs."""
    install(session, "", "tests")
    session.run("pytest", "tests/core", "--collect-only", "-q", silent=True)
    session.run("pytest", *own_core(session), *session.posargs)


@nox.session
def torch_only(session: nox.Session) -> None:
    """The torch wing on a machine without JAX."""
    run_wing(session, "torch")


@nox.session
def jax_only(session: nox.Session) -> None:
    """The JAX wing on a machine without torch."""
    run_wing(session, "jax")


def run_wing(session: nox.Session, wing: str) -> None:
    """Install one framework, and run its wing's tests and those of the core that know of frameworks."""
    install(session, wing, "tests")
    session.run("pytest", *own_core(session), f"tests/{wing}_impl", *session.posargs, env=QUICK | CACHED)


def own_core(session: nox.Session) -> tuple[str, ...]:
    """The tests of the core that a session runs where a framework is missing."""
    return ("tests/core",) if "--whole" in session.posargs else AWARE


@nox.session
def parity(session: nox.Session) -> None:
    """The parity grid alone, compiled as users have it; `-- --platform gpu` runs it on an accelerator."""
    install(session, "all", "tests", "peers")
    session.run("pytest", "tests/parity", "--whole", *session.posargs)


@nox.session
def upstream(session: nox.Session) -> None:
    """Against the five published originals, installed from the registry."""
    install(session, "all", "tests")
    install_upstream(session)
    session.run("pytest", "tests/upstream", "--whole", *session.posargs)


@nox.session
def endurance(session: nox.Session) -> None:
    """A thousand steps in both wings, kills and failing disks, damaged checkpoints and bundles: an hour.

    The processes that are killed run the same compiled programs.
    """
    install(session, "all", "tests")
    session.run("pytest", "-s", "tests/endurance", *session.posargs, env={"OMP_NUM_THREADS": "1"} | CACHED)


@nox.session
def faults(session: nox.Session) -> None:
    """Faults of 48 kinds, pairs of them, and right sides: all found and named, no false alarm."""
    install(session, "all", "tests")
    session.run("pytest", "-s", "tests/faults", *session.posargs, env=QUICK)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Mutated files of every kind that palm reads, for `-- SECONDS` (60); findings are in build/fuzz."""
    install(session, "all", "tests")
    session.run("python", "tests/fuzz/run.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def pairs(session: nox.Session) -> None:
    """Models of published libraries in PyTorch and JAX, right and with one mistake each: half an hour."""
    constraints = (*CONSTRAINTS, "-c", "constraints-pairs.txt")
    session.install(*constraints, "-e", ".[all]", *group("tests"), *group("pairs"))
    # It declares TensorFlow, which its models do not need on JAX.
    session.install(*constraints, "--no-deps", "keras-hub")
    env = QUICK | {"KERAS_BACKEND": "jax"}
    session.run("pytest", "-s", "tests/pairs", *session.posargs, env=env)


@nox.session
def sensitivity(session: nox.Session) -> None:
    """The smallest faults that are seen and named; writes the curves of docs/sensitivity.md."""
    install(session, "all")
    session.run("python", "benchmarks/sensitivity.py")


@nox.session
def alarms(session: nox.Session) -> None:
    """Right programs that must raise no alarm, and faults in bfloat16 that must not pass as rounding."""
    install(session, "all")
    session.run("python", "benchmarks/false_alarms.py", *session.posargs, env=QUICK)


@nox.session
def recording(session: nox.Session) -> None:
    """What it costs to record a model of a billion parameters; takes 20 GiB of memory."""
    install(session, "all")
    for backend in session.posargs or ("torch", "jax"):
        session.run("python", "benchmarks/recording.py", backend)


@nox.session
def learning(session: nox.Session) -> None:
    """How well the recipe learns: against a 5-gram model, and against the originals' own scripts."""
    install(session, "all", "peers")
    install_upstream(session)
    for which in session.posargs or ("ngram", "originals"):
        session.run("python", "benchmarks/learning.py", which)


@nox.session
def compare(session: nox.Session) -> None:
    """The main job: build one config in both frameworks and report where they differ."""
    install(session, "all")
    session.run("palm", "compare", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example: two scripts, and two that are notebooks as well. Each asserts what it shows."""
    install(session, "all", "examples")
    for name in ("train_torch", "train_jax"):
        session.run("python", f"examples/{name}.py", env=QUICK | CACHED)
    # What the other two scripts say.
    session.run("python", "examples/notebooks.py", "--check", env=QUICK | CACHED)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into build/site. A broken link is an error."""
    install(session, "", "docs")
    texts = Path("build/help")  # docs/commands.md includes them
    texts.mkdir(parents=True, exist_ok=True)
    of_data = ("data fetch", "data tokenize", "data info")
    others = ("eval", "plan", "runs", "compare-runs", "plot", "info", "doctor", "import", "export", "push")
    for command in ("compare", "record", "train", "generate", *of_data, *others):
        words = [*command.split(), "--help"]
        told = session.run("palm", *words, silent=True, env={"COLUMNS": "88", "NO_COLOR": "1"})
        lines = [textwrap.fill(line, 88) for line in told.splitlines()]
        (texts / f"{command.replace(' ', '-')}.txt").write_text("\n".join(lines), encoding="utf-8")
    session.run("zensical", "build", "--clean", "--strict")
    session.run("python", "tests/links.py", "build/site")


@nox.session
def package(session: nox.Session) -> None:
    """The wheel and the source archive, into build/dist; `-- v0.2.0`: they must be of that version."""
    session.install(*group("package"))
    shutil.rmtree(BUILT, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(BUILT))
    [wheel], [source] = BUILT.glob("*.whl"), BUILT.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(source))
    session.run("python", "tests/distribution.py", "archives", str(BUILT))
    for version in session.posargs:
        if wheel.name != f"palm_dual-{version.removeprefix('v')}-py3-none-any.whl":
            session.error(f"{wheel.name} is not of {version}")


@nox.session(python=["3.11", "3.12", "3.13"], requires=["package"])
def wheel(session: nox.Session) -> None:
    """The wheel alone in an empty environment of each Python."""
    [built] = BUILT.glob("*.whl")
    session.install("-c", "constraints.txt", str(built))
    [folder] = session.bin_paths or []
    session.run("python", "tests/distribution.py", "environment", str(Path(folder) / "python"))


@nox.session
def loggers(session: nox.Session) -> None:
    """The loggers with the real packages, offline: `-- wandb` for one of wandb and trackio."""
    for name in session.posargs or ("wandb", "trackio"):
        # trackio wants older packages than those that are pinned.
        pins = CONSTRAINTS if name == "wandb" else CONSTRAINTS[:1]
        session.install(*pins, "-e", f".[{name}]", *group("tests"))
        session.run("pytest", "tests/loggers", "-k", name)


@nox.session
def harness(session: nox.Session) -> None:
    """The tasks of lm-eval with the real package, offline, in both wings."""
    install(session, "torch,jax,eval", "tests")
    session.run("pytest", "tests/harness", *session.posargs, env=QUICK | {"HF_HUB_OFFLINE": "1"})


@nox.session
def browser(session: nox.Session) -> None:
    """The HTML report in a real headless Chromium (Debian's `chromium` must be installed)."""
    install(session, "", "tests", "browser")
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*CONSTRAINTS, *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly; and an example that uses the public surface, in which nothing may be of type Any."""
    install(session, "all", "types")
    session.run("mypy")
    session.run("basedpyright", "--project", "pyproject.toml")  # not one of a folder above


@nox.session
def bench(session: nox.Session) -> None:
    """Benchmarks; results are kept with the machine they came from. What follows `--` goes to speed.py."""
    install(session, "all", "bench", "peers")
    install_upstream(session)
    if not session.posargs:
        for script in ("parity_figures.py", "compile_time.py", "int8_loss.py"):
            session.run("python", f"benchmarks/{script}")
    session.run("python", "benchmarks/speed.py", *(session.posargs or ["all"]))


@nox.session
def gpu(session: nox.Session) -> None:
    """What benchmarks/gpu.sh does on an accelerator, in small on this machine's CPU: a few minutes."""
    install(session, "all", "tests", "peers", "bench")
    session.run("bash", "benchmarks/gpu.sh", "--dry-run", *session.posargs, external=True, env=QUICK | CACHED)


@nox.session(python="3.12")
def versions(session: nox.Session) -> None:
    """The same on other releases: `-- torch==2.12.0 jax==0.12.0`; by default the oldest torch, and JAX 0.11.

    The registry's torch for Linux is built for CUDA and takes gigabytes; it runs on a CPU, too.
    """
    releases = session.posargs or ("torch==2.11.0", "jax==0.11.2")
    requirements = [requirement for name in ("tests", "peers", "bench") for requirement in group(name)]
    session.install("-e", ".[all]", *requirements, *releases)
    session.run("bash", "benchmarks/gpu.sh", "--dry-run", external=True, env=QUICK)


@nox.session
def tpu_compile(session: nox.Session) -> None:
    """Kernels, training steps and steps on meshes through the TPU's own compiler, without a TPU."""
    install(session, "jax", "tpu", "tests")
    session.run("pytest", "tests/tpu", *session.posargs)
    # Nor is there a service that tells what TPU this is.
    env = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    session.run("python", "benchmarks/tpu_compile.py", env={**env, "TPU_ACCELERATOR_TYPE": "v4-8"})
    session.run("python", "benchmarks/tpu_meshes.py")


@nox.session
def constraints(session: nox.Session) -> None:
    """Resolve every extra and group anew and write constraints.txt."""
    requirements = [r for name in PYPROJECT["dependency-groups"] for r in group(name)]
    pins = ("torch==2.13.0", "jax==0.10.2", "equinox==0.13.8")
    session.install("--upgrade", *pins, "-e", ".[all]", *requirements)
    frozen = session.run("pip", "freeze", "--exclude-editable", silent=True)
    # A local version (+cpu) exists on one index only; the public part is the pin.
    lines = [line.split("+")[0] for line in frozen.splitlines() if "==" in line]
    with open("constraints.txt", "w", encoding="utf-8") as file:
        file.write("# Written by `nox -s constraints`.\n" + "\n".join(lines) + "\n")

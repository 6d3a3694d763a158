"""What is in the wheel and the source archive, and whether an empty environment is enough for palm.

    python tests/distribution.py archives DIST       the files in the two archives in the folder DIST
    python tests/distribution.py environment PYTHON  what is installed there, and how quickly palm starts

Both print what is wrong, a line each; the exit status is 1 then. `nox -s package wheel` runs them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
# Seconds of processor time, the least of some starts; and packages that the base must not bring along.
QUICK, STARTS = 0.3, 7
EXTRAS = {
    "torch",
    "jax",
    "jaxlib",
    "equinox",
    "tokenizers",
    "sentencepiece",
    "tensorboardx",
    "huggingface-hub",
    "lm-eval",
    "wandb",
    "trackio",
    "pytest",
}
# What a wheel must have besides the modules of palm, and what a source archive must.
IN_WHEEL = {
    "palm/py.typed",
    "palm/parity/report/templates/page.html",
    "palm/checkpoint/modeling_palm.txt",
}
IN_SOURCE = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "pyproject.toml",
    "noxfile.py",
    "PKG-INFO",
}
STRAY = {"__pycache__", ".DS_Store", ".nox", ".git", ".pytest_cache", ".ruff_cache", "build", "dist"}


def wrong_in_wheel(names: Iterable[str], sources: Iterable[str]) -> Iterator[str]:
    """What is wrong with the names in a wheel; `sources` are the files that palm is made of."""
    files = {name for name in names if not name.endswith("/")}
    described = {name for name in files if name.split("/")[0].endswith(".dist-info")}
    yield from (f"wheel: {name} should not be there" for name in sorted(files - described - {*sources}))
    yield from (f"wheel: {name} is missing" for name in sorted(({*sources} | IN_WHEEL) - files))
    if not any(PurePosixPath(name).name == "LICENSE" for name in described):
        yield "wheel: the licence is missing"


def wrong_in_source(names: Iterable[str], tracked: Iterable[str]) -> Iterator[str]:
    """What is wrong with the names in a source archive, below its one folder; `tracked` are those of git."""
    files = {"/".join(name.split("/")[1:]) for name in names}
    stray = {name for name in files if name not in {*tracked, "PKG-INFO"} or STRAY & {*name.split("/")}}
    yield from (f"source: {name} should not be there" for name in sorted(stray))
    needed = IN_SOURCE | {name for name in tracked if name.startswith(("src/", "tests/"))}
    yield from (f"source: {name} is missing" for name in sorted(needed - files))


def wrong_archives(folder: Path) -> Iterator[str]:
    """What is wrong with the two archives in a folder."""
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if (len(wheels), len(sources)) != (1, 1):
        yield f"{folder}: there must be one wheel and one source archive"
        return
    tracked = _tracked()
    inside = [name.removeprefix("src/") for name in tracked if name.startswith("src/palm/")]
    with zipfile.ZipFile(wheels[0]) as wheel:
        yield from wrong_in_wheel(wheel.namelist(), inside)
    with tarfile.open(sources[0]) as source:
        yield from wrong_in_source((entry.name for entry in source if entry.isfile()), tracked)


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


_LOOK = """
import json, sys
from importlib import metadata
import palm
there = sorted({distribution.metadata["Name"].lower() for distribution in metadata.distributions()})
dear = [name for name in ("torch", "jax", "matplotlib", "rich") if name in sys.modules]
print(json.dumps({"there": there, "loaded": dear, "from": palm.__file__, "version": palm.__version__}))
"""


def wrong_environment(python: Path) -> Iterator[str]:
    """What is wrong where palm alone was installed."""
    with tempfile.TemporaryDirectory() as empty:  # where no source of palm lies
        asked = subprocess.run([python, "-c", _LOOK], cwd=empty, capture_output=True, text=True, check=False)
        if asked.returncode:
            yield f"import palm: {asked.stderr.strip().splitlines()[-1]}"
            return
        found = json.loads(asked.stdout)
        yield from (f"the base brings {name} along" for name in found["there"] if name in EXTRAS)
        yield from (f"import palm loads {name}" for name in found["loaded"])
        if not Path(found["from"]).is_relative_to(python.parents[1]):
            yield f"palm comes from {found['from']}"
        command = [str(python.parent / "palm")]
        seconds = min(_processor_time([*command, "--help"], empty) for _ in range(STARTS))
        print(f"palm {found['version']}, {len(found['there'])} packages; palm --help: {seconds:.2f} s")
        if seconds > QUICK:
            yield f"palm --help takes {seconds:.2f} s of processor time, more than {QUICK} s"
        _processor_time([*command, "doctor"], empty)


def _processor_time(command: list[str], folder: str) -> float:
    """Seconds that a command takes of the processor. Raises `CalledProcessError` if it fails."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    what, where = sys.argv[1:]
    wrong = list(
        wrong_archives(Path(where)) if what == "archives" else wrong_environment(Path(os.path.abspath(where)))
    )
    print("\n".join(wrong) or f"{what}: nothing is wrong")
    sys.exit(bool(wrong))

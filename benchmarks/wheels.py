"""Carry what a machine without a network lacks: `download` wheels here, `install` the missing ones there.

    python benchmarks/wheels.py download [--python 3.12]
    python benchmarks/wheels.py install FOLDER

`download` fills .whl/ with the versions of constraints.txt, for Linux on x86-64, without torch, JAX, NumPy
and what comes with them, which such a machine has. `install` puts into FOLDER only packages that are absent
or older than palm needs, and what these need in turn; put FOLDER on PYTHONPATH. What the machine has stays as
it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".whl"
# With torch and JAX they come, and they are too large to carry.
NOT_CARRIED = {"torch", "jax", "jaxlib", "numpy"}
GROUPS = ("tests", "peers", "bench")
MOST_BYTES = 60 * 2**20
# Packages of constraints.txt that the requirements need in turn; SymPy and its like come with torch.
# Without hf-xet Hugging Face's packages cannot download, which nothing here does.
NEEDED_BY_THEM = [
    "absl-py",
    "accelerate",
    "annotated-doc",
    "annotated-types",
    "anyio",
    "certifi",
    "charset-normalizer",
    "click",
    "contourpy",
    "cycler",
    "docstring_parser",
    "einx",
    "execnet",
    "fonttools",
    "frozendict",
    "h11",
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "idna",
    "iniconfig",
    "kiwisolver",
    "loguru",
    "markdown-it-py",
    "MarkupSafe",
    "mdurl",
    "packaging",
    "pillow",
    "platformdirs",
    "pluggy",
    "psutil",
    "pydantic",
    "pydantic_core",
    "Pygments",
    "pyparsing",
    "python-dateutil",
    "PyYAML",
    "regex",
    "requests",
    "shellingham",
    "sortedcontainers",
    "tokenizers",
    "torch-einops-utils",
    "tqdm",
    "truststore",
    "typeguard",
    "typer",
    "typing-inspection",
    "typing_extensions",
    "urllib3",
    "wadler_lindig",
]
# pip matches each of these exactly.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)] + [
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
]


def requirements() -> list[str]:
    """What palm, its wings, its tests and its benchmarks require, as pyproject.toml has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    of_groups = (line for name in GROUPS for line in groups[name])
    return [*project["project"]["dependencies"], *extras["torch"], *extras["jax"], *of_groups]


def plain(name: str) -> str:
    """A distribution's name as an index compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


def pins() -> dict[str, str]:
    """The versions of constraints.txt, by plain name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {plain(line.split("==")[0]): line for line in lines if "==" in line}


def download(python: str) -> None:
    """Fill .whl/ anew; a folder of more than 60 MiB is an error."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - `install` may have to find it first

    names = {plain(Requirement(line).name) for line in requirements()} | {plain(n) for n in NEEDED_BY_THEM}
    known = pins()
    WHEELS.mkdir(exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"),
            *("--python-version", python, "--implementation", "cp", *platforms, "-d", str(WHEELS)),
            *(known[name] for name in sorted(names - NOT_CARRIED)),
        ],
        check=True,
    )
    size = sum(wheel.stat().st_size for wheel in WHEELS.glob("*.whl"))
    print(f"{len(list(WHEELS.glob('*.whl')))} wheels, {size / 2**20:.1f} MiB, in {WHEELS}")
    if size > MOST_BYTES:
        sys.exit(f"the wheels must take at most {MOST_BYTES >> 20} MiB. Carry fewer.")


def chosen(wanted: Iterable[str], carried: dict[str, Path]) -> Iterator[Path]:
    """The carried wheels that bring what is absent or too old here, and what these need in turn."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - it may have been carried itself

    seen: set[str] = set()
    waiting = [Requirement(line) for line in wanted]
    while waiting:
        requirement = waiting.pop()
        name = plain(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        here = installed(name)
        if here is not None and requirement.specifier.contains(here, prereleases=True):
            continue
        seen.add(name)
        if name not in carried:
            lacking = f"{requirement.name}{requirement.specifier}"
            print(f"{lacking} is needed; got {here}, and no wheel of it in {WHEELS}.")
            continue
        yield carried[name]
        [found] = distributions(path=[str(carried[name])])
        waiting += [Requirement(line) for line in found.requires or ()]


def installed(name: str) -> str | None:
    """The version that is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install(folder: str) -> None:
    """Install what is missing here into `folder`; without wheels nothing is."""
    carried = {plain(wheel.name.split("-")[0]): wheel for wheel in sorted(WHEELS.glob("*.whl"))}
    if not carried:
        return
    sys.path.append(str(carried.get("packaging", "")))
    wheels = [str(wheel) for wheel in chosen(requirements(), carried)]
    if wheels:
        print(f"using {', '.join(Path(wheel).name.split('-')[0] for wheel in wheels)} from {WHEELS}")
        how = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", folder)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *how, *wheels], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("download").add_argument("--python", default="3.12")
    commands.add_parser("install").add_argument("folder")
    asked = parser.parse_args()
    if asked.command == "download":
        download(asked.python)
    else:
        install(asked.folder)


if __name__ == "__main__":
    main()

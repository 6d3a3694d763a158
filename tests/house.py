"""The shape of the source, measured: rooms, the imports between them, the sizes of files and functions.

    python tests/house.py

A room is a file or a package at the top of `src/palm/`; the package's own
`__init__.py` and `__main__.py` are none: they hand names on. Its rules are in
`tests/core/test_house.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median, quantiles

SOURCE = Path(__file__).parents[1] / "src" / "palm"
FILES = {file.relative_to(SOURCE).as_posix(): file for file in sorted(SOURCE.rglob("*.py"))}
FACES = ("__init__.py", "__main__.py")


@cache
def parse(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def is_module(dotted: str) -> bool:
    path = dotted.removeprefix("palm.").replace(".", "/")
    return dotted.startswith("palm.") and (f"{path}.py" in FILES or f"{path}/__init__.py" in FILES)


def module_of(file: str) -> str:
    parts = ["palm", *file.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere in a file, under its full name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if is_module(full) else str(node.module))
    return found


def room_of(module: str) -> str | None:
    """The room of one of palm's modules; None of the package itself and of what is not palm's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "palm" and len(parts) > 1 else None


def rooms() -> list[str]:
    return sorted({name.split("/")[0].removesuffix(".py") for name in FILES if name not in FACES})


def arrows() -> dict[tuple[str, str], list[str]]:
    """Each pair of rooms of which the first imports the second, with the files that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in FILES:
        room = name.split("/")[0].removesuffix(".py")
        for module in imports(parse(name)) if name not in FACES else ():
            other = room_of(module)
            if other is not None and other != room:
                found.setdefault((room, other), []).append(f"{name} -> {module}")
    return found


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Every circle of a graph that is found by walking it in depth."""
    graph: dict[str, list[str]] = {}
    for a, b in sorted(edges):
        graph.setdefault(a, []).append(b)
    done: set[str] = set()
    found = []

    def visit(node: str, above: list[str]) -> None:
        if node in above:
            found.append([*above[above.index(node) :], node])
        elif node not in done:
            for other in graph.get(node, ()):
                visit(other, [*above, node])
            done.add(node)

    for node in list(graph):
        visit(node, [])
    return found


def functions() -> Iterator[tuple[str, int]]:
    """Each function and method, and its lines from `def` to its end."""
    for name in FILES:
        for node in ast.walk(parse(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def lines() -> dict[str, int]:
    """The lines of each file that has any code."""
    counts = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    return {name: count for name, count in counts.items() if count > 1}


def shape() -> dict[str, float]:
    """What the house is held to."""
    of_files, of_functions = lines(), [length for _, length in functions()]
    ninetieth = quantiles(of_functions, n=10, method="inclusive")[-1]
    return {
        "rooms": len(rooms()),
        "arrows": len(arrows()),
        "circles": len(circles(set(arrows()))),
        "median file": median(of_files.values()),
        "longest file": max(of_files.values()),
        "median function": median(of_functions),
        "90th percentile of functions": ninetieth,
        "longest function": max(of_functions),
    }


if __name__ == "__main__":
    for what, value in shape().items():
        print(f"{what:30} {value:g}")
    longest = sorted(functions(), key=lambda pair: -pair[1])[:12]
    print("\nlongest functions:", *(f"  {count:4} {name}" for name, count in longest), sep="\n")
    big = sorted(lines().items(), key=lambda pair: -pair[1])[:12]
    print("\nlongest files:", *(f"  {count:4} {name}" for name, count in big), sep="\n")

"""The rules of the house: which room may import which, through which doors, and how large things may be."""

from __future__ import annotations

import pytest
from house import FILES, arrows, circles, imports, module_of, parse, room_of, rooms, shape

# From the ground up. A room imports rooms of the floors below its own, and none of its own floor.
FLOORS = (
    {"errors", "interrupt", "lazy", "process"},
    {"memory"},
    {"fields", "files"},
    {"config"},
    {"presets", "recipes"},
    {"spec", "tracing"},
    {"data", "torch_impl", "jax_impl", "wings"},
    {"backends"},
    {"models"},
    {"checkpoint"},
    {"generation", "upstream"},
    {"training"},
    {"parity"},
    {"cli", "testing"},
)
# The floors of the instrument.
PARITY_FLOORS = (
    {"finding", "diagnosis", "recording", "label"},
    {"judge"},
    {"drift"},
    {"report"},
    {"answer", "progress"},
    {"result"},
    {"repeats", "explain", "programs"},
    {"blackbox"},
    {"compare"},
    {"run"},
)
# The modules of a room that other rooms may import; of a room that is not named, all.
DOORS = {
    "checkpoint": {
        *("background", "boxes", "checkpoint", "export", "locate", "team", "manifest", "progress"),
        *("hub", "programs", "push", "tokenizer", "transformers"),
    },
    "data": {"corpus", "download", "remembered", "sharding", "tokenizer", "tokenizer_file", "windows"},
    "generation": {"generate", "prompts", "rows"},
    "training": {
        *("cadence", "curves", "evaluation", "groups", "hardware", "harness", "loggers", "plot"),
        *("noise", "run_folder", "runs", "summary"),
        *("train", "trained", "validation"),
    },
    "upstream": {"originals", "read", "rlhf", "tensors"},
    "parity": {
        *("compare", "result", "finding", "repeats"),
        *("recording.bundle", "recording.excerpt", "recording.recording"),
        *("programs.compare", "programs.result", "programs.sides", "programs.trace", "run.remote"),
        *("blackbox.compare", "drift.drift", "report.html", "report.terminal", "run.launch", "run.serving"),
        "run.sides",
    },
}


def floor_of(room: str, floors: tuple[set[str], ...]) -> int:
    [floor] = [i for i, names in enumerate(floors) if room in names]
    return floor


def upward(edges: set[tuple[str, str]], floors: tuple[set[str], ...]) -> list[tuple[str, str]]:
    return sorted((a, b) for a, b in edges if floor_of(b, floors) >= floor_of(a, floors))


def inside_parity() -> set[tuple[str, str]]:
    found = set()
    for file in FILES:
        module = module_of(file).removeprefix("palm.parity.").split(".")[0]
        if file.startswith("parity/") and file != "parity/__init__.py":
            named = {name.split(".")[2] for name in imports(parse(file)) if name.startswith("palm.parity.")}
            found |= {(module, other) for other in named - {module}}
    return found


def test_every_room_has_a_floor():
    assert sorted(room for names in FLOORS for room in names) == rooms()


def test_no_room_imports_one_of_its_own_floor_or_above():
    assert upward(set(arrows()), FLOORS) == []


def test_no_part_of_the_instrument_imports_one_of_its_own_floor_or_above():
    assert upward(inside_parity(), PARITY_FLOORS) == []


def test_an_import_upward_would_be_found():
    assert upward({("spec", "backends"), ("data", "backends"), ("cli", "spec")}, FLOORS) == [
        ("data", "backends"),
        ("spec", "backends"),
    ]


def test_no_circle_of_files():
    edges = {(module_of(file), module) for file in FILES for module in imports(parse(file))}
    assert circles({(a, b) for a, b in edges if a != b and b.startswith("palm.")}) == []


def test_a_circle_would_be_found():
    assert circles({("a", "b"), ("b", "c"), ("c", "a")}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("room", DOORS)
def test_a_room_is_entered_by_its_doors(room):
    used = {
        module.removeprefix(f"palm.{room}.")
        for file in FILES
        if room_of(module_of(file)) != room
        for module in imports(parse(file))
        if module.startswith(f"palm.{room}.")
    }
    assert used <= DOORS[room]


def test_the_house_keeps_its_shape():
    measured = shape()
    assert measured["rooms"] <= 26
    assert measured["arrows"] <= 120
    assert measured["circles"] == 0
    assert measured["median file"] <= 120
    assert measured["longest file"] <= 300
    assert measured["median function"] <= 12
    assert measured["90th percentile of functions"] <= 35
    assert measured["longest function"] <= 60

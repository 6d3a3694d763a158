"""Files changed at random: what is in their place, their bytes, or what their format says."""

from __future__ import annotations

import io
import json
import os
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What no JSON writer of Python's would write stands in the text for these words.
RAW = {
    "@digits": "1" + "0" * 5000,
    "@real": "1e999",
    "@nan": "NaN",
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@open": "[" * 3000,
    "@surrogate": '"\\ud800"',
    "@raw": '"\x1b[31m"',
}
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 6.0, 1e308, -0.0, 1e-320),
    *("", "x", "\0", "\x1b[31m", "\n", "\u202e", "\ud800", "../x", "/dev/zero", "nan", "٣", "x" * 5000),
    *([], [[]], [None], [1, 2, 3], {}, {"a": []}, {"": 0}, *RAW),
)
DTYPES = ("F8_E4M3", "F4", "F16", "BF16", "F64", "U8", "BOOL", "I64", "C64", "f32", "", "\x1b")
DESCRIPTIONS = ("<f8", ">f4", "|O", "<U4", "|V2", "<M8[s]", "|b1", "<c16", "<f3", "", "|V0", "<i8", "|S1")
SIZES = (0, 1, 2, 7, 2**31, 2**63, 2**64, -1, 10**30)
Change = Callable[[random.Random, bytes], bytes]


def change(rng: random.Random, folder: Path) -> tuple[str, Path]:
    """Change one file of a folder: what was done, and which file it was."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = rng.choice(files)
    if rng.random() < 0.04:
        way = rng.choice(list(PLACES))
        file.unlink()
        PLACES[way](file)
    elif rng.random() < 0.02:
        way = "content of another file"
        file.write_bytes(rng.choice(files).read_bytes())
    else:
        way, content = mutate(rng, file.name, file.read_bytes())
        file.write_bytes(content)
    return f"{way} of {file.relative_to(folder)}", file


# What can be in the place of a file.
PLACES: dict[str, Callable[[Path], object]] = {
    "loss": lambda file: None,
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "link to itself": lambda file: file.symlink_to(file),
    "link to a device": lambda file: file.symlink_to("/dev/zero"),
}


def mutate(rng: random.Random, name: str, content: bytes) -> tuple[str, bytes]:
    """What was done, and the new content of the file `name`; two times in three something of its format."""
    own = FORMATS.get(name.rpartition(".")[2])
    if own is None or not content or rng.random() < 1 / 3:
        way = rng.choice(list(BYTES))
        return way, BYTES[way](rng, content or b"\0")
    try:
        return own(rng, content)
    except (ValueError, LookupError, TypeError, zipfile.BadZipFile, RecursionError):
        return "noise", rng.randbytes(len(content))


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    head = min(len(changed), 200) if rng.random() < 0.5 else len(changed)
    for _ in range(rng.choice((1, 1, 2, 5))):
        changed[rng.randrange(head)] ^= rng.randint(1, 255)
    return bytes(changed)


def _at_a_span(become: Callable[[random.Random, bytes], bytes]) -> Change:
    """Another thing in the place of some bytes that follow one another."""

    def changed(rng: random.Random, content: bytes) -> bytes:
        first = rng.randrange(len(content))
        last = min(len(content), first + rng.choice((1, 2, 8, 64, 1000)))
        return content[:first] + become(rng, content[first:last]) + content[last:]

    return changed


INSERTED = (b"\0", b"\xff", b"\n", b"[" * 5000, bytes(range(9)))
BYTES: dict[str, Change] = {
    "flip": _flip,
    "cut": lambda rng, content: content[: rng.randrange(len(content))],
    "insert": _at_a_span(lambda rng, span: rng.choice(INSERTED) + span),
    "repeat": _at_a_span(lambda rng, span: span * rng.choice((2, 3, 50))),
    "drop": _at_a_span(lambda rng, span: b""),
    "blank": _at_a_span(lambda rng, span: bytes(len(span))),
    "extend": lambda rng, content: content + rng.choice((bytes(4096), content, *INSERTED)),
    "empty": lambda rng, content: b"",
    "mark": lambda rng, content: b"\xef\xbb\xbf" + content,
}


def strange_json(rng: random.Random, value: Any) -> tuple[str, str]:
    """The text of a JSON value, of which one part, or one key, is another."""
    holder, key = rng.choice([*_places(value)] or [([None], 0)])
    way = rng.choice(("value", "value", "value", "lose", "add", "twice", "rename", "root"))
    if way == "root":
        value = rng.choice(STRANGE)
    elif way == "lose":
        del holder[key]
    elif way == "value" or isinstance(holder, list):
        holder[key] = rng.choice(STRANGE)
    elif way == "add":
        holder[rng.choice(("x", "", "\0", "\ud800", "__class__", "@deep"))] = rng.choice(STRANGE)
    elif way == "rename":
        holder[rng.choice(("", "../x", "x\x1b", "\ud800", f"{key}x"))] = holder.pop(key)
    else:
        holder["@twice"] = holder[key]
    text = json.dumps(value).replace('"@twice"', json.dumps(str(key)))
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"', raw)
    return f"{way} at {key!r:.60}", text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value is: what holds it, and the key or index."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _json(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    done, text = strange_json(rng, json.loads(content))
    return done, text.encode()


def _lines(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    done, lines[at] = _json(rng, lines[at])
    return f"line {at}: {done}", b"\n".join(lines) + b"\n"


def _arguments(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    given = content.decode().split("\n")
    at = rng.randrange(len(given))
    strange = str(rng.choice(STRANGE))
    given[at : at + 1] = rng.choice(([], [given[at]] * 2, [strange], [strange], [f"{given[at]}={strange}"]))
    return f"argument {at}", "\n".join(given).encode("utf-8", "surrogatepass")


def _safetensors(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    way = rng.choice(("dtype", "shape", "data_offsets", "value", "length", "json"))
    row = header[rng.choice([name for name in header if name != "__metadata__"])]
    if way == "dtype":
        row["dtype"] = rng.choice(DTYPES)
    elif way in ("shape", "data_offsets") and row[way]:
        row[way][rng.randrange(len(row[way]))] = rng.choice(SIZES)
    elif way == "value":
        at = rng.randrange(0, max(1, len(data) - 4), 4)
        data = data[:at] + rng.choice((b"\0\0\x80\x7f", b"\0\0\xc0\x7f", rng.randbytes(4))) + data[at + 4 :]
    text = strange_json(rng, header)[1] if way == "json" else json.dumps(header)
    size = rng.choice((0, 2**63, 2**64 - 1, len(content))) if way == "length" else len(text.encode())
    return f"safetensors {way}", size.to_bytes(8, "little") + text.encode() + data


def _npy(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """The header of the first array; what follows it stays."""
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length].decode(), content[10 + length :]
    way = rng.choice(("descr", "shape", "order", "more", "deep"))
    shape = tuple(rng.choice(SIZES) for _ in range(rng.choice((0, 1, 1, 2, 33))))
    shown = rng.choice((str(shape), "(True,)", "5", "(1.5,)", "('a',)", "[3]"))
    header = {
        "descr": lambda: re.sub(r"'descr': '[^']*'", f"'descr': {rng.choice(DESCRIPTIONS)!r}", header),
        "shape": lambda: re.sub(r"\([^)]*\)", shown, header),
        "order": lambda: header.replace("False", rng.choice(("True", "None", "1"))),
        "more": lambda: header.replace("}", ", 'x': 1}") * rng.choice((1, 2)),
        "deep": lambda: "(" * rng.choice((100, 9000)),
    }[way]()
    text = header.encode()
    return f"npy {way}", content[:8] + len(text).to_bytes(2, "little") + text + data


def _zip(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, inner = members[at]
    way = done = rng.choice(("content", "content", "lose", "twice", "rename", "size"))
    if way == "content" and name == "about.npy":  # the JSON of a trace
        done, text = strange_json(rng, json.loads(inner[inner.index(b"{", 128) :]))
        held = io.BytesIO()
        np.save(held, np.frombuffer(text.encode(), np.uint8))
        inner = held.getvalue()
    elif way == "content":
        done, inner = mutate(rng, name if name.endswith(".npy") else f"{name}.bin", inner)
    elif way == "rename":
        name = rng.choice(("x.npy", "../x.npy", "\x1b.npy", "", name.upper()))
    members[at : at + 1] = [(name, inner)] * {"lose": 0, "twice": 2}.get(way, 1)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", rng.choice((0, 8, 8, 12, 14))) as archive:
        for member in members:
            archive.writestr(zipfile.ZipInfo(member[0]), member[1], archive.compression)
    changed = bytearray(written.getvalue())
    if way == "size":  # as the list at the end has it
        first = changed.index(b"PK\1\2") + rng.choice((20, 24))
        changed[first : first + 4] = rng.choice((0, 1, 2**31, 2**32 - 1)).to_bytes(4, "little")
    return f"{done} of {name!r:.40} in zip", bytes(changed)


FORMATS: dict[str, Callable[[random.Random, bytes], tuple[str, bytes]]] = {
    "args": _arguments,
    "json": _json,
    "jsonl": _lines,
    "safetensors": _safetensors,
    **dict.fromkeys(("npy", "eqx"), _npy),
    **dict.fromkeys(("npz", "pt", "trace"), _zip),
}

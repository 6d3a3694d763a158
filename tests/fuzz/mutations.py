"""Files changed at random, in their bytes or in what their format says: JSON, safetensors, NumPy, zip."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Callable
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


def mutate(rng: random.Random, name: str, content: bytes) -> tuple[str, bytes]:
    """What was done, and the new content of the file `name`; two times in three something of its format."""
    suffix = name.rpartition(".")[2]
    own = FORMATS.get(suffix)
    if own is None or not content or rng.random() < 1 / 3:
        kind = rng.choice(list(BYTES))
        return kind, BYTES[kind](rng, content or b"\0")
    try:
        return own(rng, content)
    except (ValueError, LookupError, TypeError, zipfile.BadZipFile, RecursionError):
        return "noise", rng.randbytes(len(content))


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    at = rng.randrange(len(content))
    return at, min(len(content), at + rng.choice((1, 2, 8, 64, 1000)))


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    head = min(len(changed), 200) if rng.random() < 0.5 else len(changed)
    for _ in range(rng.choice((1, 1, 2, 5))):
        changed[rng.randrange(head)] ^= rng.randint(1, 255)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def _insert(rng: random.Random, content: bytes) -> bytes:
    at, _ = _span(rng, content)
    return content[:at] + rng.choice((b"\0", b"\xff", b"\n", rng.randbytes(9), b"[" * 5000)) + content[at:]


def _duplicate(rng: random.Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:last] + content[first:last] * rng.choice((1, 2, 50)) + content[last:]


def _drop(rng: random.Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:first] + content[last:]


def _blank(rng: random.Random, content: bytes) -> bytes:
    first, last = _span(rng, content)
    return content[:first] + bytes(last - first) + content[last:]


def _extend(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0" * 4096, content, b"\n", b"\xef\xbb\xbf", rng.randbytes(100)))


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flip": _flip,
    "cut": _cut,
    "insert": _insert,
    "duplicate": _duplicate,
    "drop": _drop,
    "blank": _blank,
    "extend": _extend,
    "empty": lambda rng, content: b"",
    "mark": lambda rng, content: b"\xef\xbb\xbf" + content,
}


def strange_json(rng: random.Random, value: Any) -> tuple[str, str]:
    """The text of a JSON value, of which one part, or one key, is another."""
    places = list(_places(value))
    if not places:
        return "other value", json.dumps(rng.choice(STRANGE))
    holder, key = rng.choice(places)
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


def _places(value: Any) -> Any:
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


def _npy_of(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def _zip(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, inner = members[at]
    way = rng.choice(("content", "content", "lose", "twice", "rename"))
    done = way
    if way == "content" and name == "about.npy":  # the JSON of a trace
        done, text = strange_json(rng, json.loads(inner[inner.index(b"{", 128) :]))
        inner = _npy_of(np.frombuffer(text.encode(), np.uint8))
    elif way == "content":
        done, inner = mutate(rng, name if name.endswith(".npy") else f"{name}.bin", inner)
    elif way == "rename":
        name = rng.choice(("x.npy", "../x.npy", "\x1b.npy", "", name.upper()))
    members[at] = (name, inner)
    members[at : at + 1] = [] if way == "lose" else [members[at]] * (1 + (way == "twice"))
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", rng.choice((0, 8, 8, 12, 14))) as archive:
        for name, inner in members:
            archive.writestr(zipfile.ZipInfo(name), inner, archive.compression)
    return f"{done} of {name!r:.40} in zip", changed.getvalue()


FORMATS: dict[str, Callable[[random.Random, bytes], tuple[str, bytes]]] = {
    "json": _json,
    "jsonl": _lines,
    "safetensors": _safetensors,
    "npy": _npy,
    "eqx": _npy,
    **dict.fromkeys(("npz", "pt", "trace"), _zip),
}

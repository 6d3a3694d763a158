"""Memory: whether something fits into it, before any of it is made; and copies as fast as it allows."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import numpy as np

from palm.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")
_LINE = 64  # bytes that a processor reads and writes at once
_UNITS = {"B": 1} | {
    f"{letter}{'i' * (base == 1024)}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for base in (1000, 1024)
}


def check_fits(what: str, needed: int, fix: str) -> None:
    """Raise `ConfigError` if `what` needs more bytes than a process can get here.

    `needed` is what it needs at least, so that nothing is refused that would fit. Where the system does not
    say what is free, nothing is refused.
    """
    free = free_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"memory must hold {what}; got {in_units(free)} that are free for at least {in_units(needed)}. "
            f"{fix}"
        )


def free_memory() -> int | None:
    """The bytes that a process can still get; None where the system does not say."""
    if not _MEMINFO.is_file():
        return None
    rows = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def in_units(size: int) -> str:
    """A number of bytes for a reader, as in 1.5 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def bytes_of(size: int | str) -> int:
    """The bytes of a size such as `80GiB`, `16 GB` or a whole number. Raises `ConfigError` for another."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?i?B)", size) if isinstance(size, str) else None
    number = int(Decimal(found[1]) * _UNITS.get(found[2], 0)) if found else 0
    if not number:
        raise ConfigError(
            f"memory must be bytes or a size in {', '.join(_UNITS)}; got memory={size!r}. Write 80GiB."
        )
    return number


def put(room: np.ndarray, array: np.ndarray) -> None:
    """`room[...] = array`. NumPy alone takes twice as long and more for a matrix that is turned over."""
    if room.ndim == array.ndim == 2 and room.strides[0] > room.strides[1]:
        room, array = room.T, array.T  # so that the numbers of a column lie next to each other
    is_turned = room.ndim == 2 and room.strides[0] < room.strides[1] and array.strides[0] > array.strides[1]
    if not is_turned:
        room[...] = array
        return
    width = max(1, _LINE // room.itemsize)
    for first in range(0, len(room), width):
        room[first : first + width] = array[first : first + width]

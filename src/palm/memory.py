"""Whether something fits into memory, before any of it is made."""

from __future__ import annotations

from pathlib import Path

from palm.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")


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

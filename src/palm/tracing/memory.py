"""Whether a program fits into memory in float64."""

from __future__ import annotations

from pathlib import Path

from palm.errors import ProbeError

# Bytes for each number that a program is given and holds: in float64, and once more as it is disturbed.
_EACH = 16
_MEMINFO = Path("/proc/meminfo")


def check_memory(label: str, count: int) -> None:
    """Raise `ProbeError` if a program of `count` numbers would need more memory than is free."""
    free = free_memory()
    if free is not None and _EACH * count > free:
        raise ProbeError(
            f"a program must fit into memory in float64; {label} has {count:,} numbers, which take "
            f"{_EACH * count / 2**30:.1f} GiB while it is traced, and {free / 2**30:.1f} GiB are free. "
            "Compare it with fewer layers or a smaller width: a mistake is there, too."
        )


def free_memory() -> int | None:
    """The bytes that a process can still get; None where the system does not say."""
    if not _MEMINFO.is_file():
        return None
    rows = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None

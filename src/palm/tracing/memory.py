"""Whether a program fits into memory in float64."""

from __future__ import annotations

from palm.errors import ProbeError
from palm.memory import free_memory, in_units

# Bytes for each number that a program is given and holds: in float64, and once more as it is disturbed.
_EACH = 16


def check_memory(label: str, count: int) -> None:
    """Raise `ProbeError` if a program of `count` numbers would need more memory than is free."""
    free = free_memory()
    if free is not None and _EACH * count > free:
        raise ProbeError(
            f"a program must fit into memory in float64; {label} has {count:,} numbers, which take "
            f"{in_units(_EACH * count)} while it is traced, and {in_units(free)} are free. "
            "Compare it with fewer layers or a smaller width: a mistake is there, too."
        )
